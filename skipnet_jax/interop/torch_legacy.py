"""Files that torch.save wrote before 2020: several pickles in a row. Only torch reads them, weights-only."""

import argparse
import importlib
import pathlib
import pickle
import re
from types import ModuleType
from typing import Any

import numpy as np

from skipnet_jax.errors import UserError


def library(module: str, path: pathlib.Path, what: str = "") -> ModuleType:
    """Imports an optional library.

    Args:
      path: the file that needs it.
      what: the file's kind; empty = by its ending.

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = module.partition(".")[0]
        got = what or f"a {path.suffix} file"
        raise UserError(f"{path}", got, f"the library {name}, which it needs", f"Run: pip install {name}") from error


def read(path: pathlib.Path) -> Any:
    """Reads what was saved.

    Raises:
      UserError: torch is missing, or the file is damaged or asks to run code.
    """
    torch = library("torch", path, "a file in torch's format of before 2020")
    try:
        # The arguments of a run often lie beside its weights. They come in a Namespace, which runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace, *_numpy_scalars()]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = re.search(r"(Unsupported|Trying to load|Can only).*?(?= Please|\.?$)", str(error), re.MULTILINE)
        raise UserError(
            f"{path}",
            f"a pickle that was refused ({reason[0] if reason else 'unknown instruction'})",
            "weights and plain values, since anything else could run code",
            "If you trust its author, load it where it was made and save its state dict alone: "
            "torch.save(model.state_dict(), 'weights.pt').",
        ) from error
    except Exception as error:  # a damaged pickle raises EOFError, KeyError, ..., depending on the damaged place
        damage = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path}", f"a damaged file ({damage})", "a whole checkpoint", "Fetch it again.") from error


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of torch's."""
    torch = importlib.import_module("torch")
    return isinstance(value, torch.Tensor)


def to_numpy(tensor: Any) -> np.ndarray:
    """Makes an array of a tensor; half precision is widened.

    Raises:
      ValueError, TypeError, RuntimeError: it is sparse, quantised, 8 bits wide, on no device, ...
    """
    torch = importlib.import_module("torch")
    # One stored number can claim to be a tensor of any size.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"{tuple(tensor.shape)} is more than the file holds")
    widened = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    return widened.detach().resolve_conj().resolve_neg().numpy()


def _numpy_scalars() -> list[Any]:
    return [np.float64(0).__reduce__()[0], np.dtype, *{type(np.dtype(kind)) for kind in "fdilq?"}]
