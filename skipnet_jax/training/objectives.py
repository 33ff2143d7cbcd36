"""What is minimised and what is counted: per example, so that callers mask and sum as they need."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

CALIBRATION_BINS = 15  # as in the paper's experiments: `details`


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


def details(
    logits: Float[Array, "b c"], labels: Int[Array, "b n"], mask: Bool[Array, "b"]
) -> dict[str, Shaped[Array, "..."]]:
    """Counts which class was taken for which, and how often a prediction of some confidence was right.

    The prediction is the class with the highest score, of equal ones that with the lowest number, as in `topk_correct`;
    its confidence is its probability. Where several answers are right, that which was predicted is the answer, or else
    the first. An image with a score that is no number has no prediction, and is left out.

    Args:
      labels: class numbers, padded with -1.
      mask: False for an image that does not count; all others have an answer.

    Returns:
      "confusion": int32 [c, c], images by answer (row) and prediction (column). By confidence, in `CALIBRATION_BINS`
      bins of equal width, each without its lower and with its upper end: "images" and "hits" (those predicted rightly),
      int32, and "confidence", the sum over the images.

    Source: C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 2.
    """
    prediction = jnp.argmax(logits, axis=-1)
    confidence = jnp.max(jax.nn.softmax(logits, axis=-1), axis=-1)
    mask &= jnp.isfinite(confidence)
    first = jnp.take_along_axis(labels, jnp.argmax(labels >= 0, axis=1)[:, None], axis=1)[:, 0]
    hit = jnp.any(labels == prediction[:, None], axis=1)
    answer = jnp.where(hit, prediction, first)
    classes = logits.shape[-1]
    counted = mask.astype(jnp.int32)
    bins = jnp.clip(jnp.ceil(confidence * CALIBRATION_BINS).astype(jnp.int32) - 1, 0, CALIBRATION_BINS - 1)
    none = jnp.zeros(CALIBRATION_BINS, jnp.int32)
    return {
        "confusion": jnp.zeros((classes, classes), jnp.int32).at[answer, prediction].add(counted),
        "images": none.at[bins].add(counted),
        "hits": none.at[bins].add(counted * hit),
        "confidence": none.astype(logits.dtype).at[bins].add(jnp.where(mask, confidence, 0)),
    }
