"""Weights under the original's (PyTorch) names: how published weights come in.

Our tree mirrors the original's modules, so a name is translated component by component, and a few
components have another name there. Torch itself is not needed: a state dict is a dict of arrays.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from skipnet_jax.models import create_model, model_info

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
    (r"\.(kernel|scale)$", ".weight"),
    (r"\.mean$", ".running_mean"),
    (r"\.var$", ".running_var"),
)

# Buffers of the original that hold no weights.
IGNORED = re.compile(r"(num_batches_tracked|relative_position_index|attn_mask)$")


def original_name(path: Sequence[str]) -> str:
    """The original's name of one of our parameters or statistics.

    Args:
      path: inside the collection, for example ("blocks_0", "junction", "reduce", "kernel").
    """
    name = ".".join(path)
    for pattern, replacement in RENAMES:
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
    given = {key: np.asarray(value) for key, value in state_dict.items() if not IGNORED.search(key)}
    wanted = flax.traverse_util.flatten_dict(_variable_shapes(name, num_classes))
    by_name = {original_name(path[1:]): path for path in wanted}
    problems = [f"missing: {key}" for key in by_name if key not in given]
    problems += [f"not of this network: {key}" for key in given if key not in by_name]
    variables = {}
    for key, path in by_name.items():
        if key not in given:
            continue
        array = _to_ours(given[key], path[-1], wanted[path].ndim)
        if array.shape != wanted[path].shape:
            problems.append(f"shape: {key} is {given[key].shape}, expected one that gives {wanted[path].shape}")
        variables[path] = jnp.asarray(array)
    if problems:
        raise ValueError(
            f"state dict for {name} with {num_classes} classes: {len(problems)} keys do not fit; expected the names "
            f"and shapes of {model_info(name).published_name}.\n  " + "\n  ".join(problems)
        )
    return flax.traverse_util.unflatten_dict(variables)


def _variable_shapes(name: str, num_classes: int) -> dict[str, Any]:
    size = model_info(name).image_size
    init = functools.partial(create_model(name, num_classes=num_classes).init, train=False)
    return jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))


def _to_ours(array: np.ndarray, leaf: str, ndim: int) -> np.ndarray:
    """[out, in, h, w] -> [h, w, in, out]; [out, in], also as a 1x1 convolution -> [in, out]."""
    if leaf != "kernel":
        return array
    if ndim == 2 and array.ndim == 4 and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]
    if array.ndim != ndim:
        return array
    return array.transpose(2, 3, 1, 0) if ndim == 4 else array.T
