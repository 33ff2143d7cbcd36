"""Initial weights: drawn by NumPy on the host, without running the network."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval
from jax.typing import DTypeLike
from jaxtyping import Array, PRNGKeyArray

from skipnet_jax.models import ops


@dataclasses.dataclass(frozen=True)
class HostDraw:
    """An initialiser that draws with NumPy: standard normal, or uniform in +-bound.

    The numbers are the same on every platform, jitted or not. XLA need not compile a random number generator, which
    would take half a second for each of a network's many parameter shapes.

    Args:
      bound: None = normal.
    """

    bound: float | None

    def __call__(self, key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        draw = _Draw(self.bound, tuple(shape), np.dtype(dtype))  # JAX prepares one callback for equal draws
        result = jax.ShapeDtypeStruct(draw.shape, draw.dtype)
        return jax.pure_callback(draw, result, jax.random.key_data(key), vmap_method="sequential")


@dataclasses.dataclass(frozen=True)
class _Draw:
    bound: float | None
    shape: tuple[int, ...]
    dtype: np.dtype

    def __call__(self, words: np.ndarray | Array) -> np.ndarray:
        generator = np.random.Generator(np.random.Philox(np.asarray(words).tolist()))
        if self.bound is None:
            return generator.standard_normal(self.shape).astype(self.dtype)
        return generator.uniform(-self.bound, self.bound, self.shape).astype(self.dtype)


def uniform_by_fan_in(fan_in: int) -> HostDraw:
    """Uniform in +-1/sqrt(fan_in): torch's default for weights and biases, which gates use too.

    Args:
      fan_in: inputs per output, within a group.
    """
    return HostDraw(fan_in**-0.5)


def init_variables(model: nn.Module, key: PRNGKeyArray, image_size: int) -> dict[str, Any]:
    """Returns what `model.init` returns, bit for bit, in a fraction of the time.

    It traces the forward pass for shapes, drops it, and runs the initialisers one by one. `jax.jit(model.init)` would
    compile them all as one program, and `model.lazy_init` would compile parts of the network for nothing.

    Args:
      image_size: side of the square images in pixels.

    Returns:
      {"params": ..., "batch_stats": ...}, the latter only if the network has any.
    """
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.result_type(float))
    with ops.traced_for("cpu"):  # the shapes are the same on every platform
        traced, shapes = jax.make_jaxpr(functools.partial(model.init, train=False), return_shape=True)(key, images)
    needed, used = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    leaves = jax.core.eval_jaxpr(needed, traced.consts, *([key] if used[0] else []))
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def abstract_variables(model: nn.Module, image_size: int) -> dict[str, Any]:
    """Shapes and types of what `init_variables` returns; draws nothing."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    with ops.traced_for("cpu"):  # the shapes are the same on every platform
        return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
