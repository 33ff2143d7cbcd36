"""Batch norm by the statistics of the batch, and layer norm, with gradients that keep only the input."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from skipnet_jax.models.ops.memory import apart, wide


@functools.partial(jax.jit, static_argnums=(3, 4))  # traced once for all layers of a shape
def normalize(
    x: Float[Array, "g *b c"], scale: Float[Array, "c"], bias: Float[Array, "c"], epsilon: float, relu: bool = False
) -> tuple[Float[Array, "g *b c"], Float[Array, "g c"], Float[Array, "g c"]]:
    """Batch norm of each group by its own statistics, followed by a ReLU if asked for.

    Keeps x and the statistics for the gradient, and nothing that is as large as x beside it.

    Returns:
      The normalised x, or the ReLU of that; mean and variance of each group, which take no gradient.
    """
    return _normalize(x, scale, bias, epsilon, relu)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize(x: Array, scale: Array, bias: Array, epsilon: float, relu: bool) -> tuple[Array, Array, Array]:
    return _normalize_forward(x, scale, bias, epsilon, relu)[0]


def _normalize_forward(
    x: Array, scale: Array, bias: Array, epsilon: float, relu: bool
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array, Array, Array]]:
    axes = tuple(range(1, x.ndim - 1))
    # Both sums in one pass over x. As seen from any pixel of the group, the squares are not drowned by the mean.
    origin = wide(x[:, *[slice(1)] * len(axes)])
    offset = (wide(x) - origin).mean(axes, keepdims=True)
    var = jnp.maximum(jnp.square(wide(x) - origin).mean(axes, keepdims=True) - jnp.square(offset), 0)
    mean = origin + offset
    inverse = lax.rsqrt(var + epsilon)
    bias = _per_channel(bias, x)
    y = (wide(x) - mean) * (_per_channel(scale, x) * inverse) + bias
    y = jnp.maximum(y, 0) if relu else y
    return (y.astype(x.dtype), mean.squeeze(axes), var.squeeze(axes)), (x, mean, inverse, scale, bias)


def _normalize_backward(
    epsilon: float,
    relu: bool,
    residuals: tuple[Array, Array, Array, Array, Array],
    gradients: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array]:
    """Source: Ioffe & Szegedy, Batch Normalization (ICML 2015), section 3, with its sums made before the products."""
    del epsilon
    x, mean, inverse, scale, bias = residuals
    axes = tuple(range(1, x.ndim - 1))
    factor = _per_channel(scale, x) * inverse

    def dy(mean: Array, factor: Array, bias: Array) -> Array:
        gradient = wide(gradients[0])
        return jnp.where((wide(x) - mean) * factor + bias > 0, gradient, 0) if relu else gradient

    # Each of the three that read dy makes its own: it reads x anyway.
    dbias = dy(mean, factor, bias).sum(axes, keepdims=True)
    # Not (dy * centred).sum(): XLA would keep all of `centred` from the forward pass for it, beside x.
    products = dy(*apart(mean, factor, bias)) * wide(x)
    dscale = (products.sum(axes, keepdims=True) - mean * dbias) * inverse
    count = x.size // (x.shape[0] * x.shape[-1])
    last = dy(*apart(mean, factor, bias, dbias)[:3])
    dx = factor * last - (wide(x) - mean) * (factor * inverse * dscale / count) - factor * dbias / count
    over_groups = tuple(range(x.ndim - 1))
    return dx.astype(x.dtype), dscale.sum(over_groups), dbias.sum(over_groups)


_normalize.defvjp(_normalize_forward, _normalize_backward)


def _per_channel(vector: Array, x: Array) -> Array:
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


@functools.partial(jax.jit, static_argnums=3)
def layer_normalize(
    x: Float[Array, "*b c"], scale: Float[Array, "c"], bias: Float[Array, "c"], epsilon: float
) -> Float[Array, "*b c"]:
    """Layer norm over the channels of each pixel.

    Keeps x, and two numbers for each pixel, for the gradient.

    Source: Ba et al., Layer Normalization, 2016.
    """
    return _layer_normalize(x, scale, bias, epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_normalize(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    return _layer_normalize_forward(x, scale, bias, epsilon)[0]


def _layer_normalize_forward(
    x: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    mean = wide(x).mean(-1, keepdims=True)
    inverse = lax.rsqrt(jnp.square(wide(x) - mean).mean(-1, keepdims=True) + epsilon)
    y = (wide(x) - mean) * inverse * _per_channel(scale, x) + _per_channel(bias, x)
    return y.astype(x.dtype), (x, mean, inverse, scale)


def _layer_normalize_backward(
    epsilon: float, residuals: tuple[Array, Array, Array, Array], dy: Array
) -> tuple[Array, Array, Array]:
    del epsilon
    x, mean, inverse, scale = residuals
    normalised = (wide(x) - mean) * inverse
    scaled = wide(dy) * _per_channel(scale, x)
    along = (scaled * normalised).mean(-1, keepdims=True)
    dx = inverse * (scaled - scaled.mean(-1, keepdims=True) - normalised * along)
    over_pixels = tuple(range(x.ndim - 1))
    mean, inverse = apart(mean, inverse)
    dscale = (wide(dy) * ((wide(x) - mean) * inverse)).sum(over_pixels)
    return dx.astype(x.dtype), dscale, wide(dy).sum(over_pixels)


_layer_normalize.defvjp(_layer_normalize_forward, _layer_normalize_backward)
