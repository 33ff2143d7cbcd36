"""Batches for training and evaluation.

The training input is a pure function of (seed, step): a run that resumes at step s asks for the batches from s on and
gets the very ones that it would have seen, at no cost for those before. Nothing of the input is saved in a checkpoint.
"""

from collections.abc import Iterator

import numpy as np

from skipnet_jax.data.sources import Source
from skipnet_jax.specs import DataSpec

# Threads of the input's own pool, and batches made ahead: enough for an accelerator, no burden to the host.
_THREADS = 4
_PREFETCH = 4
# First part of the key of each kind of draw, so that order and augmentation are independent.
_ORDER, _AUGMENT = 0, 1


def train_batches(
    source: Source,
    spec: DataSpec,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless shuffled and augmented batches, from a step on.

    An epoch is floor(examples / batch_size) steps over a permutation keyed by (seed, epoch); what is left over differs
    from epoch to epoch. The augmentation of an example is keyed by (seed, epoch, index of the example). Each host gets
    its contiguous slice of every global batch, so the global batch does not depend on the number of hosts.

    The permutation is made whole, once an epoch, which takes a millisecond for 50,000 examples. TensorFlow's
    `index_shuffle` would need no memory, but reads only 8 bits of each half of its key: epochs 0 and 256 would have the
    same order.

    Args:
      source: the training split.
      spec: says which augmentation.
      batch_size: examples per step over all hosts.
      seed: of the run.
      start_step: steps already done; 0 = from the beginning.
      process_index: this host, 0..process_count - 1.
      process_count: number of hosts.

    Returns:
      Iterator over {"image": uint8 [batch_size / process_count, s, s, 3], "label": int32 [batch_size /
      process_count]}; the arrays are TensorFlow's own memory and read-only.

    Raises:
      ValueError: the batch is larger than the data set or does not divide over the hosts.
    """
    host_batch = _host_batch("batch_size", batch_size, process_count)
    num_examples, size = source.num_examples, spec.image_size
    steps_per_epoch = num_examples // batch_size
    if steps_per_epoch == 0:
        raise ValueError(
            f"batch_size: got {batch_size}, expected at most {num_examples}, the training examples of {source.name}, "
            f"since an epoch is floor(examples / batch_size) steps. Lower --config.batch_size."
        )

    import tensorflow as tf

    from skipnet_jax.data import image_ops

    images, labels = tf.constant(source.images), tf.constant(source.labels)
    augmented = spec.pad_crop > 0 or spec.flip

    def key_of(draw: int, epoch: tf.Tensor) -> tf.Tensor:
        return tf.random.experimental.stateless_fold_in(tf.constant([seed, draw], tf.int64), epoch, alg="philox")

    def steps_of(epoch: tf.Tensor) -> tf.data.Dataset:
        """The epoch's steps as small elements: the examples' indexes and what happens to them."""
        order = tf.random.experimental.stateless_shuffle(
            tf.range(num_examples, dtype=tf.int64), key_of(_ORDER, epoch), alg="philox"
        )
        offsets, mirrored = image_ops.draw_crop_flip(key_of(_AUGMENT, epoch), num_examples, spec.pad_crop, spec.flip)

        def indexes_of(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            indexes = tf.slice(order, [step * batch_size + process_index * host_batch], [host_batch])
            return indexes, tf.gather(offsets, indexes), tf.gather(mirrored, indexes)

        first = tf.maximum(start_step - epoch * steps_per_epoch, 0)
        return tf.data.Dataset.range(first, steps_per_epoch).map(indexes_of)

    def batch_of(indexes: tf.Tensor, offsets: tf.Tensor, mirrored: tf.Tensor) -> dict[str, tf.Tensor]:
        batch = tf.gather(images, indexes)
        if augmented:
            batch = image_ops.pad_crop_flip(batch, offsets, mirrored, spec.pad_crop)
        return {"image": tf.ensure_shape(batch, [host_batch, size, size, 3]), "label": tf.gather(labels, indexes)}

    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = _THREADS
    epochs = tf.data.Dataset.range(start_step // steps_per_epoch, np.iinfo(np.int64).max)
    batches = epochs.flat_map(steps_of).map(batch_of, num_parallel_calls=_THREADS)
    return batches.prefetch(_PREFETCH).with_options(options).as_numpy_iterator()


def eval_batches(
    source: Source,
    spec: DataSpec,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Every example once and in order, the last batch padded.

    Padding has black images, label 0 and mask False. All hosts get the same number of batches: host h has the h-th
    contiguous slice of each global batch, which may be padding throughout.

    Args:
      source: the split to evaluate.
      spec: says the image size.
      batch_size: examples per batch over all hosts.
      process_index: this host, 0..process_count - 1.
      process_count: number of hosts.

    Returns:
      Iterator over {"image": uint8 [b, s, s, 3], "label": int32 [b], "mask": bool [b]} with b = batch_size /
      process_count.

    Raises:
      ValueError: the batch does not divide over the hosts.
    """
    host_batch = _host_batch("eval_batch_size", batch_size, process_count)

    def batch_of(start: int) -> dict[str, np.ndarray]:
        count = min(max(source.num_examples - start, 0), host_batch)
        image = np.zeros((host_batch, spec.image_size, spec.image_size, 3), np.uint8)
        label = np.zeros(host_batch, np.int32)
        image[:count] = source.images[start : start + count]
        label[:count] = source.labels[start : start + count]
        return {"image": image, "label": label, "mask": np.arange(host_batch) < count}

    return (batch_of(start + process_index * host_batch) for start in range(0, source.num_examples, batch_size))


def _host_batch(name: str, batch_size: int, process_count: int) -> int:
    """This host's share of a batch."""
    if batch_size % process_count:
        raise ValueError(
            f"{name}: got {batch_size}, expected a multiple of {process_count}, the number of hosts, "
            f"each of which reads an equal share. Change --config.{name}."
        )
    return batch_size // process_count
