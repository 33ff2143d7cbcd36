"""Optimisers of the published recipes, from Optax's parts only."""

from collections.abc import Callable

import jax
import optax
from jaxtyping import PyTree

from skipnet_jax.specs import OptimSpec

# Kernels of convolutions and linear layers, and the table of the static junction. Norms, biases, layer scales and
# position biases have other names and are left alone.
DECAYED = ("kernel", "logits")


def decay_mask(params: PyTree) -> PyTree:
    """Which parameters weight decay pulls on.

    Args:
      params: nested dicts, as linen makes them.

    Returns:
      The same tree with True where the parameter decays.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)


def make_optimizer(
    spec: OptimSpec, schedule: optax.Schedule, decay_mask: Callable[[PyTree], PyTree]
) -> optax.GradientTransformation:
    """SGD as torch defines it: decay joins the gradient, then momentum, then the learning rate of the step.

    A rate that changes therefore acts on the whole momentum at once, not on what enters it.

    Args:
      spec: momentum and weight decay.
      schedule: learning rate at a step.
      decay_mask: says of a tree of parameters which of them decay.

    Source: Sutskever et al., ICML 2013, in the form of torch.optim.SGD.
    """
    return optax.chain(
        optax.add_decayed_weights(spec.weight_decay, mask=decay_mask),
        optax.trace(decay=spec.momentum, nesterov=spec.nesterov),
        optax.scale_by_learning_rate(schedule),
    )
