"""Splits that fit into memory. They are augmented a batch at a time, since TensorFlow's cost per element is high."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from skipnet_jax.data import holdout
from skipnet_jax.data.splits import WHOLE, Batch, BatchRequest, DataSplit, reading_options
from skipnet_jax.specs import DataSpec

# Threads of the input's own pool, and batches made ahead: enough for an accelerator, and no burden on the host.
_THREADS = 4
_PREFETCH = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class InMemory(DataSplit):
    """Decoded images in memory.

    Args:
      images: at the size that the network sees, 0..255.
      labels: 0..number of classes - 1.
    """

    images: UInt8[np.ndarray, "n h w 3"]
    labels: Int32[np.ndarray, "n"]
    crop: str = WHOLE

    @property
    def num_examples(self) -> int:
        return len(self.labels)

    def divide(self, amount: holdout.Amount) -> "tuple[InMemory, InMemory]":
        mask = holdout.choose(self.labels, amount)
        rest, kept = (dataclasses.replace(self, images=self.images[m], labels=self.labels[m]) for m in (~mask, mask))
        return rest, kept

    def train_batches(self, spec: DataSpec, request: BatchRequest) -> Iterator[Batch]:
        """Makes batches whose arrays are read-only, since TensorFlow owns their memory."""
        import tensorflow as tf

        from skipnet_jax.data import image_ops, keys

        steps_per_epoch = request.steps_per_epoch(self.num_examples)
        host_start = request.process_index * request.host_batch
        labels = tf.constant(self.labels)
        augmented = _augmenter(tf.constant(self.images), spec, request)

        def steps_of(epoch: tf.Tensor) -> tf.data.Dataset:
            """The steps of an epoch as small elements: which examples, and where each is cropped and mirrored."""
            order = keys.permutation(request.seed, epoch, self.num_examples)
            key = keys.epoch_key(request.seed, keys.EPOCH, epoch)
            offsets, mirrored = image_ops.draw_crop_flip(key, self.num_examples, spec.pad_crop, spec.flip)

            def indexes_of(step: tf.Tensor) -> tuple[tf.Tensor, ...]:
                indexes = tf.slice(order, [step * request.batch_size + host_start], [request.host_batch])
                return epoch, indexes, tf.gather(offsets, indexes), tf.gather(mirrored, indexes)

            first = tf.maximum(request.start_step - epoch * steps_per_epoch, 0)
            return tf.data.Dataset.range(first, steps_per_epoch).map(indexes_of)

        def batch_of(epoch: Any, indexes: Any, offsets: Any, mirrored: Any) -> dict[str, tf.Tensor]:
            return augmented(epoch, indexes, offsets, mirrored) | {"label": tf.gather(labels, indexes)}

        epochs = tf.data.Dataset.range(request.start_step // steps_per_epoch, np.iinfo(np.int64).max)
        as_it_is = tf.autograph.experimental.do_not_convert  # AutoGraph would take seconds, and nothing here needs it
        batches = epochs.flat_map(as_it_is(steps_of)).map(as_it_is(batch_of), num_parallel_calls=_THREADS)
        return batches.prefetch(_PREFETCH).with_options(reading_options(_THREADS)).as_numpy_iterator()

    def eval_batches(self, spec: DataSpec, request: BatchRequest) -> Iterator[Batch]:
        """Makes this host's slice of each global batch, which may be nothing but padding."""

        def batch_of(start: int) -> Batch:
            count = min(max(self.num_examples - start, 0), request.host_batch)
            image = np.zeros((request.host_batch, spec.image_size, spec.image_size, 3), np.uint8)
            label = np.zeros(request.host_batch, np.int32)
            image[:count] = self.images[start : start + count]
            label[:count] = self.labels[start : start + count]
            return {"image": image, "label": label, "mask": np.arange(request.host_batch) < count}

        host_start = request.process_index * request.host_batch
        return (batch_of(start + host_start) for start in range(0, self.num_examples, request.batch_size))


def _augmenter(images: Any, spec: DataSpec, request: BatchRequest) -> Callable[..., dict[str, Any]]:
    """Returns the function (epoch, indexes, offsets, mirrored) -> {"image"} and, if lighting is on, {"lighting"}."""
    import tensorflow as tf

    from skipnet_jax.data import augment, image_ops, keys

    square = [spec.image_size, spec.image_size, 3]

    def each(change: Callable[..., Any], batch: Any, epoch: Any, indexes: Any) -> Any:
        """Applies an operation of `augment` to each image, with the image's own key."""

        def one(given: tuple[Any, Any]) -> Any:
            image, index = given
            return tf.ensure_shape(change(image, keys.example_key(request.seed, epoch, index), spec), square)

        return tf.map_fn(one, (batch, indexes), fn_output_signature=tf.TensorSpec(square, tf.uint8))

    def augmented(epoch: Any, indexes: Any, offsets: Any, mirrored: Any) -> dict[str, Any]:
        batch = tf.ensure_shape(tf.gather(images, indexes), [request.host_batch, *square])
        if augment.changes_whole_images(spec):
            batch = each(augment.whole_image, batch, epoch, indexes)
        if spec.pad_crop or spec.flip:
            batch = image_ops.pad_crop_flip(batch, offsets, mirrored, spec.pad_crop)
        if spec.color_jitter:
            batch = each(augment.recolor, batch, epoch, indexes)
        made = {"image": tf.ensure_shape(batch, [request.host_batch, *square])}
        if spec.lighting:
            made["lighting"] = tf.map_fn(
                lambda index: augment.lighting(keys.example_key(request.seed, epoch, index), spec),
                indexes,
                fn_output_signature=tf.TensorSpec([3], tf.float32),
            )
        return made

    return augmented
