"""The loss and the correctness of predictions: per example, so that the caller can mask and sum them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped


def cross_entropy(logits: Float[Array, "b c"], targets: Float[Array, "b c"]) -> Float[Array, "b"]:
    """Computes the cross entropy of each example against soft targets, in nats.

    Args:
      targets: distributions over the classes. A row of zeros gives a loss of 0.
    """
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)


def uniform_targets(labels: Int[Array, "b n"], num_classes: int, dtype: DTypeLike) -> Float[Array, "b {num_classes}"]:
    """Makes the uniform distribution over each example's right answers, or zeros for an example without any.

    Args:
      labels: different class numbers, padded with -1.
    """
    total = jnp.sum(jax.nn.one_hot(labels, num_classes, dtype=dtype), axis=1)  # the one-hot vector of -1 is zero
    return total / jnp.maximum(jnp.sum(total, axis=1, keepdims=True), 1)


def topk_correct(logits: Float[Array, "b c"], labels: Int[Array, "b"], k: int) -> Bool[Array, "b"]:
    """Tells whether the label is among the k classes with the highest scores.

    Among equal scores the lower class number ranks higher, and NaN never counts as correct. Otherwise a network with
    the same score for every class would pass for a perfect one. Each score is compared with the score of the label,
    which stays within a device; `jax.lax.top_k` would gather the logits of all devices first.

    Args:
      labels: class numbers; -1 (no label) is never correct.
      k: 1..c.
    """
    classes = logits.shape[-1]
    labels = labels[:, None]
    own = jnp.take_along_axis(logits, labels, axis=-1)
    behind = jnp.where(jnp.arange(classes)[None, :] < labels, logits < own, logits <= own)  # includes the label itself
    return (classes - jnp.sum(behind, axis=-1) < k) & (labels[:, 0] >= 0)


def any_topk_correct(logits: Float[Array, "b c"], labels: Int[Array, "b n"], k: int) -> Bool[Array, "b"]:
    """Tells whether any of several right answers is among the k classes with the highest scores.

    Args:
      labels: class numbers, padded with -1.
      k: 1..c.
    """
    hits = jax.vmap(lambda column: topk_correct(logits, column, k), in_axes=1, out_axes=1)(labels)
    return jnp.any(hits, axis=1)


def restrict(
    logits: Float[Array, "b c"], labels: Int[Array, "b n"], classes: tuple[int, ...]
) -> tuple[Float[Array, "b r"], Int[Array, "b n"]]:
    """Restricts the choice to some of the classes.

    Args:
      labels: class numbers among all classes, padded with -1.
      classes: different class numbers.

    Returns:
      The scores of these classes, and the labels renumbered among them; -1 for any other class.
    """
    columns = np.asarray(classes)
    numbers = np.full(logits.shape[-1] + 1, -1, np.int32)  # the last entry is for label -1
    numbers[columns] = np.arange(len(columns))
    return logits[:, columns], jnp.asarray(numbers)[labels]


def means(sums: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> dict[str, float]:
    """Computes means over all examples on the host, from the sums over batches that steps return.

    Args:
      sums: one entry per batch, each with a "count" of examples.
      names: maps the name of each mean to the name of its sum.
    """
    count = sum(int(batch["count"]) for batch in sums)
    totals = {name: sum(float(batch[part]) for batch in sums) for name, part in names.items()}
    return {name: total / count if count else math.nan for name, total in totals.items()}


def predict(
    logits: Float[Array, "b c"], labels: Int[Array, "b n"], mask: Bool[Array, "b"]
) -> dict[str, Shaped[Array, "b"]]:
    """Gives each image's answer and prediction, and the confidence of the prediction.

    The prediction is the class with the highest score; of equal scores, the lowest number, as in `topk_correct`.
    If several answers are right and the prediction is one of them, the prediction counts as the answer; otherwise the
    first right answer does.

    Args:
      labels: class numbers, padded with -1.
      mask: False for an image that does not count; all others have an answer.

    Returns:
      "answer" and "prediction" (int32; both -1 for an image that does not count, or has a score that is not finite),
      and "confidence", the probability of the prediction.
    """
    prediction = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    confidence = jnp.max(jax.nn.softmax(logits, axis=-1), axis=-1)
    first = jnp.take_along_axis(labels, jnp.argmax(labels >= 0, axis=1)[:, None], axis=1)[:, 0]
    answer = jnp.where(jnp.any(labels == prediction[:, None], axis=1), prediction, first)
    counts = mask & jnp.isfinite(confidence)
    return {
        "answer": jnp.where(counts, answer, -1),
        "prediction": jnp.where(counts, prediction, -1),
        "confidence": confidence,
    }
