"""Weights under the original's (PyTorch) names: how published weights come in, and ours go out.

Our tree mirrors the original's modules, so a name is translated component by component, and a few
components have another name there. Torch itself is not needed: a state dict is a dict of arrays.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from skipnet_jax.models import abstract_variables, create_model, model_info

Path = tuple[str, ...]  # of an array in our variables, the collection first

# Ours -> torch's: how every torch module calls its arrays, in the original and elsewhere.
LEAVES = (
    (r"\.(kernel|scale)$", ".weight"),
    (r"\.mean$", ".running_mean"),
    (r"\.var$", ".running_var"),
)

# Ours -> the original's, tried in this order on a path joined with dots.
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

# The original's linear layers [out, in]; what else is a linear layer here is a 1x1 convolution [out, in, 1, 1] there.
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
    """Joins a path with dots and applies (pattern, replacement) pairs in their order."""
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
      num_classes: width of the classifier.

    Returns:
      {"params": ..., "batch_stats": ...} for `model.apply`, in float32, or in float64 where the array is
      float64 and JAX has x64 enabled. No "batch_stats" where the network has none.

    Raises:
      ValueError: keys are missing, left over or of another shape; all of them are listed.
    """
    shapes = variable_shapes(name, num_classes)
    variables, problems = translate(state_dict, {original_name(path[1:]): path for path in shapes}, shapes)
    require_none(problems, f"state dict for {name} with {num_classes} classes", model_info(name).published_name)
    return flax.traverse_util.unflatten_dict(variables)


def to_state_dict(name: str, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `from_state_dict`, bit for bit.

    Buffers that hold no weights (`num_batches_tracked`, Swin's `relative_position_index`) are left out; torch
    fills in the former by itself when it loads.

    Args:
      name: of the network.
      variables: {"params": ..., "batch_stats": ...}, of any number of classes.

    Returns:
      The original's names -> arrays in the original's layout.

    Raises:
      ValueError: the variables are not this network's; all misfits are listed.
    """
    ours = {path: np.asarray(array) for path, array in flax.traverse_util.flatten_dict(variables).items()}
    bias = ours.get(("params", "classifier", "bias"))
    shapes = variable_shapes(name, model_info(name).num_classes if bias is None else len(bias))
    problems = [f"missing: {'/'.join(path)}" for path in shapes if path not in ours]
    problems += [f"not of this network: {'/'.join(path)}" for path in ours if path not in shapes]
    problems += [
        f"shape: {'/'.join(path)} is {array.shape}, expected {shapes[path].shape}"
        for path, array in ours.items()
        if path in shapes and array.shape != shapes[path].shape
    ]
    require_none(problems, f"variables for {name}", f"{name} with its own gate_reduction")
    names = {path: original_name(path[1:]) for path in shapes}
    return {names[path]: _to_original(ours[path], names[path], path[-1]) for path in shapes}


def num_classes_of(state_dict: Mapping[str, Any], classifier: str = CLASSIFIER) -> int:
    """The width of a state dict's classifier.

    Args:
      state_dict: names -> arrays.
      classifier: name of the classifier's weight.

    Raises:
      ValueError: there is none.
    """
    if classifier not in state_dict:
        some = ", ".join(map(str, list(state_dict)[:5]))
        raise ValueError(
            f"state dict: got no {classifier!r} among {len(state_dict)} keys ({some}, ...), expected the weights of a "
            f"whole network. Are they of another code base? scripts/convert_torch.py takes --timm for timm's."
        )
    array = _array(state_dict[classifier])
    if array is None or array.ndim < 2 or not array.size:
        raise ValueError(f"state dict: got a {classifier!r} that is no matrix, expected the weight of a classifier.")
    return len(array)


def variable_shapes(name: str, num_classes: int) -> dict[Path, jax.ShapeDtypeStruct]:
    """Shapes of all parameters and statistics of a network, without making any."""
    model = create_model(name, num_classes=num_classes)
    return flax.traverse_util.flatten_dict(abstract_variables(model, model_info(name).image_size))


def translate(
    state_dict: Mapping[str, Any], paths: Mapping[str, Path], shapes: Mapping[Path, jax.ShapeDtypeStruct]
) -> tuple[dict[Path, jax.Array], list[str]]:
    """Brings torch arrays into our layout, by name.

    Args:
      state_dict: torch names -> arrays.
      paths: torch name -> our path, of every array that has to be there.
      shapes: of our arrays.

    Returns:
      Our arrays, and one line for each key that does not fit.
    """
    given = {key: value for key, value in state_dict.items() if not IGNORED.search(str(key))}
    problems = [f"missing: {key}" for key in paths if key not in given]
    problems += [f"not of this network: {key}" for key in given if key not in paths]
    variables = {}
    for key in paths.keys() & given.keys():
        path, theirs = paths[key], _array(given[key])
        shape = shapes[path].shape
        if theirs is None:
            problems.append(f"type: {key} is no array of real numbers")
            continue
        array = _to_ours(theirs, path[-1], len(shape))
        if array.shape != shape:
            problems.append(f"shape: {key} is {theirs.shape}, expected one that gives {shape}")
        else:
            variables[path] = jnp.asarray(array, jnp.promote_types(array.dtype, jnp.float32))
    return variables, problems


def require_none(problems: Sequence[str], what: str, expected: str) -> None:
    """Raises one error for all keys that do not fit.

    Raises:
      ValueError: there are any.
    """
    if problems:
        listed = "\n  ".join(sorted(problems))
        raise ValueError(
            f"{what}: got {len(problems)} keys that do not fit, expected names and shapes of {expected}.\n  {listed}"
        )


def _array(value: Any) -> np.ndarray | None:
    """None where it is no array of real numbers."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):  # lists of lists of other lengths, and whatever others raise
        return None
    real = (jnp.floating, jnp.integer, jnp.bool_)
    return array if any(jnp.issubdtype(array.dtype, kind) for kind in real) else None


def _to_ours(array: np.ndarray, leaf: str, ndim: int) -> np.ndarray:
    """[out, in, h, w] -> [h, w, in, out]; [out, in], also as a 1x1 convolution -> [in, out]."""
    if leaf != "kernel":
        return array
    if ndim == 2 and array.ndim == 4 and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]
    if array.ndim != ndim:
        return array
    return array.transpose(2, 3, 1, 0) if ndim == 4 else array.T


def _to_original(array: np.ndarray, name: str, leaf: str) -> np.ndarray:
    """The inverse of `_to_ours`, contiguous as files want it."""
    if leaf == "kernel":
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        if array.ndim == 2 and not LINEAR.search(name):
            array = array[:, :, None, None]
    return np.ascontiguousarray(array)
