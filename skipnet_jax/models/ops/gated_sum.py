"""The gate's weighted sum, with a gradient that keeps nothing but what the network keeps anyway."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from skipnet_jax.models.ops.memory import apart, both_in_memory, materialize, wide


@functools.partial(jax.jit, static_argnums=(3, 4))  # traced once for all gates of a shape
def gated_sum(
    logits: Float[Array, "b n1 c"],
    y: Float[Array, "b h w c"],
    states: tuple[Float[Array, "b h w c"], ...],
    weigh_branch: bool,
    relu: bool,
) -> Float[Array, "b h w c"]:
    """`sigmoid(logits[:, 0]) * y + sum_k softmax(logits[:, 1:])_k * states_k`, and the ReLU of that.

    For the gradient it keeps the sum and the states, which the network keeps anyway, but not y. With D = <out, dout>
    over the pixels, that of the weights is <s_k, dout>, and that of the branch's factor g follows without y, since
    D = g <y, dout> + sum_k p_k <s_k, dout>. Under the ReLU this holds too: where it is 0, so is dout.

    Args:
      logits: n1 = 1 + number of states; in float32 at least.
      weigh_branch: False = y as it is, whatever its logit.
      relu: False = the sum as it is.
    """
    return _gated_sum(logits, y, states, weigh_branch, relu)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _gated_sum(logits: Array, y: Array, states: tuple[Array, ...], weigh_branch: bool, relu: bool) -> Array:
    branch, weights = (each.astype(y.dtype) for each in gate_weights(logits))
    out = y * _per_pixel(branch) if weigh_branch else y
    out = out + sum(state * _per_pixel(weights[:, k]) for k, state in enumerate(states))
    return jnp.maximum(out, 0) if relu else out


def gate_weights(logits: Float[Array, "b n1 c"]) -> tuple[Float[Array, "b c"], Float[Array, "b n c"]]:
    """The branch's factor, 0..1, and the states' weights, which sum to 1."""
    return jax.nn.sigmoid(logits[:, 0]), jax.nn.softmax(logits[:, 1:], axis=1)


def _gated_sum_forward(
    logits: Array, y: Array, states: tuple[Array, ...], weigh_branch: bool, relu: bool
) -> tuple[Array, tuple[Array, tuple[Array, ...], Array]]:
    out = materialize(_gated_sum(logits, y, states, weigh_branch, relu))
    (kept,) = apart(out)  # else XLA would take the sum itself for it, which is above 0 where its ReLU is
    return out, (logits, states, kept)


def _gated_sum_backward(
    weigh_branch: bool, relu: bool, residuals: tuple[Array, tuple[Array, ...], Array], dout: Array
) -> tuple[Array, Array, tuple[Array, ...]]:
    logits, states, out = residuals
    out, dout = both_in_memory(out, jnp.where(out > 0, dout, 0) if relu else dout)

    def over_pixels(x: Array) -> Array:
        return (wide(x) * wide(dout)).sum((1, 2))

    # On a GPU the sums are made together, and dout with them: each alone would read all of it.
    dout, of_out, *of_states = apart(dout, over_pixels(out), *map(over_pixels, states))
    branch, weights = gate_weights(logits)
    rounded_branch, rounded = branch.astype(out.dtype), weights.astype(out.dtype)

    dweights = jnp.stack(of_states, axis=1)  # [b, n, c]
    dstates = weights * (dweights - (weights * dweights).sum(1, keepdims=True))
    if weigh_branch:
        dbranch = (1 - branch) * (of_out - (wide(rounded) * dweights).sum(1))
        dy = dout * _per_pixel(rounded_branch)
    else:
        dbranch, dy = jnp.zeros_like(branch), dout
    dlogits = jnp.concatenate([dbranch[:, None], dstates], axis=1).astype(logits.dtype)
    return dlogits, dy, tuple(dout * _per_pixel(rounded[:, k]) for k in range(len(states)))


_gated_sum.defvjp(_gated_sum_forward, _gated_sum_backward)


def _per_pixel(weight: Array) -> Array:
    return weight[:, None, None]
