"""The optimisers as PyTorch defines them, built from Optax's parts.

Optax lacks two of the parts: PyTorch's gradient clipping by norm, and learning rates that differ by layer. SAM is SGD
here, because its second pass needs the network; `training/gradients.py` and `steps.update` take care of that.
"""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from skipnet_jax.specs import OptimSpec

# Weight decay applies to convolution and linear kernels, and to the table of the static junction. The parameters of
# norms, biases, layer scales and position biases have other names.
DECAYED = ("kernel", "logits")

CLIP_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_
SMALL_ARRAY = 2**16  # elements; concatenating larger arrays costs more than it saves

Parts = list[optax.GradientTransformation]


def make_optimizer(spec: OptimSpec, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Chains gradient clipping, the optimiser and the layer-wise rates. A part that is switched off is left out.

    Args:
      schedule: the learning rate at a step.

    Source: torch.optim.SGD, AdamW and RMSprop; TensorFlow's RMSprop; layer-wise rates as in the code behind the
      published tables.
    """
    rate = optax.scale_by_learning_rate(schedule)
    return optax.chain(*_clipping(spec), *OPTIMIZERS[spec.name](spec, rate), *_layer_rates(spec))


def decay_mask(params: PyTree, *, decay_bias: bool = False) -> PyTree:
    """Tells which parameters weight decay applies to, as a tree of booleans.

    Args:
      params: nested dicts, as linen makes them.
      decay_bias: decay biases too, including the biases of norms.
    """
    decayed = (*DECAYED, "bias") if decay_bias else DECAYED
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in decayed, params)


def layer_rates(params: PyTree, ratio: float) -> PyTree:
    """Computes the factor by which each parameter's learning rate is multiplied, as a tree of numbers.

    Args:
      params: of a network, with the modules "stem", "blocks_0", "blocks_1" and so on, and a head.
      ratio: the factor of the stem. The head has 1, and the factors of the blocks lie geometrically in between.
    """
    blocks = sum(name.startswith("blocks_") for name in params)

    def rate(path: jax.tree_util.KeyPath, _: object) -> float:
        name = path[0].key
        block = re.fullmatch(r"blocks_(\d+)", name)
        position = int(block[1]) if block else -1 if name == "stem" else blocks
        return ratio ** ((blocks - position) / (blocks + 1))

    return jax.tree_util.tree_map_with_path(rate, params)


def clip_by_norm(limit: float) -> optax.GradientTransformation:
    """Scales all gradients down to a joint norm of `limit`, by PyTorch's factor limit / (norm + 1e-6).

    Optax's `clip_by_global_norm` has no epsilon, so its result differs in the seventh digit.
    """

    def clip(grads: PyTree, params: PyTree) -> PyTree:
        del params
        return optax.tree.scale(jnp.minimum(1, limit / (global_norm(grads) + CLIP_EPSILON)), grads)

    return optax.stateless(clip)


def global_norm(tree: PyTree) -> Float[Array, ""]:
    """Computes the Euclidean norm of all numbers in a tree of arrays of one type.

    It concatenates the small arrays first. A deep network has hundreds of them, and `optax.tree.norm` compiles several
    sums for each: 831 of the 6,078 fusions in a training step of Skip-ResNet-110.
    """
    leaves = jax.tree.leaves(tree)
    small = [leaf.ravel() for leaf in leaves if leaf.size <= SMALL_ARRAY]
    parts = [leaf for leaf in leaves if leaf.size > SMALL_ARRAY]
    if small:
        parts.append(jnp.concatenate(small))
    return jnp.sqrt(sum(jnp.sum(jnp.square(part)) for part in parts))


def _sgd(spec: OptimSpec, rate: optax.GradientTransformation) -> Parts:
    """The learning rate comes after momentum, so a new rate scales the whole accumulated momentum."""
    return [*_decay(spec), *_momentum(spec, nesterov=spec.nesterov), rate]


def _adamw(spec: OptimSpec, rate: optax.GradientTransformation) -> Parts:
    return [optax.scale_by_adam(b1=spec.momentum, b2=spec.beta2, eps=spec.eps), *_decay(spec), rate]


def _rmsprop(spec: OptimSpec, rate: optax.GradientTransformation) -> Parts:
    """PyTorch's form: epsilon is outside the root, and the mean square starts at 0."""
    rms = optax.scale_by_rms(decay=spec.smoothing, eps=spec.eps, initial_scale=0.0, eps_in_sqrt=False)
    return [*_decay(spec), rms, *_momentum(spec, nesterov=False), rate]


def _rmsprop_tf(spec: OptimSpec, rate: optax.GradientTransformation) -> Parts:
    """TensorFlow's form: epsilon is inside the root, the mean square starts at 1, and momentum comes after the rate."""
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
    by_norm = [clip_by_norm(spec.clip_norm)] if spec.clip_norm else []
    return by_value + by_norm


def _layer_rates(spec: OptimSpec) -> Parts:
    """Goes last in the chain, so that it also scales AdamW's decay and TensorFlow's momentum."""

    def scale(updates: PyTree, params: PyTree) -> PyTree:
        del params
        return optax.tree.mul(updates, layer_rates(updates, spec.layer_lr_ratio))

    return [optax.stateless(scale)] if spec.layer_lr_ratio != 1 else []
