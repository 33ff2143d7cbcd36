"""Initial weights, drawn by NumPy on the host."""

import dataclasses

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, PRNGKeyArray


@dataclasses.dataclass(frozen=True)
class HostDraw:
    """An initialiser that NumPy draws: of the standard normal distribution, or uniform in +-bound.

    So the numbers are the same on every platform, jitted or not, and no random number generator is compiled, which
    takes half a second for each of the many shapes of a network's parameters.

    Args:
      bound: None = normal.
    """

    bound: float | None

    def __call__(self, key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        # Equal draws are equal callbacks: JAX prepares each only once.
        draw = _Draw(self.bound, tuple(shape), np.dtype(dtype))
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
    """Uniform in +-1/sqrt(fan_in): torch's default for the weights and biases of every layer, gates included.

    Args:
      fan_in: inputs of each output, per group.
    """
    return HostDraw(fan_in**-0.5)
