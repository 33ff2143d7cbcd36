"""Hand-written gradients that keep less in memory than JAX's own; several platforms share them.

XLA keeps more than it must for the backward pass, in two ways. It saves intermediate arrays that the backward pass
could recompute from the arrays it reads anyway. And it writes an array with several readers to memory, even if each
reader could recompute it. An optimisation barrier stops both: XLA neither fuses across it nor shares values over it.

On CPUs a few results need one more barrier, which puts them in memory (`on_cpu`, and see `cpu.py`).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from skipnet_jax.models.ops import plain
from skipnet_jax.models.ops.plain import Affine, per_channel, wide

Arrays = tuple[Array, ...]

_barrier = lax.optimization_barrier


def _in_memory(on_cpu: bool, *arrays: Array) -> Arrays:
    return _barrier(arrays) if on_cpu else arrays


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def relu(x: Float[Array, "..."], on_cpu: bool) -> Float[Array, "..."]:
    """Keeps its output, which is in memory anyway as the next layer's input.

    JAX's own gradient reads the input, so XLA keeps or recomputes the input.
    """
    return plain.relu(x)


def _relu_forward(x: Array, on_cpu: bool) -> tuple[Array, Array]:
    (out,) = _in_memory(on_cpu, plain.relu(x))
    return out, _barrier(out)  # without this barrier XLA compares the input with 0, and keeps the input


def _relu_backward(on_cpu: bool, out: Array, dout: Array) -> tuple[Array]:
    return (jnp.where(out > 0, dout, 0),)


relu.defvjp(_relu_forward, _relu_backward)


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Keeps its input. JAX's own gradient keeps two more arrays."""
    return plain.gelu(x)


def _gelu_forward(x: Array) -> tuple[Array, Array]:
    return plain.gelu(x), x


def _gelu_backward(x: Array, dout: Array) -> tuple[Array]:
    # XLA does not recognise this product as x, so it does not keep the cdf of the forward pass for reuse here.
    recomputed = wide(x) * _barrier(jnp.ones((), wide(x).dtype))
    density = jnp.exp(-jnp.square(recomputed) / 2) / math.sqrt(2 * math.pi)
    return ((wide(dout) * (plain.normal_cdf(recomputed) + recomputed * density)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def deferred_batch_norm(
    x: Float[Array, "g b h w c"],
    scale: Float[Array, "c"],
    bias: Float[Array, "c"],
    origin: Float[Array, "c"],
    epsilon: float,
) -> tuple[plain.AffineGroups, Float[Array, "g b c"], Float[Array, "g c"], Float[Array, "g c"]]:
    """Defers nothing."""
    return plain.complete(batch_norm(x, scale, bias, origin, epsilon, False))


def batch_norm(
    x: Float[Array, "g *b c"],
    scale: Float[Array, "c"],
    bias: Float[Array, "c"],
    origin: Float[Array, "c"],
    epsilon: float,
    with_relu: bool,
) -> tuple[Float[Array, "g *b c"], Float[Array, "g c"], Float[Array, "g c"]]:
    """Keeps x and the statistics, and reads x once for both statistics."""
    del origin  # one of the group's own pixels serves instead
    return _batch_norm(x, scale, bias, epsilon, with_relu)


def batch_norm_max_pool(
    x: Float[Array, "g b h w c"],
    scale: Float[Array, "c"],
    bias: Float[Array, "c"],
    origin: Float[Array, "c"],
    epsilon: float,
    on_cpu: bool,
) -> tuple[Float[Array, "g b h2 w2 c"], Float[Array, "g c"], Float[Array, "g c"]]:
    """Batch norm with its ReLU, then max pool."""
    y, mean, var = batch_norm(x, scale, bias, origin, epsilon, True)
    return plain.over_groups(lambda y: max_pool(y, on_cpu), y), mean, var


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _batch_norm(x: Array, scale: Array, bias: Array, epsilon: float, with_relu: bool) -> tuple[Array, Array, Array]:
    return _batch_norm_forward(x, scale, bias, epsilon, with_relu)[0]


def _batch_norm_forward(
    x: Array, scale: Array, bias: Array, epsilon: float, with_relu: bool
) -> tuple[tuple[Array, Array, Array], Arrays]:
    axes = tuple(range(1, x.ndim - 1))
    # Both sums in one pass over x, relative to one of the group's pixels: a large mean does not drown the squares.
    origin = wide(x[:, *[slice(1)] * len(axes)])
    offset = (wide(x) - origin).mean(axes, keepdims=True)
    var = jnp.maximum(jnp.square(wide(x) - origin).mean(axes, keepdims=True) - jnp.square(offset), 0)
    mean = origin + offset
    inverse = lax.rsqrt(var + epsilon)
    bias = per_channel(bias, x)
    y = (wide(x) - mean) * (per_channel(scale, x) * inverse) + bias
    y = jnp.maximum(y, 0) if with_relu else y
    return (y.astype(x.dtype), mean.squeeze(axes), var.squeeze(axes)), (x, mean, inverse, scale, bias)


def _batch_norm_backward(epsilon: float, with_relu: bool, residuals: Arrays, gradients: Arrays) -> Arrays:
    """Source: Ioffe & Szegedy, Batch Normalization (ICML 2015), section 3, with the sums taken before the products."""
    x, mean, inverse, scale, bias = residuals
    axes = tuple(range(1, x.ndim - 1))
    factor = per_channel(scale, x) * inverse

    def dy(mean: Array, factor: Array, bias: Array) -> Array:
        gradient = wide(gradients[0])
        return jnp.where((wide(x) - mean) * factor + bias > 0, gradient, 0) if with_relu else gradient

    # Recompute dy for each reader; they read x anyway.
    dbias = dy(mean, factor, bias).sum(axes, keepdims=True)
    # Not (dy * centred).sum(): XLA would keep all of `centred` from the forward pass for it, beside x.
    products = dy(*_barrier((mean, factor, bias))) * wide(x)
    dscale = (products.sum(axes, keepdims=True) - mean * dbias) * inverse
    count = x.size // (x.shape[0] * x.shape[-1])
    last = dy(*_barrier((mean, factor, bias, dbias))[:3])
    dx = factor * last - (wide(x) - mean) * (factor * inverse * dscale / count) - factor * dbias / count
    over_groups = tuple(range(x.ndim - 1))
    return dx.astype(x.dtype), dscale.sum(over_groups), dbias.sum(over_groups)


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*b c"], scale: Float[Array, "c"], bias: Float[Array, "c"], epsilon: float
) -> Float[Array, "*b c"]:
    """Keeps x, and two numbers for each pixel."""
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Arrays]:
    mean = wide(x).mean(-1, keepdims=True)
    inverse = lax.rsqrt(jnp.square(wide(x) - mean).mean(-1, keepdims=True) + epsilon)
    y = (wide(x) - mean) * inverse * per_channel(scale, x) + per_channel(bias, x)
    return y.astype(x.dtype), (x, mean, inverse, scale)


def _layer_norm_backward(epsilon: float, residuals: Arrays, dy: Array) -> Arrays:
    x, mean, inverse, scale = residuals
    normalised = (wide(x) - mean) * inverse
    scaled = wide(dy) * per_channel(scale, x)
    along = (scaled * normalised).mean(-1, keepdims=True)
    dx = inverse * (scaled - scaled.mean(-1, keepdims=True) - normalised * along)
    over_pixels = tuple(range(x.ndim - 1))
    mean, inverse = _barrier((mean, inverse))
    dscale = (wide(dy) * ((wide(x) - mean) * inverse)).sum(over_pixels)
    return dx.astype(x.dtype), dscale, wide(dy).sum(over_pixels)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def gated_sum(
    logits: Float[Array, "b n1 c"],
    y: Affine,
    states: tuple[Float[Array, "b h w c"], ...],
    weigh_branch: bool,
    with_relu: bool,
    on_cpu: bool,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b c"]]:
    """Applies a deferred norm first. Where none was deferred, this costs nothing: XLA drops a factor of 1."""
    out = _gated_sum(logits, plain.multiply(y), states, weigh_branch, with_relu, on_cpu)
    return out, wide(out).mean((1, 2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _gated_sum(
    logits: Array, y: Float[Array, "b h w c"], states: Arrays, weigh_branch: bool, with_relu: bool, on_cpu: bool
) -> Float[Array, "b h w c"]:
    """Keeps the sum and the states, which the network keeps anyway, but not y.

    Let D = <out, dout>, summed over the pixels. The gradient of the k-th weight is <s_k, dout>. The gradient of the
    branch's factor g follows without y, since D = g <y, dout> + sum_k p_k <s_k, dout>. This also holds under the ReLU:
    where it is 0, so is dout.
    """
    return plain.gated_sum(logits, (y, None, None), states, weigh_branch, with_relu)[0]


def _gated_sum_forward(
    logits: Array, y: Array, states: Arrays, weigh_branch: bool, with_relu: bool, on_cpu: bool
) -> tuple[Array, tuple[Array, Arrays, Array]]:
    (out,) = _in_memory(on_cpu, _gated_sum(logits, y, states, weigh_branch, with_relu, on_cpu))
    return out, (logits, states, _barrier(out))  # as in `_relu_forward`


def _gated_sum_backward(
    weigh_branch: bool, with_relu: bool, on_cpu: bool, residuals: tuple[Array, Arrays, Array], dout: Array
) -> tuple[Array, Array, Arrays]:
    logits, states, out = residuals
    out, dout = _in_memory(on_cpu, out, jnp.where(out > 0, dout, 0) if with_relu else dout)

    def over_pixels(x: Array) -> Array:
        return (wide(x) * wide(dout)).sum((1, 2))

    # A GPU computes these sums together with dout, in one pass; apart, each would read all of dout.
    dout, of_out, *of_states = _barrier((dout, over_pixels(out), *map(over_pixels, states)))
    branch, weights = plain.gate_weights(logits)
    rounded_branch, rounded = branch.astype(out.dtype), weights.astype(out.dtype)

    dweights = jnp.stack(of_states, axis=1)  # [b, n, c]
    dstates = weights * (dweights - (weights * dweights).sum(1, keepdims=True))
    if weigh_branch:
        dbranch = (1 - branch) * (of_out - (wide(rounded) * dweights).sum(1))
        dy = dout * rounded_branch[:, None, None]
    else:
        dbranch, dy = jnp.zeros_like(branch), dout
    dlogits = jnp.concatenate([dbranch[:, None], dstates], axis=1).astype(logits.dtype)
    rounded = rounded[:, :, None]
    return dlogits, dy, tuple(dout * rounded[:, k : k + 1] for k in range(len(states)))


_gated_sum.defvjp(_gated_sum_forward, _gated_sum_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x: Float[Array, "b h w c"], on_cpu: bool) -> Float[Array, "b h2 w2 c"]:
    """Finds each maximum again in the backward pass.

    XLA's own gradient carries the place of each maximum through the pool, in four arrays of indices as large as x, and
    then scatters.
    """
    return plain.max_pool(x)


def _max_pool_forward(x: Array, on_cpu: bool) -> tuple[Array, Array]:
    return plain.max_pool(x), x


def _max_pool_backward(on_cpu: bool, x: Array, dy: Array) -> tuple[Array]:
    """The first of a window's largest pixels gets the window's gradient, as in XLA."""
    height, width = x.shape[1:3]
    rows, columns = dy.shape[1:3]
    padding = ((0, 0), (1, 2 * rows - height), (1, 2 * columns - width), (0, 0))
    images = [image for _, image in shifted_images(jnp.pad(x, padding, constant_values=-jnp.inf), 3, 2)]
    largest, place = images[0], jnp.zeros(dy.shape, jnp.int8)
    for i, image in enumerate(images[1:], start=1):
        place = jnp.where(image > largest, jnp.int8(i), place)
        largest = jnp.maximum(image, largest)
    place, dy = _in_memory(on_cpu, place, dy)

    def arriving_at(row: int, column: int) -> Array:
        """The gradients of windows with their maximum at this place; windows beyond the edge have none."""
        dx = jnp.where(place == 3 * row + column, dy, 0)
        return jnp.pad(dx, ((0, 0), (row // 2, 1 - row // 2), (column // 2, 1 - column // 2), (0, 0)))

    # An even row of the padded image is the first row of one window and the last row of the window above it. An odd row
    # is the middle of one window. The same holds for columns. So there are four kinds of pixels, interleaved last.
    even_even = arriving_at(0, 0) + arriving_at(0, 2) + arriving_at(2, 0) + arriving_at(2, 2)
    even_odd, odd_even = arriving_at(0, 1) + arriving_at(2, 1), arriving_at(1, 0) + arriving_at(1, 2)
    even, odd = jnp.stack([even_even, even_odd], axis=3), jnp.stack([odd_even, arriving_at(1, 1)], axis=3)
    dx = jnp.stack([even, odd], axis=2).reshape(x.shape[0], 2 * rows + 2, 2 * columns + 2, x.shape[3])
    return (dx[:, 1 : 1 + height, 1 : 1 + width],)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def shifted_images(
    x: Float[Array, "b h w c"], size: int, stride: int
) -> list[tuple[tuple[int, int], Float[Array, "b h2 w2 c"]]]:
    """The image that each place of a size x size kernel sees: ((row, column), image), row by row."""
    height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
    return [((i, j), x[:, i : i + height : stride, j : j + width : stride]) for i in range(size) for j in range(size)]
