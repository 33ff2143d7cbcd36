"""Batches of images that are in memory: whole batches at a time, since TensorFlow's cost per element is high."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from skipnet_jax.data import augment, keys
from skipnet_jax.data.splits import InMemory
from skipnet_jax.specs import DataSpec

# Threads of the input's own pool, and batches made ahead: enough for an accelerator, no burden to the host.
_THREADS = 4
_PREFETCH = 4


def train_batches(
    source: InMemory,
    spec: DataSpec,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    process_index: int,
    process_count: int,
) -> Iterator[dict[str, np.ndarray]]:
    """This host's training batches, without end; the arrays are TensorFlow's own memory and read-only."""
    import tensorflow as tf

    from skipnet_jax.data import image_ops

    host_batch, num_examples, size = batch_size // process_count, source.num_examples, spec.image_size
    steps_per_epoch = num_examples // batch_size
    images, labels = tf.constant(source.images), tf.constant(source.labels)

    def steps_of(epoch: tf.Tensor) -> tf.data.Dataset:
        """The epoch's steps as small elements: the examples' indexes and what happens to them."""
        order = keys.permutation(seed, epoch, num_examples)
        key = keys.epoch_key(seed, keys.EPOCH, epoch)
        offsets, mirrored = image_ops.draw_crop_flip(key, num_examples, spec.pad_crop, spec.flip)

        def indexes_of(step: tf.Tensor) -> tuple[tf.Tensor, ...]:
            indexes = tf.slice(order, [step * batch_size + process_index * host_batch], [host_batch])
            return epoch, indexes, tf.gather(offsets, indexes), tf.gather(mirrored, indexes)

        first = tf.maximum(start_step - epoch * steps_per_epoch, 0)
        return tf.data.Dataset.range(first, steps_per_epoch).map(indexes_of)

    def batch_of(epoch: tf.Tensor, indexes: tf.Tensor, offsets: tf.Tensor, mirrored: tf.Tensor) -> dict[str, tf.Tensor]:
        def each(change: Callable[..., Any], batch: tf.Tensor) -> tf.Tensor:
            """Applies an operation of `augment.py` to each image, with the image's key."""

            def one(given: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
                image, index = given
                return tf.ensure_shape(change(image, keys.example_key(seed, epoch, index), spec), [size, size, 3])

            signature = tf.TensorSpec([size, size, 3], tf.uint8)
            return tf.map_fn(one, (batch, indexes), fn_output_signature=signature)

        batch = tf.ensure_shape(tf.gather(images, indexes), [host_batch, size, size, 3])
        if augment.changes_whole_images(spec):
            batch = each(augment.whole_image, batch)
        if spec.pad_crop or spec.flip:
            batch = image_ops.pad_crop_flip(batch, offsets, mirrored, spec.pad_crop)
        if spec.color_jitter:
            batch = each(augment.recolor, batch)
        made = {"image": tf.ensure_shape(batch, [host_batch, size, size, 3]), "label": tf.gather(labels, indexes)}
        if spec.lighting:
            made["lighting"] = tf.map_fn(
                lambda index: augment.lighting(keys.example_key(seed, epoch, index), spec),
                indexes,
                fn_output_signature=tf.TensorSpec([3], tf.float32),
            )
        return made

    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = _THREADS
    epochs = tf.data.Dataset.range(start_step // steps_per_epoch, np.iinfo(np.int64).max)
    as_it_is = tf.autograph.experimental.do_not_convert  # nothing here needs AutoGraph, which takes seconds
    batches = epochs.flat_map(as_it_is(steps_of)).map(as_it_is(batch_of), num_parallel_calls=_THREADS)
    return batches.prefetch(_PREFETCH).with_options(options).as_numpy_iterator()


def eval_batches(
    source: InMemory, spec: DataSpec, *, batch_size: int, process_index: int, process_count: int
) -> Iterator[dict[str, np.ndarray]]:
    """This host's slice of each global batch, which may be padding throughout."""
    host_batch = batch_size // process_count

    def batch_of(start: int) -> dict[str, np.ndarray]:
        count = min(max(source.num_examples - start, 0), host_batch)
        image = np.zeros((host_batch, spec.image_size, spec.image_size, 3), np.uint8)
        label = np.zeros(host_batch, np.int32)
        image[:count] = source.images[start : start + count]
        label[:count] = source.labels[start : start + count]
        return {"image": image, "label": label, "mask": np.arange(host_batch) < count}

    return (batch_of(start + process_index * host_batch) for start in range(0, source.num_examples, batch_size))
