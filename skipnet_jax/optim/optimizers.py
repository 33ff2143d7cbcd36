"""Optimisers as torch defines them, from Optax's parts.

Only two parts are our own: clipping by norm, whose factor differs in torch, and layer-wise rates. SAM's second
pass needs the network and its running statistics, so it is in `gradients.py` and `steps.update`; here it is SGD.
"""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from skipnet_jax.optim.norm import global_norm
from skipnet_jax.specs import OptimSpec

# Kernels of convolutions and linear layers, and the table of the static junction. Norms, biases, layer scales and
# position biases have other names and are left alone.
DECAYED = ("kernel", "logits")

CLIP_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_

Parts = list[optax.GradientTransformation]


def make_optimizer(spec: OptimSpec, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clipping, then the optimiser of the spec, then layer-wise rates; what is switched off leaves nothing behind.

    Args:
      spec: see there.
      schedule: learning rate at a step.

    Source: torch.optim.SGD, AdamW and RMSprop; TensorFlow's RMSprop; layer-wise rates as in the code behind the
      published tables.
    """
    rate = optax.scale_by_learning_rate(schedule)
    return optax.chain(*_clipping(spec), *OPTIMIZERS[spec.name](spec, rate), *_layer_rates(spec))


def decay_mask(params: PyTree, *, decay_bias: bool = False) -> PyTree:
    """Which parameters weight decay pulls on.

    Args:
      params: nested dicts, as linen makes them.
      decay_bias: biases too, those of norms included.

    Returns:
      The same tree with True where the parameter decays.
    """
    decayed = (*DECAYED, "bias") if decay_bias else DECAYED
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in decayed, params)


def layer_rates(params: PyTree, ratio: float) -> PyTree:
    """Which share of the learning rate each parameter gets.

    Args:
      params: of a network: "stem", "blocks_0" ... and what comes after the blocks.
      ratio: share of the stem; what comes after the blocks gets 1, and blocks are geometrically between.

    Returns:
      The same tree of numbers.
    """
    blocks = sum(name.startswith("blocks_") for name in params)

    def rate(path: jax.tree_util.KeyPath, _: object) -> float:
        name = path[0].key
        block = re.fullmatch(r"blocks_(\d+)", name)
        position = int(block[1]) if block else -1 if name == "stem" else blocks
        return ratio ** ((blocks - position) / (blocks + 1))

    return jax.tree_util.tree_map_with_path(rate, params)


def clip_by_norm(limit: float) -> optax.GradientTransformation:
    """Scales gradients down to a norm of `limit` all together, by torch's factor limit / (norm + 1e-6).

    Optax's `clip_by_global_norm` has no epsilon, so it differs in the seventh digit.
    """

    def clip(grads: PyTree, params: PyTree) -> PyTree:
        del params
        return optax.tree.scale(jnp.minimum(1, limit / (global_norm(grads) + CLIP_EPSILON)), grads)

    return optax.stateless(clip)


def _sgd(spec: OptimSpec, rate: optax.GradientTransformation) -> Parts:
    """Decay joins the gradient, then momentum, then the rate of the step, which so acts on the whole momentum."""
    return [*_decay(spec), *_momentum(spec, nesterov=spec.nesterov), rate]


def _adamw(spec: OptimSpec, rate: optax.GradientTransformation) -> Parts:
    return [optax.scale_by_adam(b1=spec.momentum, b2=spec.beta2, eps=spec.eps), *_decay(spec), rate]


def _rmsprop(spec: OptimSpec, rate: optax.GradientTransformation) -> Parts:
    """Torch's: epsilon outside the root, mean square from 0."""
    rms = optax.scale_by_rms(decay=spec.smoothing, eps=spec.eps, initial_scale=0.0, eps_in_sqrt=False)
    return [*_decay(spec), rms, *_momentum(spec, nesterov=False), rate]


def _rmsprop_tf(spec: OptimSpec, rate: optax.GradientTransformation) -> Parts:
    """TensorFlow's: epsilon inside the root, mean square from 1, and the momentum is of steps, not of gradients."""
    rms = optax.scale_by_rms(decay=spec.smoothing, eps=spec.eps, initial_scale=1.0, eps_in_sqrt=True)
    return [*_decay(spec), rms, rate, *_momentum(spec, nesterov=False)]


OPTIMIZERS: dict[str, Callable[[OptimSpec, optax.GradientTransformation], Parts]] = {
    "sgd": _sgd,
    "sam": _sgd,
    "adamw": _adamw,
    "rmsprop": _rmsprop,
    "rmsprop_tf": _rmsprop_tf,
}


def _decay(spec: OptimSpec) -> Parts:
    mask = functools.partial(decay_mask, decay_bias=spec.decay_bias)
    return [optax.add_decayed_weights(spec.weight_decay, mask=mask)] if spec.weight_decay else []


def _momentum(spec: OptimSpec, *, nesterov: bool) -> Parts:
    return [optax.trace(decay=spec.momentum, nesterov=nesterov)] if spec.momentum else []


def _clipping(spec: OptimSpec) -> Parts:
    by_value = [optax.clip(spec.clip_value)] if spec.clip_value else []
    return [*by_value, *([clip_by_norm(spec.clip_norm)] if spec.clip_norm else [])]


def _layer_rates(spec: OptimSpec) -> Parts:
    """At the end of the chain, so that AdamW's decay, and a momentum of steps, are scaled too."""

    def scale(updates: PyTree, params: PyTree) -> PyTree:
        del params
        return optax.tree.mul(updates, layer_rates(updates, spec.layer_lr_ratio))

    return [optax.stateless(scale)] if spec.layer_lr_ratio != 1 else []
