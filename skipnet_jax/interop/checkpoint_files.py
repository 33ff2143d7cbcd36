"""Weight files under torch's names, and folders of them. Reading one never runs code from it.

`.safetensors` holds arrays and nothing else. `.ckpt`, `.pt`, `.pth`, `.bin` and `.pth.tar` are pickles, which can ask
their reader to run any code; `torch_zip` says what it reads from them. A folder is one of the Hugging Face hub's, with
the weights in one file or in several (shards), and a `config.json`.
"""

import argparse
import io
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from skipnet_jax import files
from skipnet_jax.errors import UserError
from skipnet_jax.interop import containers, hub_config, recognition, torch_legacy, torch_zip
from skipnet_jax.models import model_info

SAFETENSORS = ".safetensors"
LIGHTNING = ".ckpt"
ENDINGS = (SAFETENSORS, LIGHTNING, ".pt", ".pth", ".pth.tar", ".bin")
WRITABLE = (SAFETENSORS, LIGHTNING, ".pt", ".pth", ".bin")
LIGHTNING_PREFIX = "model."  # a PyTorch Lightning module puts it before each name of its network's weights
CONFIG = "config.json"
# The weights in a folder of the hub, in the order in which they are looked for.
HUB_FILES = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_FETCH = "Fetch it again."


class TorchWeights(NamedTuple):
    """The content of a weight file.

    Args:
      state_dict: bare names -> arrays; half precision is widened to float32.
      model: our name of the network, if the file tells.
      companion: what else is known about the weights.
      told: one line each about a choice that was made.
    """

    state_dict: dict[str, np.ndarray]
    model: str | None = None
    companion: hub_config.Companion = hub_config.Companion()
    told: tuple[str, ...] = ()


def read(path: str | pathlib.Path, which: str | None = None) -> TorchWeights:
    """Reads a weight file, or a folder of the Hugging Face hub.

    Args:
      path: a state dict, a checkpoint that holds one, or a folder.
      which: of a checkpoint with averaged weights too: "ema", "raw", or None = averaged if there are any.

    Raises:
      UserError: the file is missing or damaged, is of another kind, or asks to run code.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return _read_folder(path, which)
    _require_known_ending(path, ENDINGS)
    if not path.is_file():
        raise UserError(f"{path}", "no such file", "a weight file")
    beside = path.parent / CONFIG
    companion = _companion(beside) if path.name in HUB_FILES and beside.is_file() else hub_config.Companion()
    return _read_file(path, which, companion)


def write(path: str | pathlib.Path, state_dict: Mapping[str, np.ndarray], model: str) -> None:
    """Writes a state dict in the format of the file's ending.

    Args:
      path: `.safetensors`; `.pt`, `.pth` or `.bin` for a bare state dict; `.ckpt` for a checkpoint as PyTorch Lightning
        writes it.
      state_dict: names -> arrays.
      model: our name of the network, for the `config` in a `.ckpt`.

    Raises:
      UserError: another ending, a missing library, or a file that cannot be written.
    """
    path = pathlib.Path(path)
    _require_known_ending(path, WRITABLE)
    if path.suffix.lower() == SAFETENSORS:
        content = torch_legacy.library("safetensors.numpy", path).save(dict(state_dict))
    else:
        torch = torch_legacy.library("torch", path)
        tensors: dict[str, Any] = {key: torch.tensor(value) for key, value in state_dict.items()}
        if path.suffix.lower() == LIGHTNING:
            tensors = {LIGHTNING_PREFIX + key: value for key, value in tensors.items()}
            tensors = {"state_dict": tensors, "config": {"model": model_info(model).published_name}}
        stream = io.BytesIO()
        torch.save(tensors, stream)
        content = stream.getvalue()
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path}", f"{error.strerror or error}", "a file that can be written") from error


def _require_known_ending(path: pathlib.Path, endings: tuple[str, ...]) -> None:
    if not path.name.lower().endswith(endings):
        raise UserError(f"{path}", f"the ending {path.suffix!r}", f"one of {', '.join(endings)}", "Rename the file.")


def _read_file(path: pathlib.Path, which: str | None, companion: hub_config.Companion) -> TorchWeights:
    """Reads one file by what it holds, whatever its ending says."""
    try:
        with path.open("rb") as stream:
            start = stream.read(64)
    except OSError as error:
        raise UserError(f"{path}", f"{error.strerror or error}", "a file that can be read") from error
    if start.startswith(torch_zip.MAGIC):
        with torch_zip.open_archive(path) as archive:
            return _select(path, archive.content, which, companion, torch_zip.is_tensor, archive.array)
    if torch_zip.LEGACY_MAGIC in start:
        content = torch_legacy.read(path)
        return _select(path, content, which, companion, torch_legacy.is_tensor, torch_legacy.to_numpy)
    if (start and path.suffix.lower() == SAFETENSORS) or (start[8:9] == b"{" and start[:1] != b"\x80"):
        arrays = _read_safetensors(path)
        return _select(path, arrays, which, companion, lambda value: True, lambda array: array)
    raise UserError(f"{path}", _kind(start), f"weights: a file of torch.save, or {SAFETENSORS}", _FETCH)


def _kind(start: bytes) -> str:
    """Says what a file without weights is, by its first bytes."""
    text = start.lstrip().lower()
    if not start:
        return "an empty file"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return "a web page, such as an error page in place of the file"
    if text.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS in place of the file"
    if start.startswith(b"\x80"):
        return "a pickle that torch.save did not write, or the damaged start of one"
    return f"a damaged file (it begins with {start[:16]!r})"


def _select(
    path: pathlib.Path,
    content: Any,
    which: str | None,
    companion: hub_config.Companion,
    is_tensor: containers.IsTensor,
    to_array: Any,
) -> TorchWeights:
    """Finds the weights in what was saved, and reads only these."""
    found = containers.find(f"{path}", content, which, is_tensor)
    others = [repr(key) for key, value in found.state_dict.items() if not is_tensor(value)]
    if others:
        got = f"{len(others)} entries that are no tensors ({', '.join(others[:5])})"
        raise UserError(f"{path}", got, "a state dict")
    arrays = {}
    for key, tensor in found.state_dict.items():
        try:
            array = to_array(tensor)
        except (ValueError, TypeError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path}", f"{key!r}, which is no plain array ({reason})", "dense arrays") from error
        arrays[key] = array.astype(np.float32) if array.dtype.itemsize == 2 and array.dtype.kind in "fV" else array
    if isinstance(content.get("pretrained_cfg"), Mapping):
        companion = hub_config.read(f"{path}", {"architecture": companion.model, **content})
    recorded = (companion.model, content.get("arch"), content.get("model_name"), *_configured(content))
    ours = (recognition.from_recorded(text) for text in recorded if isinstance(text, str))
    return TorchWeights(arrays, next((name for name in ours if name), None), companion, found.told)


def _configured(content: Mapping[str, Any]) -> list[Any]:
    """The networks that the config or the arguments beside the weights name."""
    settings = []
    for key in ("config", "args", "hyper_parameters"):
        value = content.get(key)
        value = vars(value) if isinstance(value, argparse.Namespace | torch_zip.Record) else value
        if isinstance(value, Mapping):
            settings.append(value.get("model"))
    return settings


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    safetensors = torch_legacy.library("safetensors.numpy", path)
    try:
        return safetensors.load_file(path)  # JAX, imported already, has taught NumPy bfloat16
    except Exception as error:  # AttributeError or KeyError for types that NumPy lacks, and others for damage
        raise UserError(f"{path}", f"a damaged file ({error})", "whole safetensors", _FETCH) from error


def _read_folder(folder: pathlib.Path, which: str | None) -> TorchWeights:
    config = folder / CONFIG
    companion = _companion(config) if config.is_file() else hub_config.Companion()
    for name in HUB_FILES:
        if (folder / name).is_file():
            if name.endswith(".json"):
                return _read_shards(folder / name, which, companion)
            return _read_file(folder / name, which, companion)
    single = sorted(path for path in folder.iterdir() if path.is_file() and path.name.lower().endswith(ENDINGS))
    if len(single) == 1:
        return _read_file(single[0], which, companion)
    got = f"{len(single)} weight files" if single else "no weight file"
    some = f" ({', '.join(path.name for path in single[:3])}, ...)" if single else ""
    raise UserError(f"{folder}", f"a folder with {got}{some}", f"one of {', '.join(HUB_FILES)}", "Name one file.")


def _read_shards(index: pathlib.Path, which: str | None, companion: hub_config.Companion) -> TorchWeights:
    """Reads weights that lie in several files, as an index says."""
    record = files.read_record(index, {"weight_map": dict[str, str]}, mend=_FETCH)
    shards = sorted(set(record["weight_map"].values()))
    if not shards:
        raise UserError(f"{index}", "an empty weight_map", "the file of each array", _FETCH)
    if outside := [name for name in shards if pathlib.PurePath(name).name != name]:
        raise UserError(f"{index}", f"the file {outside[0]!r}", "files in its own folder", _FETCH)
    if missing := [name for name in shards if not (index.parent / name).is_file()]:
        got = f"{len(missing)} of its {len(shards)} files missing ({', '.join(missing[:3])})"
        raise UserError(f"{index}", got, "all of them", "Fetch the missing ones into the same folder.")
    parts = [_read_file(index.parent / name, which, companion) for name in shards]
    state_dict = {key: array for part in parts for key, array in part.state_dict.items()}
    if len(state_dict) < len(record["weight_map"]):
        got = f"{len(state_dict)} arrays in its files"
        raise UserError(f"{index}", got, f"the {len(record['weight_map'])} that it lists", _FETCH)
    return parts[0]._replace(state_dict=state_dict)


def _companion(config: pathlib.Path) -> hub_config.Companion:
    content = files.read_json(config, mend=_FETCH)
    if not isinstance(content, Mapping):
        raise UserError(f"{config}", f"a {type(content).__name__}", "an object", _FETCH)
    return hub_config.read(f"{config}", dict(content))
