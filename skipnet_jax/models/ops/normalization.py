"""Batch norm by the statistics of the batch, with a gradient that keeps only its input."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from skipnet_jax.models.ops.memory import wide


@functools.partial(jax.jit, static_argnums=3)  # traced once for all layers of a shape
def normalize(
    x: Float[Array, "g *b c"], scale: Float[Array, "c"], bias: Float[Array, "c"], epsilon: float
) -> tuple[Float[Array, "g *b c"], Float[Array, "g c"], Float[Array, "g c"]]:
    """Batch norm of each group by its own statistics.

    Keeps x and the statistics for the gradient, and nothing that is as large as x beside it.

    Returns:
      The normalised x; mean and variance of each group, which take no gradient.
    """
    return _normalize(x, scale, bias, epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalize(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    return _normalize_forward(x, scale, bias, epsilon)[0]


def _normalize_forward(
    x: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array, Array]]:
    axes = tuple(range(1, x.ndim - 1))
    mean = wide(x).mean(axes, keepdims=True)
    centred = wide(x) - mean
    var = jnp.square(centred).mean(axes, keepdims=True)
    inverse = lax.rsqrt(var + epsilon)
    y = centred * (_per_channel(scale, x) * inverse) + _per_channel(bias, x)
    return (y.astype(x.dtype), mean.squeeze(axes), var.squeeze(axes)), (x, mean, inverse, scale)


def _normalize_backward(
    epsilon: float, residuals: tuple[Array, Array, Array, Array], gradients: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    """Source: Ioffe & Szegedy, Batch Normalization (ICML 2015), section 3, with its sums made before the products."""
    del epsilon
    x, mean, inverse, scale = residuals
    dy, axes = wide(gradients[0]), tuple(range(1, x.ndim - 1))
    centred = wide(x) - mean
    dbias = dy.sum(axes, keepdims=True)
    # Not (dy * centred).sum(): XLA would keep all of `centred` from the forward pass for it, beside x.
    dscale = ((dy * wide(x)).sum(axes, keepdims=True) - mean * dbias) * inverse
    count = x.size // (x.shape[0] * x.shape[-1])
    factor = _per_channel(scale, x) * inverse
    dx = factor * dy - centred * (factor * inverse * dscale / count) - factor * dbias / count
    over_groups = tuple(range(x.ndim - 1))
    return dx.astype(x.dtype), dscale.sum(over_groups), dbias.sum(over_groups)


_normalize.defvjp(_normalize_forward, _normalize_backward)


def _per_channel(vector: Array, x: Array) -> Array:
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)
