"""Operations for TPUs: they sum a map while it is computed, and normalise a map where it is read.

XLA:TPU adds up a convolution's output in the same pass that computes it, if the sums need not wait for that output. So
the moments are taken about a vector that is known beforehand. Everything that follows from the moments is arithmetic on
[b, c]: a gate's branch stays as the convolution wrote it, and the gated sum multiplies it by the norm's factor times
the gate's weight.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from skipnet_jax.models.ops import cpu, plain
from skipnet_jax.models.ops.plain import Affine, per_channel, wide

Arrays = tuple[Array, ...]

_LANES = 128  # channels that the matrix unit takes in one pass


def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k i d"], stride: int, padding: int, groups: int
) -> Float[Array, "b h2 w2 d"]:
    """Joins narrow groups until they fill the matrix unit; leaves other convolutions to XLA.

    The kernel is zero between the joined groups.
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


def convolve_on_v6e(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k i d"], stride: int, padding: int, groups: int
) -> Float[Array, "b h2 w2 d"]:
    """Puts a barrier on the gradient of x: fused with the sums of the norm that made x, it crashes the compiler.

    When it compiles for v6e, libtpu 0.0.42.1 overflows its stack in `MigrateInstructionUsers`, which packs several
    products into one pass of the matrix unit. Of the ResNets' widths, only 128 causes this.
    """
    if 1 < stride < kernel.shape[0] and kernel.shape[2:] == (_LANES, _LANES):
        x = cpu.materialize_gradient(x)
    return convolve(x, kernel, stride, padding, groups)


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
    """Pools first, and then normalises only a quarter of the pixels.

    A ReLU and a norm with a positive scale keep the order of pixels. A channel with a negative scale is negated first.
    """
    sign = jnp.where(scale < 0, -1, 1).astype(x.dtype)
    mirrored = x * per_channel(sign, x)
    (_, factor, offset), _, mean, var = deferred_batch_norm(mirrored, scale * sign, bias, origin * sign, epsilon)
    pooled = plain.over_groups(plain.max_pool, mirrored)
    y = plain.relu(wide(pooled) * factor[:, None, None, None] + offset[:, None, None, None])
    return y.astype(x.dtype), mean * per_channel(sign, mean), var


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def gated_sum(
    logits: Float[Array, "b n1 c"],
    y: Affine,
    states: tuple[Float[Array, "b h w c"], ...],
    weigh_branch: bool,
    with_relu: bool,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b c"]]:
    """Folds the norm into the branch's weight, so that the normalised branch is never written.

    The sum's gradient is rounded once, before the sums and products that read it, so it is written in the maps' type.
    """
    value, factor, offset = y
    branch, *weights = _weights(logits, weigh_branch)
    total = wide(value) * _per_pixel(branch if factor is None else branch * factor)
    total = total if offset is None else total + _per_pixel(branch * offset)
    for weight, state in zip(weights, states, strict=True):
        total = total + wide(state) * _per_pixel(weight)
    total = plain.relu(total) if with_relu else total
    return total.astype(value.dtype), total.mean((1, 2))


Residuals = tuple[Array, Affine, Arrays, Array]


def _gated_sum_forward(
    logits: Array, y: Affine, states: Arrays, weigh_branch: bool, with_relu: bool
) -> tuple[tuple[Array, Array], Residuals]:
    out, pooled = gated_sum(logits, y, states, weigh_branch, with_relu)
    return (out, pooled), (logits, y, states, out)


def _gated_sum_backward(
    weigh_branch: bool, with_relu: bool, residuals: Residuals, gradients: tuple[Array, Array]
) -> tuple[Array, Affine, Arrays]:
    """Let d be the gradient of the gated sum, and <m, d> the sum over the pixels of a map m times d.

    The softmax's gradient needs p_k <s_k, d> of each state. And <out, d> = g <y, d> + sum_k p_k <s_k, d>, also under
    the ReLU: where it is 0, so is d. The ReLU's gradient reads `out` anyway, so <out, d> spares reading one state.
    """
    logits, (value, factor, offset), states, out = residuals
    dout, dpooled = gradients
    d = wide(dout) + _per_pixel(dpooled / (out.shape[1] * out.shape[2]))
    d = wide((jnp.where(out > 0, d, 0) if with_relu else d).astype(out.dtype))

    branch, *weights = _weights(logits, weigh_branch)
    dbranch = of_value = (wide(value) * d).sum((1, 2))
    dfactor = doffset = None
    if factor is not None and offset is not None:
        of_ones = d.sum((1, 2))
        dbranch, dfactor, doffset = factor * of_value + offset * of_ones, branch * of_value, branch * of_ones
    of_states = [p * (wide(state) * d).sum((1, 2)) for p, state in zip(weights, states, strict=True)][with_relu:]
    if with_relu:
        first = (wide(out) * d).sum((1, 2)) - functools.reduce(jnp.add, of_states, branch * dbranch)
        of_states = [first, *of_states]

    p, of_p = jnp.stack(weights, axis=1), jnp.stack(of_states, axis=1)
    dlogits = [((1 - branch) * branch * dbranch)[:, None], of_p - p * of_p.sum(1, keepdims=True)]
    dvalue = d * _per_pixel(branch if factor is None else branch * factor)
    return (
        jnp.concatenate(dlogits, axis=1).astype(logits.dtype),  # the branch's is 0 if it is not weighed
        (dvalue.astype(value.dtype), dfactor, doffset),
        tuple((d * _per_pixel(weight)).astype(state.dtype) for weight, state in zip(weights, states, strict=True)),
    )


gated_sum.defvjp(_gated_sum_forward, _gated_sum_backward)


def _weights(logits: Array, weigh_branch: bool) -> Arrays:
    """The branch's weight and the states' weights, [b, c] each."""
    branch, weights = plain.gate_weights(logits)
    return branch if weigh_branch else jnp.ones_like(branch), *jnp.moveaxis(weights, 1, 0)


def _per_pixel(vector: Float[Array, "b c"]) -> Float[Array, "b 1 1 c"]:
    """Gives a vector of each sample the rank of a map."""
    return vector[:, None, None]
