"""Converts arrays between torch's layout and ours.

torch's convolutions are [out, in / groups, h, w], and its linear maps [out, in].
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from skipnet_jax.errors import UserError
from skipnet_jax.interop.naming import IGNORED, Naming, Path
from skipnet_jax.models import abstract_variables, create_model, model_info

Shapes = Mapping[Path, jax.ShapeDtypeStruct]


@functools.cache  # tracing a network takes seconds
def variable_shapes(name: str, num_classes: int) -> Shapes:
    """Shapes of all parameters and statistics of a network, without making any."""
    model = create_model(name, num_classes=num_classes)
    return flax.traverse_util.flatten_dict(abstract_variables(model, model_info(name).image_size))


def translate(
    state_dict: Mapping[str, Any], paths: Mapping[str, Path], shapes: Shapes
) -> tuple[dict[Path, jax.Array], list[str]]:
    """Brings torch's arrays into our layout, by name.

    Args:
      state_dict: torch's names -> arrays.
      paths: torch's name -> our path, for every array that has to be there.

    Returns:
      Our arrays, and one line for each key that does not fit.
    """
    given = weights_in(state_dict)
    mismatches = missing_and_extra(given, paths)
    variables = {}
    for key in paths.keys() & given.keys():
        path, theirs = paths[key], real_array(given[key])
        shape = shapes[path].shape
        if theirs is None:
            mismatches.append(f"type: {key} is no array of real numbers")
            continue
        array = to_our_layout(theirs, path[-1], len(shape))
        if array.shape != shape:
            mismatches.append(f"shape: {key} is {theirs.shape}, expected one that gives {shape}")
        else:
            variables[path] = jnp.asarray(array, jnp.promote_types(array.dtype, jnp.float32))
    return variables, mismatches


def weights_in(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a state dict that are weights or statistics."""
    return {key: value for key, value in state_dict.items() if not IGNORED.search(str(key))}


def require_match(mismatches: Sequence[str], given: str, expected: str) -> None:
    """Raises one UserError for all keys that do not fit, if there are any."""
    if mismatches:
        listed = "\n  ".join(["These do not fit:", *sorted(mismatches)])
        raise UserError(given, f"{len(mismatches)} keys that do not fit", f"names and shapes of {expected}", listed)


def missing_and_extra(given: Iterable[str], expected: Iterable[str]) -> list[str]:
    """One line for each key that is in only one of the two."""
    given, expected = dict.fromkeys(given), dict.fromkeys(expected)
    missing = [f"missing: {key}" for key in expected if key not in given]
    return missing + [f"not of this network: {key}" for key in given if key not in expected]


def real_array(value: Any) -> np.ndarray | None:
    """The value as an array of real numbers; None if it is something else."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):  # ragged lists, and whatever other libraries raise
        return None
    real = (jnp.floating, jnp.integer, jnp.bool_)
    return array if any(jnp.issubdtype(array.dtype, kind) for kind in real) else None


def to_our_layout(array: np.ndarray, leaf: str, ndim: int) -> np.ndarray:
    """Brings torch's array into our layout as far as its number of axes allows.

    [out, in, h, w] -> [h, w, in, out]; [out, in] or [out, in, 1, 1] -> [in, out]; [c, 1, 1] -> [c].

    Args:
      leaf: the last part of our path.
      ndim: axes of our array.
    """
    if array.ndim > ndim and set(array.shape[ndim:]) == {1} and (leaf != "kernel" or ndim == 2):
        array = array.reshape(array.shape[:ndim])
    if leaf != "kernel" or array.ndim != ndim:
        return array
    return array.transpose(2, 3, 1, 0) if ndim == 4 else array.T


def to_torch_layout(array: np.ndarray, name: str, leaf: str, naming: Naming) -> np.ndarray:
    """The inverse of `to_our_layout`, contiguous in memory as files need it.

    Args:
      name: their name for the array.
      leaf: the last part of our path.
    """
    if leaf == "kernel":
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        if array.ndim == 2 and re.search(naming.convolutions, name):
            array = array[:, :, None, None]
    if re.search(naming.columns, name):
        array = array[:, None, None]
    return np.ascontiguousarray(array)
