"""Activations whose gradients keep a single array.

That of the ReLU keeps its output, which is in memory anyway as the input of the next layer; JAX's own computes
its input again. That of the GELU keeps its input; JAX's own keeps two arrays more.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from skipnet_jax.models.ops.memory import anew, apart, in_memory, wide


@jax.custom_vjp
def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """max(x, 0); its gradient at 0 is 0."""
    return jnp.maximum(x, 0)


def _relu_forward(x: Array) -> tuple[Array, Array]:
    out = in_memory(relu(x))
    (kept,) = apart(out)  # else XLA would take x for it, which is above 0 where its ReLU is
    return out, kept


def _relu_backward(out: Array, dout: Array) -> tuple[Array]:
    return (jnp.where(out > 0, dout, 0),)


relu.defvjp(_relu_forward, _relu_backward)


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU, not the one by tanh: x times the normal distribution's cdf at x.

    Source: Hendrycks & Gimpel, Gaussian Error Linear Units, 2016.
    """
    return (wide(x) * _normal_cdf(wide(x))).astype(x.dtype)


def _gelu_forward(x: Array) -> tuple[Array, Array]:
    return gelu(x), x


def _gelu_backward(x: Array, dout: Array) -> tuple[Array]:
    at = anew(wide(x))
    density = jnp.exp(-jnp.square(at) / 2) / math.sqrt(2 * math.pi)
    return ((wide(dout) * (_normal_cdf(at) + at * density)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def _normal_cdf(x: Array) -> Array:
    return lax.erfc(-x * math.sqrt(0.5)) / 2
