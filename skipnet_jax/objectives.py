"""What is minimised and what is counted: per example, so that callers mask and sum as they need."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def cross_entropy(logits: Float[Array, "b c"], targets: Float[Array, "b c"]) -> Float[Array, "b"]:
    """Cross entropy against soft targets, one number per example.

    Args:
      logits: unnormalised scores of the classes.
      targets: distribution over the classes; each row sums to 1 (mixed and smoothed labels).

    Returns:
      [b], in nats.
    """
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)


def topk_correct(logits: Float[Array, "b c"], labels: Int[Array, "b"], k: int) -> Bool[Array, "b"]:
    """Whether the label is among the k highest scores.

    Of equal scores the lower class number wins, and NaN never does, so a network that says the same for every class
    does not pass for a perfect one. Comparing each score with the label's stays within a device; `jax.lax.top_k` would
    gather the logits of all devices first.

    Args:
      logits: scores of the classes.
      labels: class numbers.
      k: 1..c.

    Returns:
      [b].
    """
    classes = logits.shape[-1]
    labels = labels[:, None]
    own = jnp.take_along_axis(logits, labels, axis=-1)
    behind = jnp.where(jnp.arange(classes)[None, :] < labels, logits < own, logits <= own)  # the label itself included
    return classes - jnp.sum(behind, axis=-1) < k
