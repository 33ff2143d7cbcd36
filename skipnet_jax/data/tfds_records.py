"""Reads records of TensorFlow Datasets (TFDS), parses them, and learns the classes from their labels."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from skipnet_jax.data.tfds_features import SEVERAL, Pair, is_image
from skipnet_jax.data.tfrecords import Shard
from skipnet_jax.errors import UserError

# With fewer images per label on average, the labels are not classes.
_LEAST_PER_CLASS = 2


def read(shards: tuple[Shard, ...]) -> Any:
    """A dataset of the records, in order."""
    import tensorflow as tf

    def open_shard(path: Any, skip: Any, count: Any) -> Any:
        return tf.data.TFRecordDataset(path).skip(skip).take(count)

    skips = tf.constant([shard.skip for shard in shards], tf.int64)
    counts = tf.constant([shard.examples for shard in shards], tf.int64)
    places = tf.data.Dataset.from_tensor_slices(([shard.path for shard in shards], skips, counts))
    return places.flat_map(tf.autograph.experimental.do_not_convert(open_shard))


def parser(pair: Pair, values: Sequence[Any] | None = None) -> Callable[[Any], tuple[Any, Any]]:
    """Returns TensorFlow operations that parse a record.

    Args:
      values: the labels of class 0, 1, ..., if the classes were learnt from the labels.

    Returns:
      The function from a serialized record to the encoded image, and its label (int32) or its labels padded with -1.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    as_pixels = not is_image(pair.image.kind)
    features = tfds.features.FeaturesDict(
        _merged(pair.image.nested(pair.image.kind), pair.label.nested(pair.label.kind))
    )
    decoders = None if as_pixels else pair.image.nested(tfds.decode.SkipDecoding())
    table = None
    if values is not None:
        kind = tf.string if isinstance(values[0], bytes) else tf.int64
        initializer = tf.lookup.KeyValueTensorInitializer(tf.constant(values, kind), tf.range(len(values)))
        table = tf.lookup.StaticHashTable(initializer, default_value=-1)

    def parse(serialized: Any) -> tuple[Any, Any]:
        example = features.deserialize_example(serialized, decoders=decoders)
        encoded, label = pair.image.of(example), pair.label.of(example)
        if as_pixels:
            encoded = tf.io.encode_png(encoded, compression=0)
        if table is not None:
            return encoded, table.lookup(_comparable(label))
        label = tf.cast(label, tf.int32)
        if pair.several:
            label = tf.pad(label, [[0, SEVERAL - tf.size(label)]], constant_values=-1)
        return encoded, label

    return parse


def read_labels(pair: Pair, records: Any) -> list[Any]:
    """Reads the label of each record: a number, or a text as bytes.

    Args:
      records: a dataset of serialized records.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(pair.label.nested(pair.label.kind))

    def label_of(serialized: Any) -> Any:
        return _comparable(pair.label.of(features.deserialize_example(serialized)))

    labels = records.map(tf.autograph.experimental.do_not_convert(label_of), num_parallel_calls=tf.data.AUTOTUNE).batch(
        1000
    )
    return [label for batch in labels.as_numpy_iterator() for label in batch.tolist()]


def classes_of(pair: Pair, labels: Sequence[Any]) -> tuple[list[Any], tuple[str, ...]]:
    """Learns classes from labels that are numbers or texts: returns the distinct labels in order, and their names.

    Raises:
      UserError: there are fewer than two images per label.
    """
    values = sorted(set(labels))
    if len(values) * _LEAST_PER_CLASS > len(labels):
        got = f"{pair.label.key!r}, which has {len(values):,} values in {len(labels):,} images"
        raise UserError("data.label_key", got, "a class, which comes more than once", "Change `data.label_key`.")
    if pair.label.kind.np_dtype == np.bool_:
        return values, tuple(str(bool(value)) for value in values)
    texts = (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values)
    return values, tuple(texts)


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Merges two dicts of dicts."""
    both = {key: _merged(one[key], other[key]) for key in one.keys() & other.keys()}
    return {**one, **other, **both}


def _comparable(label: Any) -> Any:
    import tensorflow as tf

    return label if label.dtype == tf.string else tf.cast(label, tf.int64)
