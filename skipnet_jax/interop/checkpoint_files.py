"""Weight files under torch's names. Reading one never runs code from it.

`.safetensors` holds arrays and nothing else. `.ckpt`, `.pt` and `.pth` are pickles, which can ask their reader to run
any code. torch therefore reads them in its weights-only mode, and a file that asks for more is refused.
"""

import argparse
import importlib
import io
import pathlib
import pickle
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from skipnet_jax.errors import UserError
from skipnet_jax.models import list_models, model_info

SAFETENSORS = ".safetensors"
LIGHTNING = ".ckpt"
ENDINGS = (SAFETENSORS, LIGHTNING, ".pt", ".pth")
LIGHTNING_PREFIX = "model."  # a PyTorch Lightning module puts it before each name of its network's weights


class TorchWeights(NamedTuple):
    """The content of a weight file.

    Args:
      state_dict: names -> arrays; half precision is widened to float32.
      model: our name of the network, if the file tells.
    """

    state_dict: dict[str, np.ndarray]
    model: str | None = None


def read(path: str | pathlib.Path) -> TorchWeights:
    """Reads safetensors, a bare state dict, or a checkpoint of PyTorch Lightning.

    Raises:
      UserError: the file is missing or damaged, is of another kind, or asks to run code.
    """
    path = pathlib.Path(path)
    _require_known_ending(path)
    if not path.is_file():
        raise UserError(f"{path}", "no such file", "a weight file")
    if path.suffix == SAFETENSORS:
        return TorchWeights(_read_safetensors(path))
    content = _read_pickle(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path}", f"a {type(content).__name__}", "a state dict, or a dict that holds one")
    state_dict = content.get("state_dict", content)
    if not isinstance(state_dict, Mapping):
        raise UserError(f"{path}", f"a state_dict of type {type(state_dict).__name__}", "a dict of tensors")
    named = {str(key).removeprefix(LIGHTNING_PREFIX): value for key, value in state_dict.items()}
    if len(named) < len(state_dict):
        raise UserError(f"{path}", f"the same names with and without {LIGHTNING_PREFIX!r} before them", "each once")
    return TorchWeights(_to_numpy(path, named), _network_name(content.get("config")))


def write(path: str | pathlib.Path, state_dict: Mapping[str, np.ndarray], model: str) -> None:
    """Writes a state dict in the format of the file's ending.

    Args:
      path: `.safetensors`; `.pt` or `.pth` for a bare state dict; `.ckpt` for a checkpoint as PyTorch Lightning writes
        it.
      state_dict: names -> arrays.
      model: our name of the network, for the `config` in a `.ckpt`.

    Raises:
      UserError: another ending, a missing library, or a file that cannot be written.
    """
    path = pathlib.Path(path)
    _require_known_ending(path)
    if path.suffix == SAFETENSORS:
        content = _library("safetensors.numpy", path).save(dict(state_dict))
    else:
        torch = _library("torch", path)
        tensors: dict[str, Any] = {key: torch.tensor(value) for key, value in state_dict.items()}
        if path.suffix == LIGHTNING:
            tensors = {LIGHTNING_PREFIX + key: value for key, value in tensors.items()}
            tensors = {"state_dict": tensors, "config": {"model": model_info(model).published_name}}
        stream = io.BytesIO()
        torch.save(tensors, stream)
        content = stream.getvalue()
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path}", f"{error.strerror or error}", "a file that can be written") from error


def _require_known_ending(path: pathlib.Path) -> None:
    if path.suffix not in ENDINGS:
        raise UserError(f"{path}", f"the ending {path.suffix!r}", f"one of {', '.join(ENDINGS)}", "Rename the file.")


def _library(module: str, path: pathlib.Path) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = module.partition(".")[0]
        raise UserError(
            f"{path}", f"a {path.suffix} file", f"the library {name}, which it needs", f"Run: pip install {name}"
        ) from error


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    safetensors = _library("safetensors.numpy", path)
    try:
        arrays = safetensors.load_file(path)  # JAX, imported already, has taught NumPy bfloat16
    except Exception as error:  # AttributeError or KeyError for types that NumPy lacks, and others for damage
        raise UserError(f"{path}", f"a damaged file ({error})", "whole safetensors", "Fetch it again.") from error
    return {key: value.astype(np.float32) if value.dtype.itemsize == 2 else value for key, value in arrays.items()}


def _read_pickle(path: pathlib.Path) -> Any:
    torch = _library("torch", path)
    try:
        # The arguments of a run often lie beside its weights. They come in a Namespace, which runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = re.search(r"(Unsupported|Trying to load|Can only).*?(?= Please|\.?$)", str(error), re.MULTILINE)
        raise UserError(
            f"{path}",
            f"a pickle that was refused ({reason[0] if reason else 'unknown instruction'})",
            "weights and plain values, since anything else could run code",
            "If you trust its author, load it where it was made and save its state dict alone: "
            "torch.save(checkpoint['state_dict'], 'weights.pt').",
        ) from error
    except Exception as error:  # a damaged pickle raises EOFError, KeyError, ..., depending on the damaged place
        damage = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path}", f"a damaged file ({damage})", "a whole checkpoint", "Fetch it again.") from error


def _to_numpy(path: pathlib.Path, state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    torch = _library("torch", path)
    others = [repr(key) for key, value in state_dict.items() if not isinstance(value, torch.Tensor)]
    if others:
        got = f"{len(others)} entries that are no tensors ({', '.join(others[:5])})"
        raise UserError(f"{path}", got, "a state dict")
    arrays = {}
    for key, tensor in state_dict.items():
        try:
            # One stored number can claim to be a tensor of any size.
            if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise TypeError(f"{tuple(tensor.shape)} is more than the file holds")
            widened = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
            arrays[key] = widened.detach().resolve_conj().resolve_neg().numpy()
        except (TypeError, RuntimeError) as error:  # sparse, quantised, 8 bits wide, on no device, ...
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path}", f"{key!r}, which is no plain array ({reason})", "dense arrays") from error
    return arrays


def _network_name(config: Any) -> str | None:
    """Our name of the network whose published name is the `model` of a config."""
    config = vars(config) if isinstance(config, argparse.Namespace) else config
    published = config.get("model") if isinstance(config, Mapping) else None
    return {model_info(name).published_name: name for name in list_models()}.get(str(published))
