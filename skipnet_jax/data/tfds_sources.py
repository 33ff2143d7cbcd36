"""The data sets of TensorFlow Datasets (TFDS): small ones in memory, ImageNet and its test sets in shards.

`tfds_builders.py` prepares them.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from skipnet_jax.data import statistics, storage, tfds_builders
from skipnet_jax.data.in_memory import InMemory
from skipnet_jax.data.shards import Shards
from skipnet_jax.data.splits import DataSplit
from skipnet_jax.data.tfrecords import Shard
from skipnet_jax.errors import DataError, UserError
from skipnet_jax.specs import DataSpec

# Data set -> split here -> split in TFDS.
SPLITS = {
    "cifar10": {"train": "train", "test": "test"},
    "cifar100": {"train": "train", "test": "test"},
    "fashion_mnist": {"train": "train", "test": "test"},
    "imagenet2012": {"train": "train", "test": "validation"},
    "imagenet2012_real": {"test": "validation"},
    "imagenet_a": {"test": "test"},
    "imagenet_r": {"test": "test"},
    "imagenet_sketch": {"test": "test"},
    "imagenet_v2": {"test": "test"},
}

# These have images of 200 of ImageNet's classes, with ImageNet's labels.
WITH_OWN_CLASSES = ("imagenet_a", "imagenet_r")
_OWN_CLASSES = 200

IN_MEMORY = ("cifar10", "cifar100", "fashion_mnist")

# Room for the right labels of an image of imagenet2012_real; most images have one or two.
_REAL_LABELS = 32


def open_split(spec: DataSpec, split: str) -> DataSplit:
    """Opens a split ("train" or "test"). A data set that is not prepared yet is prepared first.

    Raises:
      UserError: the data set is for evaluation, and has no training images.
      DataError: it cannot be prepared, or is damaged.
    """
    name = spec.name.partition("/")[0]
    if split not in SPLITS[name]:
        raise UserError(
            "data.name",
            f"{spec.name} for training",
            "a data set with training images, since this one is for evaluation alone",
            "Change `data.name`; imagenet2012 has the training images.",
        )
    builder = tfds_builders.find_builder(spec)
    if not builder.is_prepared():
        tfds_builders.prepare(builder)
    part = builder.info.splits.get(SPLITS[name][split])
    if part is None:
        raise DataError(
            spec.name,
            f"{', '.join(builder.info.splits)} in {builder.data_dir}",
            f"a split {SPLITS[name][split]!r} too",
            tfds_builders.how_to_mend(builder),
        )
    return _read_small(builder, part) if name in IN_MEMORY else _open_imagenet(spec, builder, part)


def _read_small(builder: Any, part: Any) -> InMemory:
    """Reads CIFAR-10, CIFAR-100 (with 100 fine classes) or Fashion-MNIST (whose grey becomes three equal channels)."""
    import tensorflow_datasets as tfds

    read_config = tfds.ReadConfig(try_autocache=False)
    examples = builder.as_dataset(split=part.name, batch_size=1000, shuffle_files=False, read_config=read_config)
    images = np.empty((part.num_examples, *builder.info.features["image"].shape), np.uint8)
    labels = np.empty(part.num_examples, np.int32)
    start = 0
    for batch in examples.as_numpy_iterator():
        stop = start + len(batch["label"])
        images[start:stop], labels[start:stop] = batch["image"], batch["label"]
        start = stop
    if start != part.num_examples:
        raise DataError(
            builder.name,
            f"{start} {part.name} images",
            f"{part.num_examples}, as {builder.data_dir} says of itself",
            tfds_builders.how_to_mend(builder),
        )
    if images.shape[-1] == 1:
        images = np.repeat(images, 3, axis=-1)
    return InMemory(
        name=builder.name,
        class_names=tuple(builder.info.features["label"].names),
        statistics=statistics.of_data(builder.name),
        images=images,
        labels=labels,
    )


def _open_imagenet(spec: DataSpec, builder: Any, part: Any) -> Shards:
    """Opens ImageNet or one of its test sets: JPEG files in TFRecords, whose numbers of records TFDS knows."""
    if builder.info.file_format.value != "tfrecord":
        raise DataError(
            f"{builder.data_dir}",
            f"files of format {builder.info.file_format.value}",
            "tfrecord",
            tfds_builders.how_to_mend(builder),
        )
    pairs = zip(part.filepaths, part.shard_lengths, strict=True)
    shards = tuple(Shard(str(path), count) for path, count in pairs if count)
    present = {path.name for path in builder.data_path.iterdir()}
    missing = [shard.name for shard in shards if shard.name not in present]
    if missing:
        raise DataError(
            f"{builder.data_dir}",
            f"{len(shards) - len(missing)} of {len(shards)} shards of {part.name}",
            f"all; missing are {storage.some(missing)}",
            tfds_builders.how_to_mend(builder),
        )
    several = builder.name == "imagenet2012_real"
    key = "real_label" if several else "label"
    feature = builder.info.features[key]
    opened = Shards(
        name=spec.name,
        class_names=tuple((feature.feature if several else feature).names),
        shards=shards,
        parse=functools.partial(_parse, {name: builder.info.features[name] for name in ("image", key)}),
        label_width=_REAL_LABELS if several else 0,
        mend=tfds_builders.how_to_mend(builder),
    )
    if spec.eval_classes == "all":
        return opened
    return dataclasses.replace(opened, classes=_classes_of(opened))


def _parse(features: dict[str, Any], serialized: Any) -> tuple[Any, Any]:
    """Takes a record apart in TensorFlow operations: the encoded image, and its label or its labels padded with -1."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    decoders = {"image": tfds.decode.SkipDecoding()}
    example = tfds.features.FeaturesDict(features).deserialize_example(serialized, decoders=decoders)
    if "label" in example:
        return example["image"], tf.cast(example["label"], tf.int32)
    labels = tf.cast(example["real_label"], tf.int32)
    return example["image"], tf.pad(labels, [[0, _REAL_LABELS - tf.size(labels)]], constant_values=-1)


def _classes_of(split: Shards) -> tuple[int, ...]:
    """Finds the classes that occur, by reading all records: a minute for ImageNet-R's 2 GB."""
    import tensorflow as tf

    records = tf.data.TFRecordDataset([shard.path for shard in split.shards])
    labels = records.map(lambda record: split.parse(record)[1], num_parallel_calls=4)
    try:
        found = sorted({int(label) for label in labels.as_numpy_iterator()})
    except tf.errors.OpError as error:
        raise DataError(split.name, error.message, "data that can be read", split.mend) from None
    if len(found) != _OWN_CLASSES:
        mend = f"{split.mend} Or leave out `data.eval_classes`."
        raise DataError(split.name, f"{len(found)} classes", f"its own {_OWN_CLASSES}", mend)
    return tuple(found)
