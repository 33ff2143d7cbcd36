"""The junctions: how a block's branch y meets the states s_1..s_n that it sees, and the activation after that.

A plain residual network adds: `y + s_1`. A SkipResNet puts a gate there, a small attention module that
weighs the branch and the states, per sample and channel. The other four are the paper's ablations.

Where the family has it, a junction ends with the network's activation: the gradients of the two share their work.

Every junction sows what it multiplies the states with into the collection `intermediates`, as `weights` [b, n, c] in
the order of its states, or [1, n, c] where they do not depend on the sample; a gate sows `branch` [b, c] too. Where
that collection is not mutable, which is the default, nothing is computed for it.

The gate's input is the spatial mean of y and of every state. Mean and concatenation commute, so a
state is pooled once, when it is made, and carries its mean along: no gate ever concatenates feature
maps, and its only pass over them is the weighted sum (`ops/gated_sum.py`).

Source: Takeda, MIRU2020.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from skipnet_jax.models.connectivity import dense_distances, own_distance, skip_distances
from skipnet_jax.models.initializers import HostDraw
from skipnet_jax.models.layers import Layers, mean_pool, param_dtype
from skipnet_jax.models.ops.activations import relu
from skipnet_jax.models.ops.gated_sum import gate_weights, gated_sum
from skipnet_jax.models.ops.memory import materialize, materialize_gradient


class State(NamedTuple):
    """The output of a block's shortcut, and its mean over height and width."""

    value: Float[Array, "b h w c"]
    pooled: Float[Array, "b c"]


def make_state(value: Float[Array, "b h w c"]) -> State:
    """Pools a state, once for all the gates that will look at it."""
    return State(value, mean_pool(value))


def fit_channels(state: State, channels: int) -> State:
    """Cuts the state to `channels`, or pads it with zeros at the end (the widths differ in PyramidNet)."""
    missing = channels - state.value.shape[-1]
    if missing <= 0:
        return State(state.value[..., :channels], state.pooled[..., :channels])
    return State(
        jnp.pad(state.value, ((0, 0), (0, 0), (0, 0), (0, missing))), jnp.pad(state.pooled, ((0, 0), (0, missing)))
    )


class Gate(nn.Module):
    """Attention over the branch and the states; the heart of Skip- and Dense- networks.

        v = act(norm(W1 [mean(y), mean(s_1), ..., mean(s_n)]))
        a = W2 v + b2,   g = sigmoid(a_0),   p = softmax(a_1..a_n) over the states
        out = g * y + sum_k p_k * s_k

    p is sown as `weights` [b, n, c], g as `branch` [b, c].

    Args:
      layers: the norm and activation between the two linear layers are the network's own.
      reduction: the hidden width is c / reduction, rounded up to a multiple of 8.
      weigh_branch: False leaves g out (the ablation "dynamic"); the parameters stay.
      post_activation: apply the network's activation to the sum.
    """

    layers: Layers
    reduction: int
    weigh_branch: bool = True
    post_activation: bool = False

    @nn.compact
    def __call__(self, y: Float[Array, "b h w c"], states: Sequence[State], *, train: bool) -> Float[Array, "b h w c"]:
        channels, n = y.shape[-1], len(states)
        hidden = -(-max(channels // self.reduction, 1) // 8) * 8
        v = jnp.concatenate([mean_pool(y), *(state.pooled for state in states)], axis=-1)
        v = self.layers.dense(hidden, use_bias=False, name="reduce")(v)
        v = self.layers.norm_act(v, train=train, name="norm")
        a = self.layers.dense((1 + n) * channels, name="expand")(v).reshape(-1, 1 + n, channels)
        a = a.astype(param_dtype(a.dtype))  # the softmax in float32, also in a bfloat16 network
        if self.is_mutable_collection("intermediates"):
            branch, weights = gate_weights(a)
            self.sow("intermediates", "weights", weights)
            if self.weigh_branch:
                self.sow("intermediates", "branch", branch)
        with_relu = self.post_activation and self.layers.act is relu  # any other activation comes after the sum
        out = gated_sum(a, y, tuple(state.value for state in states), self.weigh_branch, with_relu)
        return self.layers.act(out) if self.post_activation and not with_relu else out


class Static(nn.Module):
    """Weights that are learned but do not look at the sample: a softmax over a table [n, c].

    Args:
      post_activation: apply the network's activation to the sum.
    """

    layers: Layers
    post_activation: bool = False

    @nn.compact
    def __call__(self, y: Float[Array, "b h w c"], states: Sequence[State], *, train: bool) -> Float[Array, "b h w c"]:
        shape = (len(states), y.shape[-1])
        logits = self.param("logits", HostDraw(bound=None), shape, param_dtype(self.layers.dtype))
        weights = nn.softmax(logits, axis=0)[None]
        self.sow("intermediates", "weights", weights)
        out = y + sum(state.value * _per_pixel(weights[:, k], y) for k, state in enumerate(states))
        return _finish(out, self.layers, self.post_activation, train=train)


class Sum(nn.Module):
    """The branch plus all states; over its own state alone, the addition of a plain residual network.

    Args:
      post_activation: apply the network's activation to the sum.
    """

    layers: Layers
    post_activation: bool = False

    @nn.compact
    def __call__(self, y: Float[Array, "b h w c"], states: Sequence[State], *, train: bool) -> Float[Array, "b h w c"]:
        self.sow("intermediates", "weights", np.ones((1, len(states), y.shape[-1]), np.float32))
        return _finish(y + sum(state.value for state in states), self.layers, self.post_activation, train=train)


class Mean(nn.Module):
    """The branch plus the mean of the states.

    Args:
      post_activation: apply the network's activation to the sum.
    """

    layers: Layers
    post_activation: bool = False

    @nn.compact
    def __call__(self, y: Float[Array, "b h w c"], states: Sequence[State], *, train: bool) -> Float[Array, "b h w c"]:
        n = len(states)
        self.sow("intermediates", "weights", np.full((1, n, y.shape[-1]), 1 / n, np.float32))
        out = y + sum(state.value for state in states) / n
        return _finish(out, self.layers, self.post_activation, train=train)


def _finish(
    out: Float[Array, "b h w c"], layers: Layers, post_activation: bool, *, train: bool
) -> Float[Array, "b h w c"]:
    if train:
        out = materialize_gradient(out)
    out = layers.act(out) if post_activation else out
    return materialize(out) if train else out


def _per_pixel(weight: Float[Array, "_b c"], y: Float[Array, "b h w c"]) -> Float[Array, "_b 1 1 c"]:
    return weight[:, None, None].astype(y.dtype)


@dataclasses.dataclass(frozen=True)
class Junction:
    """One row of `JUNCTIONS`.

    Args:
      published_prefix: of the network's published name.
      distances: the wiring: number of earlier blocks in the section -> distances of the states seen.
      make: (layers, gate_reduction, post_activation) -> a factory that takes the module's name.
    """

    published_prefix: str
    distances: Callable[[int], tuple[int, ...]]
    make: Callable[[Layers, int, bool], Callable[..., nn.Module]]


def _gate(layers: Layers, reduction: int, post_activation: bool) -> Callable[..., nn.Module]:
    return functools.partial(Gate, layers, reduction, post_activation=post_activation)


def _dynamic(layers: Layers, reduction: int, post_activation: bool) -> Callable[..., nn.Module]:
    return functools.partial(Gate, layers, reduction, weigh_branch=False, post_activation=post_activation)


def _without_gate(junction: type[Static | Sum | Mean]) -> Callable[[Layers, int, bool], Callable[..., nn.Module]]:
    return lambda layers, reduction, post_activation: functools.partial(junction, layers, post_activation)


JUNCTIONS = {
    "add": Junction("", own_distance, _without_gate(Sum)),
    "skip": Junction("Skip-", skip_distances, _gate),
    "dense": Junction("Dense-", dense_distances, _gate),
    "dynamic": Junction("Dynamic-", skip_distances, _dynamic),
    "static": Junction("Static-", skip_distances, _without_gate(Static)),
    "mean": Junction("Mean-", skip_distances, _without_gate(Mean)),
    "sum": Junction("Sum-", skip_distances, _without_gate(Sum)),
}
