"""Files that hold weights under torch's names: read without running anything of theirs, and written.

`.safetensors` holds arrays and nothing else. `.ckpt`, `.pt` and `.pth` are pickles, which may ask for any code to be
run on loading, so torch reads them in its weights-only mode and a file that asks for more is refused.
"""

import argparse
import dataclasses
import pathlib
import pickle
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from skipnet_jax.models import list_models, model_info

SAFETENSORS = ".safetensors"
LIGHTNING = ".ckpt"
PICKLES = (LIGHTNING, ".pt", ".pth")
ENDINGS = (SAFETENSORS, *PICKLES)
LIGHTNING_PREFIX = "model."  # of the network's weights among those of a PyTorch Lightning module


@dataclasses.dataclass(frozen=True)
class TorchWeights:
    """What a file holds.

    Args:
      state_dict: names -> arrays, half precisions widened to float32.
      model: name of the network here, where the file tells it.
    """

    state_dict: dict[str, np.ndarray]
    model: str | None = None


def read(path: str | pathlib.Path) -> TorchWeights:
    """Reads a checkpoint of PyTorch Lightning, a bare state dict, or safetensors, by the file's ending.

    Args:
      path: of the file.

    Raises:
      ValueError: the file is missing, broken, of another kind, or asks for code to be run.
    """
    path = pathlib.Path(path)
    _require_ending(path)
    if not path.is_file():
        raise ValueError(f"{path}: got no such file, expected a checkpoint.")
    if path.suffix == SAFETENSORS:
        return TorchWeights(_read_safetensors(path))
    content = _read_pickle(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: got a {type(content).__name__}, expected a state dict or a dict that holds one.")
    state_dict = content.get("state_dict", content)
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"{path}: got a state_dict of type {type(state_dict).__name__}, expected a dict of tensors.")
    named = {str(key).removeprefix(LIGHTNING_PREFIX): value for key, value in state_dict.items()}
    if len(named) < len(state_dict):
        raise ValueError(
            f"{path}: got keys both with and without {LIGHTNING_PREFIX!r} before them, expected one of both."
        )
    return TorchWeights(_to_numpy(path, named), _model_of(content.get("config")))


def write(path: str | pathlib.Path, state_dict: Mapping[str, np.ndarray], model: str) -> None:
    """Writes a state dict, in the form that the file's ending asks for.

    Args:
      path: `.safetensors`; `.pt` or `.pth` for a bare state dict; `.ckpt` for one as PyTorch Lightning writes it.
      state_dict: names -> arrays.
      model: name of the network, for the `config` of a `.ckpt`.

    Raises:
      ValueError: another ending, or the file cannot be written.
    """
    path = pathlib.Path(path)
    _require_ending(path)
    if path.suffix == SAFETENSORS:
        safetensors = _safetensors(path)
        try:
            safetensors.numpy.save_file(dict(state_dict), path)
        except (OSError, safetensors.SafetensorError) as error:
            raise ValueError(_unwritable(path, error)) from error
    else:
        torch = _torch(path)
        content: dict[str, Any] = {key: torch.tensor(value) for key, value in state_dict.items()}
        if path.suffix == LIGHTNING:
            content = {LIGHTNING_PREFIX + key: value for key, value in content.items()}
            content = {"state_dict": content, "config": {"model": model_info(model).published_name}}
        try:
            torch.save(content, path)
        except (OSError, RuntimeError) as error:  # the latter if the folder is not there
            raise ValueError(_unwritable(path, error)) from error


def _unwritable(path: pathlib.Path, error: Exception) -> str:
    return f"{path}: got {error}, expected a file that can be written. Give another one."


def _require_ending(path: pathlib.Path) -> None:
    if path.suffix not in ENDINGS:
        expected = ", ".join(ENDINGS)
        raise ValueError(f"{path}: got the ending {path.suffix!r}, expected one of {expected}. Rename the file.")


def _torch(path: pathlib.Path) -> ModuleType:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ValueError(_missing("torch", path)) from error
    return torch


def _safetensors(path: pathlib.Path) -> ModuleType:
    try:
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise ValueError(_missing("safetensors", path)) from error
    return safetensors


def _missing(library: str, path: pathlib.Path) -> str:
    return (
        f"{path}: got a {path.suffix} file, expected the library {library} to be installed for it. "
        f"pip install {library}."
    )


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    safetensors = _safetensors(path)
    try:
        arrays = safetensors.numpy.load_file(path)  # NumPy knows bfloat16 since JAX is imported
    except Exception as error:  # of a damaged file, and AttributeError or KeyError of a type that NumPy has not
        raise ValueError(f"{path}: got a broken file ({error}), expected whole safetensors. Fetch it again.") from error
    return {key: _widen(value) for key, value in arrays.items()}


def _read_pickle(path: pathlib.Path) -> Any:
    torch = _torch(path)
    try:
        # A run's arguments often lie beside the weights; a Namespace holds values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = re.search(r"(Unsupported|Trying to load|Can only).*?(?= Please|\.?$)", str(error), re.MULTILINE)
        raise ValueError(
            f"{path}: refused ({reason[0] if reason else 'unknown instruction'}); expected weights and plain values, "
            f"since loading more can run any code. If you trust who made it, load it where it was made and save its "
            f"state dict alone: torch.save(checkpoint['state_dict'], 'weights.pt')."
        ) from error
    except Exception as error:  # what a damaged pickle raises depends on where the damage is: EOFError, KeyError, ...
        damage = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path}: got a broken file ({damage}), expected a whole checkpoint. Fetch it again."
        ) from error


def _to_numpy(path: pathlib.Path, state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    torch = _torch(path)
    odd = [key for key, value in state_dict.items() if not isinstance(value, torch.Tensor)]
    if odd:
        keys = ", ".join(map(repr, odd[:5]))
        raise ValueError(f"{path}: got {len(odd)} entries that are no tensors ({keys}), expected a state dict.")
    half = (torch.float16, torch.bfloat16)
    arrays = {}
    for key, value in state_dict.items():
        try:
            # One stored number may claim to be a tensor of any size.
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise TypeError(f"{tuple(value.shape)} is more than the file holds")
            arrays[key] = (
                (value.float() if value.dtype in half else value).detach().resolve_conj().resolve_neg().numpy()
            )
        except (TypeError, RuntimeError) as error:  # sparse, quantised, on no device, of 8 bits ...
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"{path}: got {key!r}, which is no plain array ({reason}), expected dense ones."
            ) from error
    return arrays


def _widen(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array


def _model_of(config: Any) -> str | None:
    """Our name of the network that a config calls by its published name, as its `model`."""
    config = vars(config) if isinstance(config, argparse.Namespace) else config
    published = config.get("model") if isinstance(config, Mapping) else None
    return {model_info(name).published_name: name for name in list_models()}.get(str(published))
