"""What is minimised and what is counted: per example, so that callers mask and sum as they need."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int


def cross_entropy(logits: Float[Array, "b c"], targets: Float[Array, "b c"]) -> Float[Array, "b"]:
    """Cross entropy against soft targets, one number per example.

    Args:
      logits: unnormalised scores of the classes.
      targets: distribution over the classes; each row sums to 1 (mixed and smoothed labels), or is 0 for an example
        that has no loss.

    Returns:
      [b], in nats.
    """
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)


def uniform_targets(labels: Int[Array, "b n"], num_classes: int, dtype: DTypeLike) -> Float[Array, "b {num_classes}"]:
    """The uniform distribution over each example's right answers.

    Args:
      labels: different class numbers, padded with -1.
      num_classes: width of the targets.

    Returns:
      [b, num_classes]; 0 everywhere for an example without an answer.
    """
    total = jnp.sum(jax.nn.one_hot(labels, num_classes, dtype=dtype), axis=1)  # of -1: zeros
    return total / jnp.maximum(jnp.sum(total, axis=1, keepdims=True), 1)


def topk_correct(logits: Float[Array, "b c"], labels: Int[Array, "b"], k: int) -> Bool[Array, "b"]:
    """Whether the label is among the k highest scores.

    Of equal scores the lower class number wins, and NaN never does, so a network that says the same for every class
    does not pass for a perfect one. Comparing each score with the label's stays within a device; `jax.lax.top_k` would
    gather the logits of all devices first.

    Args:
      logits: scores of the classes.
      labels: class numbers; -1 (no label) is never correct.
      k: 1..c.

    Returns:
      [b].
    """
    classes = logits.shape[-1]
    labels = labels[:, None]
    own = jnp.take_along_axis(logits, labels, axis=-1)
    behind = jnp.where(jnp.arange(classes)[None, :] < labels, logits < own, logits <= own)  # the label itself included
    return (classes - jnp.sum(behind, axis=-1) < k) & (labels[:, 0] >= 0)


def any_topk_correct(logits: Float[Array, "b c"], labels: Int[Array, "b n"], k: int) -> Bool[Array, "b"]:
    """Whether any of several right answers is among the k highest scores.

    Args:
      labels: class numbers, padded with -1.
      k: 1..c.

    Returns:
      [b].
    """
    hits = jax.vmap(lambda column: topk_correct(logits, column, k), in_axes=1, out_axes=1)(labels)
    return jnp.any(hits, axis=1)


def restrict(
    logits: Float[Array, "b c"], labels: Int[Array, "b n"], classes: tuple[int, ...]
) -> tuple[Float[Array, "b r"], Int[Array, "b n"]]:
    """Leaves only some classes to choose from.

    Args:
      labels: class numbers among all, padded with -1.
      classes: different class numbers.

    Returns:
      The scores of these classes, and the labels as numbers among them; -1 for any other.
    """
    columns = np.asarray(classes)
    numbers = np.full(logits.shape[-1] + 1, -1, np.int32)  # one more, for label -1
    numbers[columns] = np.arange(len(columns))
    return logits[:, columns], jnp.asarray(numbers)[labels]
