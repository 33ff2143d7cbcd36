"""Junctions combine a block's branch y with the states s_1..s_n that the block sees.

A plain residual network adds: `y + s_1`. A SkipResNet puts a gate there: a small attention module that weighs the
branch and the states, per sample and channel. The other junctions are the paper's ablations.

In most families an activation follows the junction. The junction applies it (`post_activation`), so that the gradients
of the two share their work.

Every junction sows the weights of its states, in their order, into the collection `intermediates`: `weights` [b, n, c],
or [1, n, c] if they are the same for every sample. A gate sows the weight of the branch too: `branch` [b, c]. Gates
compute nothing for this unless the collection is mutable; by default it is not.

A gate sees the spatial mean of y and of every state. Each state is pooled once, when it is made, and carries its mean
along. So gates concatenate means, not feature maps: a gate's only pass over maps is the weighted sum (`ops.gated_sum`).

Source: Takeda, MIRU2020.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from skipnet_jax.models import ops
from skipnet_jax.models.connectivity import dense_distances, own_distance, skip_distances
from skipnet_jax.models.initializers import HostDraw
from skipnet_jax.models.layers import FeatureMap, Layers, feature_map, param_dtype


def fit_channels(state: FeatureMap, channels: int) -> FeatureMap:
    """Cuts the last channels off a state, or appends zeros: PyramidNet's states differ in width."""
    missing = channels - state.value.shape[-1]

    def fit(x: Array) -> Array:
        return jnp.pad(x, (*[(0, 0)] * (x.ndim - 1), (0, missing))) if missing > 0 else x[..., :channels]

    return jax.tree.map(fit, state)


class Gate(nn.Module):
    """Attention over the branch and the states: the heart of Skip- and Dense- networks.

        v = act(norm(W1 [mean(y), mean(s_1), ..., mean(s_n)]))
        a = W2 v + b2,   g = sigmoid(a_0),   p = softmax(a_1..a_n) over the states
        out = g * y + sum_k p_k * s_k

    Args:
      layers: the network's; their norm and activation stand between the gate's two linear layers.
      gate_reduction: the hidden width is c / gate_reduction, rounded up to a multiple of 8.
      weigh_branch: False leaves g out (the ablation "dynamic") but keeps its parameters.
    """

    layers: Layers
    gate_reduction: int
    post_activation: bool = False
    weigh_branch: bool = True

    @nn.compact
    def __call__(self, y: FeatureMap, states: Sequence[FeatureMap], *, train: bool) -> FeatureMap:
        channels, n = y.value.shape[-1], len(states)
        hidden = -(-max(channels // self.gate_reduction, 1) // 8) * 8
        v = jnp.concatenate([y.pooled, *(state.pooled for state in states)], axis=-1)
        v = self.layers.dense(hidden, use_bias=False, name="reduce")(v)
        v = self.layers.norm_act(v, train=train, name="norm")
        a = self.layers.dense((1 + n) * channels, name="expand")(v).reshape(-1, 1 + n, channels)
        a = a.astype(param_dtype(a.dtype))  # the softmax is in float32, even in a bfloat16 network
        if self.is_mutable_collection("intermediates"):
            branch, weights = ops.gate_weights(a)
            self.sow("intermediates", "weights", weights)
            if self.weigh_branch:
                self.sow("intermediates", "branch", branch)
        with_relu = self.post_activation and self.layers.act is ops.relu  # other activations follow the sum
        values = tuple(state.value for state in states)
        out, pooled = ops.gated_sum(a, y.affine, values, self.weigh_branch, with_relu)
        if self.post_activation and not with_relu:
            return feature_map(self.layers.act(out))
        return FeatureMap(out, pooled)


class Static(nn.Module):
    """The branch plus the weighted sum of the states; the weights are a softmax over a learned table."""

    layers: Layers
    post_activation: bool = False

    @nn.compact
    def __call__(self, y: FeatureMap, states: Sequence[FeatureMap], *, train: bool) -> FeatureMap:
        shape = (len(states), y.value.shape[-1])
        logits = self.param("logits", HostDraw(bound=None), shape, param_dtype(self.layers.dtype))
        weights = nn.softmax(logits, axis=0)[None]
        self.sow("intermediates", "weights", weights)
        out = y.value + sum(state.value * _per_pixel(weights[:, k], y.value) for k, state in enumerate(states))
        return _finish(out, self.layers, self.post_activation, train=train)


class Sum(nn.Module):
    """The branch plus all states. With only the block's own state it is a plain residual network's addition."""

    layers: Layers
    post_activation: bool = False

    @nn.compact
    def __call__(self, y: FeatureMap, states: Sequence[FeatureMap], *, train: bool) -> FeatureMap:
        self.sow("intermediates", "weights", np.ones((1, len(states), y.value.shape[-1]), np.float32))
        return _finish(y.value + sum(state.value for state in states), self.layers, self.post_activation, train=train)


class Mean(nn.Module):
    """The branch plus the mean of the states."""

    layers: Layers
    post_activation: bool = False

    @nn.compact
    def __call__(self, y: FeatureMap, states: Sequence[FeatureMap], *, train: bool) -> FeatureMap:
        n = len(states)
        self.sow("intermediates", "weights", np.full((1, n, y.value.shape[-1]), 1 / n, np.float32))
        out = y.value + sum(state.value for state in states) / n
        return _finish(out, self.layers, self.post_activation, train=train)


def _finish(out: Float[Array, "b h w c"], layers: Layers, post_activation: bool, *, train: bool) -> FeatureMap:
    if train:
        out = ops.materialize_gradient(out)
    out = layers.act(out) if post_activation else out
    return feature_map(ops.materialize(out) if train else out)


def _per_pixel(weight: Float[Array, "_b c"], y: Float[Array, "b h w c"]) -> Float[Array, "_b 1 1 c"]:
    return weight[:, None, None].astype(y.dtype)


@dataclasses.dataclass(frozen=True)
class Junction:
    """A kind of junction, as the prefix of a network's name chooses it.

    Args:
      published_prefix: of the network's published name.
      distances: the wiring: number of earlier blocks in the section -> distances of the states that a block sees.
      make: (layers, gate_reduction, post_activation, *, name) -> the module.
      gated: the junction accepts a branch whose norm is deferred.
    """

    published_prefix: str
    distances: Callable[[int], tuple[int, ...]]
    make: Callable[..., nn.Module]
    gated: bool = False


def _without_gate(module: type[Static | Sum | Mean]) -> Callable[..., nn.Module]:
    return lambda layers, gate_reduction, post_activation, *, name: module(layers, post_activation, name=name)


JUNCTIONS = {
    "add": Junction("", own_distance, _without_gate(Sum)),
    "skip": Junction("Skip-", skip_distances, Gate, gated=True),
    "dense": Junction("Dense-", dense_distances, Gate, gated=True),
    "dynamic": Junction("Dynamic-", skip_distances, functools.partial(Gate, weigh_branch=False), gated=True),
    "static": Junction("Static-", skip_distances, _without_gate(Static)),
    "mean": Junction("Mean-", skip_distances, _without_gate(Mean)),
    "sum": Junction("Sum-", skip_distances, _without_gate(Sum)),
}
