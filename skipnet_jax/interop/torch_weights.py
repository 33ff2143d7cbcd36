"""Weights under the names of the original (PyTorch): published weights come in, ours go out.

Our tree mirrors the original's modules, so paths become names component by component, and only a few components are
called differently there. A state dict is a dict of arrays, so none of this needs torch.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from skipnet_jax.errors import UserError
from skipnet_jax.models import abstract_variables, create_model, model_info

Path = tuple[str, ...]  # of an array in our variables, the collection first

# Ours -> torch's: what every torch module calls its arrays, in the original and elsewhere.
LEAVES = (
    (r"\.(kernel|scale)$", ".weight"),
    (r"\.mean$", ".running_mean"),
    (r"\.var$", ".running_var"),
)

# Ours -> the original's, applied in this order to a path joined with dots.
RENAMES = (
    (r"^blocks_(\d+)\.", r"blocks.\1."),
    (r"\.shortcut\.", ".downsample."),
    (r"\.junction\.reduce\.", ".junction.op.conv1."),
    (r"\.junction\.norm\.", ".junction.op.norm1."),
    (r"\.junction\.expand\.", ".junction.op.conv2."),
    (r"\.squeeze_excite\.reduce\.", ".semodule.op.conv1."),
    (r"\.squeeze_excite\.expand\.", ".semodule.op.conv2."),
    (r"\.operation\.layer_scale$", ".operation.gamma"),
    (r"\.operation\.attn_(qkv|proj)\.", r".operation.attn_attn.\1."),
    (r"\.operation\.attn_position_bias$", ".operation.attn_attn.relative_position_bias_table"),
    (r"^head_norm\.", "head.norm."),
    (r"^classifier_norm\.", "classifier.norm."),
    (r"^classifier\.(kernel|bias)$", r"classifier.conv.\1"),
    *LEAVES,
)

# The original's linear layers, [out, in]. Our other linear layers are 1x1 convolutions there, [out, in, 1, 1].
LINEAR = re.compile(r"\.(attn_attn\.(qkv|proj)|mlp_fc\d|downsample\.reduction)\.weight$")

# Buffers of the original that hold no weights.
IGNORED = re.compile(r"(num_batches_tracked|relative_position_index|attn_mask)$")

CLASSIFIER = "classifier.conv.weight"


def original_name(path: Sequence[str]) -> str:
    """The original's name of one of our parameters or statistics.

    Args:
      path: inside the collection, for example ("blocks_0", "junction", "reduce", "kernel").
    """
    return rename(path, RENAMES)


def rename(path: Sequence[str], renames: Sequence[tuple[str, str]]) -> str:
    """Joins a path with dots and applies (pattern, replacement) pairs in order."""
    name = ".".join(path)
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def from_state_dict(name: str, state_dict: Mapping[str, Any], *, num_classes: int) -> dict[str, Any]:
    """Turns weights of the original into our variables, strictly.

    Args:
      name: of the network.
      state_dict: the original's names -> arrays (anything that `numpy.asarray` takes); convolutions are
        [out, in / groups, h, w], linear layers [out, in].
      num_classes: the number of classes that they tell apart.

    Returns:
      {"params": ..., "batch_stats": ...} for `model.apply`, in float32; float64 arrays stay float64 if JAX has x64
      enabled. A network without statistics has no "batch_stats".

    Raises:
      UserError: keys are missing, left over or of another shape; the message lists them all.
    """
    shapes = variable_shapes(name, num_classes)
    variables, mismatches = translate(state_dict, {original_name(path[1:]): path for path in shapes}, shapes)
    require_match(mismatches, f"state dict for {name} with {num_classes} classes", model_info(name).published_name)
    return flax.traverse_util.unflatten_dict(variables)


def to_state_dict(name: str, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `from_state_dict`, bit for bit.

    Buffers without weights (`num_batches_tracked`, Swin's `relative_position_index`) are left out.

    Args:
      name: of the network.
      variables: {"params": ..., "batch_stats": ...}, with any number of classes.

    Raises:
      UserError: the variables belong to another network; the message lists every mismatch.
    """
    ours = {path: np.asarray(array) for path, array in flax.traverse_util.flatten_dict(variables).items()}
    bias = ours.get(("params", "classifier", "bias"))
    shapes = variable_shapes(name, model_info(name).num_classes if bias is None else len(bias))
    mismatches = _missing_and_extra(map("/".join, ours), map("/".join, shapes))
    mismatches += [
        f"shape: {'/'.join(path)} is {array.shape}, expected {shapes[path].shape}"
        for path, array in ours.items()
        if path in shapes and array.shape != shapes[path].shape
    ]
    require_match(mismatches, f"variables for {name}", f"{name} with its own gate_reduction")
    names = {path: original_name(path[1:]) for path in shapes}
    return {names[path]: _to_torch_layout(ours[path], names[path], path[-1]) for path in shapes}


def num_classes_of(state_dict: Mapping[str, Any], classifier: str = CLASSIFIER) -> int:
    """Reads the number of classes off the weight of the classifier.

    Raises:
      UserError: there is no such weight.
    """
    if classifier not in state_dict:
        some = ", ".join(map(str, list(state_dict)[:5]))
        raise UserError(
            "state dict",
            f"no {classifier!r} among {len(state_dict)} keys ({some}, ...)",
            "the weights of a whole network",
            "Weights of timm need scripts/convert_torch.py --timm." if classifier == CLASSIFIER else "",
        )
    array = _array(state_dict[classifier])
    if array is None or array.ndim < 2 or not array.size:
        raise UserError("state dict", f"a {classifier!r} that is no matrix", "the weight of a classifier")
    return len(array)


def variable_shapes(name: str, num_classes: int) -> dict[Path, jax.ShapeDtypeStruct]:
    """Shapes of all parameters and statistics of a network, without making any."""
    model = create_model(name, num_classes=num_classes)
    return flax.traverse_util.flatten_dict(abstract_variables(model, model_info(name).image_size))


def translate(
    state_dict: Mapping[str, Any], paths: Mapping[str, Path], shapes: Mapping[Path, jax.ShapeDtypeStruct]
) -> tuple[dict[Path, jax.Array], list[str]]:
    """Brings torch's arrays into our layout, by name.

    Args:
      state_dict: torch's names -> arrays.
      paths: torch's name -> our path, for every array that has to be there.
      shapes: of our arrays.

    Returns:
      Our arrays, and one line for each key that does not fit.
    """
    given = {key: value for key, value in state_dict.items() if not IGNORED.search(str(key))}
    mismatches = _missing_and_extra(given, paths)
    variables = {}
    for key in paths.keys() & given.keys():
        path, theirs = paths[key], _array(given[key])
        shape = shapes[path].shape
        if theirs is None:
            mismatches.append(f"type: {key} is no array of real numbers")
            continue
        array = _to_our_layout(theirs, path[-1], len(shape))
        if array.shape != shape:
            mismatches.append(f"shape: {key} is {theirs.shape}, expected one that gives {shape}")
        else:
            variables[path] = jnp.asarray(array, jnp.promote_types(array.dtype, jnp.float32))
    return variables, mismatches


def require_match(mismatches: Sequence[str], given: str, expected: str) -> None:
    """Raises one UserError for all keys that do not fit, if there are any."""
    if mismatches:
        listed = "\n  ".join(["These do not fit:", *sorted(mismatches)])
        raise UserError(given, f"{len(mismatches)} keys that do not fit", f"names and shapes of {expected}", listed)


def _missing_and_extra(given: Iterable[str], expected: Iterable[str]) -> list[str]:
    given, expected = dict.fromkeys(given), dict.fromkeys(expected)
    missing = [f"missing: {key}" for key in expected if key not in given]
    return missing + [f"not of this network: {key}" for key in given if key not in expected]


def _array(value: Any) -> np.ndarray | None:
    """The value as an array of real numbers; None if it is something else."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):  # ragged lists, and whatever other libraries raise
        return None
    real = (jnp.floating, jnp.integer, jnp.bool_)
    return array if any(jnp.issubdtype(array.dtype, kind) for kind in real) else None


def _to_our_layout(array: np.ndarray, leaf: str, ndim: int) -> np.ndarray:
    """[out, in, h, w] -> [h, w, in, out]; [out, in], as a 1x1 convolution too -> [in, out]."""
    if leaf != "kernel":
        return array
    if ndim == 2 and array.ndim == 4 and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]
    if array.ndim != ndim:
        return array
    return array.transpose(2, 3, 1, 0) if ndim == 4 else array.T


def _to_torch_layout(array: np.ndarray, name: str, leaf: str) -> np.ndarray:
    """The inverse of `_to_our_layout`, contiguous in memory as files need it."""
    if leaf == "kernel":
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        if array.ndim == 2 and not LINEAR.search(name):
            array = array[:, :, None, None]
    return np.ascontiguousarray(array)
