"""What TPUs need: sums that are made along with a map, and maps that are normalised where they are read.

XLA:TPU adds up a convolution's output in the same pass that computes it, if nothing about the sums has to wait for that
output. So the moments are taken about a vector that is known beforehand. All that follows from them is arithmetic on
[b, c]: a gate's branch and a projected state stay as the convolution made them, and the gated sum multiplies them by
the norm's factor times the gate's weight.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from skipnet_jax.models.ops import plain
from skipnet_jax.models.ops.plain import Affine, per_channel, wide

Arrays = tuple[Array, ...]

_LANES = 128  # channels that a pass of the matrix unit takes together


def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k i d"], stride: int, padding: int, groups: int
) -> Float[Array, "b h2 w2 d"]:
    """Joins narrow groups until they fill the matrix unit; leaves other convolutions to XLA.

    The kernel is zero between groups that are joined.
    """
    size, _, inputs, features = kernel.shape
    if groups == 1 or plain.is_depthwise(kernel, groups):
        return plain.convolve(x, kernel, stride, padding, groups)
    joined = next(n for n in range(1, groups + 1) if groups % n == 0 and (n * inputs >= _LANES or n == groups))
    each = features // groups
    parts = kernel.reshape(size, size, 1, inputs, groups // joined, joined, each)
    between = jnp.eye(joined, dtype=kernel.dtype).reshape(1, 1, joined, 1, 1, joined, 1)
    dense = (parts * between).reshape(size, size, joined * inputs, features)
    return plain.convolve(x, dense, stride, padding, groups // joined)


def batch_norm(
    x: Float[Array, "g *b c"],
    scale: Float[Array, "c"],
    bias: Float[Array, "c"],
    origin: Float[Array, "c"],
    epsilon: float,
    with_relu: bool,
) -> tuple[Float[Array, "g *b c"], Float[Array, "g c"], Float[Array, "g c"]]:
    """Takes both moments in one pass over x, about `origin`."""
    axes = tuple(range(1, x.ndim - 1))
    origin = per_channel(lax.stop_gradient(origin), x)
    shifted = wide(x) - origin
    first, second = shifted.mean(axes, keepdims=True), jnp.square(shifted).mean(axes, keepdims=True)
    mean, var = origin + first, jnp.maximum(second - jnp.square(first), 0)
    y = (wide(x) - mean) * (per_channel(scale, x) * lax.rsqrt(var + epsilon)) + per_channel(bias, x)
    y = plain.relu(y) if with_relu else y
    return y.astype(x.dtype), lax.stop_gradient(mean.squeeze(axes)), lax.stop_gradient(var.squeeze(axes))


def deferred_batch_norm(
    x: Float[Array, "g b h w c"],
    scale: Float[Array, "c"],
    bias: Float[Array, "c"],
    origin: Float[Array, "c"],
    epsilon: float,
) -> tuple[plain.AffineGroups, Float[Array, "g b c"], Float[Array, "g c"], Float[Array, "g c"]]:
    """Takes the moments of each sample, and leaves x as it is."""
    origin = lax.stop_gradient(origin)
    shifted = wide(x) - per_channel(origin, x)
    first, second = shifted.mean((2, 3)), jnp.square(shifted).mean((2, 3))  # [g, b, c]
    from_origin = first.mean(1)
    var = jnp.maximum(second.mean(1) - jnp.square(from_origin), 0)
    mean = per_channel(origin, var) + from_origin
    factor = per_channel(scale, var) * lax.rsqrt(var + epsilon)
    offset = per_channel(bias, var) - mean * factor
    pooled = (first - from_origin[:, None]) * factor[:, None] + per_channel(bias, first)
    return (x, factor, offset), pooled, lax.stop_gradient(mean), lax.stop_gradient(var)


def batch_norm_max_pool(
    x: Float[Array, "g b h w c"],
    scale: Float[Array, "c"],
    bias: Float[Array, "c"],
    origin: Float[Array, "c"],
    epsilon: float,
) -> tuple[Float[Array, "g b h2 w2 c"], Float[Array, "g c"], Float[Array, "g c"]]:
    """Pools first, and normalises a quarter of the pixels.

    A norm with a positive scale, and a ReLU, keep the order of pixels. A channel with a negative scale is mirrored.
    """
    sign = jnp.where(scale < 0, -1, 1).astype(x.dtype)
    mirrored = x * per_channel(sign, x)
    (_, factor, offset), _, mean, var = deferred_batch_norm(mirrored, scale * sign, bias, origin * sign, epsilon)
    pooled = plain.over_groups(plain.max_pool, mirrored)
    y = plain.relu(wide(pooled) * factor[:, None, None, None] + offset[:, None, None, None])
    return y.astype(x.dtype), mean * per_channel(sign, mean), var


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def gated_sum(
    logits: Float[Array, "b n1 c"], y: Affine, states: tuple[Affine, ...], weigh_branch: bool, with_relu: bool
) -> tuple[Float[Array, "b h w c"], Float[Array, "b c"]]:
    """Folds the norms into the gate's weights, so that every map is read once, as it lies in memory.

    Its gradient is rounded once, before the sums and products that read it: then it is written in the maps' own type.
    """
    maps, coefficients, offset = _fold(logits, y, states, weigh_branch)
    total = per_pixel(offset) + sum(wide(x) * per_pixel(each) for x, each in zip(maps, coefficients, strict=True))
    total = plain.relu(total) if with_relu else total
    return total.astype(maps[0].dtype), total.mean((1, 2))


def _fold(logits: Array, y: Affine, states: tuple[Affine, ...], weigh_branch: bool) -> tuple[Arrays, Arrays, Array]:
    """The maps, their coefficients [b, c], and the offset [b, c] of their sum."""
    weights = _weights(logits, weigh_branch)
    values, factors, offsets = zip(y, *states, strict=True)
    coefficients = tuple(w if factor is None else w * factor for w, factor in zip(weights, factors, strict=True))
    pairs = zip(weights, offsets, strict=True)
    return values, coefficients, sum((w * each for w, each in pairs if each is not None), jnp.zeros_like(weights[0]))


def _weights(logits: Array, weigh_branch: bool) -> Arrays:
    """The branch's weight and the states' weights, [b, c] each."""
    branch, weights = plain.gate_weights(logits)
    return branch if weigh_branch else jnp.ones_like(branch), *jnp.moveaxis(weights, 1, 0)


Residuals = tuple[Array, Affine, tuple[Affine, ...], Array]


def _gated_sum_forward(
    logits: Array, y: Affine, states: tuple[Affine, ...], weigh_branch: bool, with_relu: bool
) -> tuple[tuple[Array, Array], Residuals]:
    out, pooled = gated_sum(logits, y, states, weigh_branch, with_relu)
    return (out, pooled), (logits, y, states, out)


def _gated_sum_backward(
    weigh_branch: bool, with_relu: bool, residuals: Residuals, gradients: tuple[Array, Array]
) -> tuple[Array, Affine, tuple[Affine, ...]]:
    """Needs a sum over the pixels for each map. The ReLU's output is read anyway, and saves reading one of the states.

    With D = <out, dout> and the same sums for the maps, D = sum_k weight_k <map_k, dout>. A softmax needs just these
    products of weight and sum, so nothing is divided by a weight that may be near 0.
    """
    logits, y, states, out = residuals
    dout, dpooled = gradients
    d = wide(dout) + per_pixel(dpooled / (out.shape[1] * out.shape[2]))
    d = jnp.where(out > 0, d, 0) if with_relu else d
    d = d.astype(out.dtype)

    weights = _weights(logits, weigh_branch)
    total = wide(d).sum((1, 2))
    spared = next((k for k, (_, factor, _) in enumerate(states, start=1) if with_relu and factor is None), None)
    dmaps: list[Affine] = []
    weighted: list[Array] = []  # of each map: its weight times <map, d>
    for k, (weight, (value, factor, offset)) in enumerate(zip(weights, (y, *states), strict=True)):
        coefficient = weight if factor is None else weight * factor
        dvalue = (wide(d) * per_pixel(coefficient)).astype(value.dtype)
        along = None if k == spared else (wide(value) * wide(d)).sum((1, 2))
        if factor is None or offset is None or along is None:
            dmaps.append((dvalue, None, None))
            weighted.append(jnp.zeros_like(weight) if along is None else weight * along)
        else:
            dmaps.append((dvalue, weight * along, weight * total))
            weighted.append(weight * (factor * along + offset * total))
    if spared is not None:
        weighted[spared] = (wide(out) * wide(d)).sum((1, 2)) - functools.reduce(jnp.add, weighted)

    of_states = jnp.stack(weighted[1:], axis=1)
    dstates = of_states - jnp.stack(weights[1:], axis=1) * of_states.sum(1, keepdims=True)
    dbranch = (1 - weights[0]) * weighted[0]  # 0 if the branch is not weighed
    dlogits = jnp.concatenate([dbranch[:, None], dstates], axis=1).astype(logits.dtype)
    return dlogits, dmaps[0], tuple(dmaps[1:])


gated_sum.defvjp(_gated_sum_forward, _gated_sum_backward)


def per_pixel(vector: Float[Array, "b c"]) -> Float[Array, "b 1 1 c"]:
    """Gives a vector of each sample the rank of a map."""
    return vector[:, None, None]
