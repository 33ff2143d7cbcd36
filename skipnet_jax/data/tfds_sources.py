"""The data sets of TensorFlow Datasets (TFDS): small images in memory, others in the shards that TFDS has written.

`tfds_builders.py` prepares them, `tfds_features.py` finds the image and the label, `tfds_splits.py` divides the
records.
"""

import dataclasses
import logging
import operator
from typing import Any

import numpy as np

from skipnet_jax.data import (
    holdout,
    statistics,
    storage,
    tfds_builders,
    tfds_features,
    tfds_names,
    tfds_records,
    tfds_splits,
)
from skipnet_jax.data.in_memory import InMemory
from skipnet_jax.data.shards import Shards
from skipnet_jax.data.splits import CENTER, WHOLE, DataSplit
from skipnet_jax.errors import DataError, UserError
from skipnet_jax.specs import DataSpec

_log = logging.getLogger(__name__)

# Small images are kept in memory if they take no more bytes than this; CIFAR takes 150 MB, EuroSAT 330 MB.
_IN_MEMORY = 2**30
_BATCH = 1000


def require_available(spec: DataSpec, *, to_train: bool) -> None:
    """Raises a UserError within 5 seconds if the data set does not fit the spec, or cannot be prepared.

    Args:
      to_train: also require one label per image and, if the data set is prepared, training images.
    """
    builder = tfds_names.find_builder(spec)
    pair = tfds_features.find(builder, spec)
    if to_train:
        _require_one_label(spec, pair)
    tfds_builders.require_available(builder)
    if to_train and builder.is_prepared():
        _require_training_images(builder, spec, _find_uses(builder, spec, pair))


def open_split(spec: DataSpec, split: str) -> DataSplit | None:
    """Opens a split ("train", "holdout" or "test"). A data set that is not prepared yet is prepared first.

    Returns:
      None if there is no hold-out.

    Raises:
      UserError: the data set is of another kind, or lacks this split or something else that the spec names.
      DataError: it cannot be prepared, or is damaged.
    """
    builder = tfds_names.find_builder(spec)
    pair = tfds_features.find(builder, spec)
    if not builder.is_prepared():
        tfds_builders.prepare(builder)
        builder = tfds_names.find_builder(spec)
        pair = tfds_features.find(builder, spec)  # now it knows the names of the classes
    tfds_builders.require_records(builder)
    uses = _find_uses(builder, spec, pair)
    kept = holdout.parse(spec.holdout)
    amount = kept if isinstance(kept, holdout.Amount) else None
    use = operator.attrgetter(split)(uses)
    divided = amount is not None and (split != "test" or not uses.test.parts)
    stands_in = split == "test" and not uses.test.parts  # without test images, the hold-out is the test split
    if divided:
        use = uses.train
    elif stands_in:
        use = uses.holdout
    if split == "holdout" and not use.parts:
        return None
    if split != "test":
        _require_one_label(spec, pair)
        tfds_splits.require_apart("data.test_split", uses.test, [uses.train, uses.holdout])
    if split == "train" or divided:
        _require_training_images(builder, spec, uses)
    if not use.parts:
        raise tfds_splits.lacking(builder, spec)
    opened = _open(spec, builder, pair, uses, use)
    if isinstance(opened, Shards) and builder.info.disable_shuffling and split != "test":
        _require_shuffled(builder, divided)
    if divided:
        assert amount is not None
        rest, held_out = opened.divide(amount)
        opened = rest if split == "train" else dataclasses.replace(held_out, place=f"part of {use.place}")
    return dataclasses.replace(opened, held_out=split == "holdout" or stands_in)


def _find_uses(builder: Any, spec: DataSpec, pair: tfds_features.Pair) -> tfds_splits.Uses:
    def is_labelled(split: str) -> bool:
        first = tfds_splits.shards(builder, tfds_splits.whole(builder, split))[:1]
        labels = [] if pair.several else tfds_records.read_labels(pair, tfds_records.read(first).take(1))
        return not any(isinstance(label, int) and label < 0 for label in labels)

    return tfds_splits.find(builder, spec, is_labelled=is_labelled)


def _open(
    spec: DataSpec, builder: Any, pair: tfds_features.Pair, uses: tfds_splits.Uses, use: tfds_splits.Use
) -> InMemory | Shards:
    shards = tfds_splits.shards(builder, use)
    learnt = tfds_splits.shards(builder, uses.train if uses.train.parts else use)
    tfds_builders.require_files(builder, [shard.name for shard in (*shards, *learnt)])
    mend = tfds_builders.how_to_mend(builder)
    values, class_names = None, pair.class_names
    if class_names is None:
        with tfds_builders.reported_as_damage(builder):
            values, class_names = tfds_records.classes_of(
                pair, tfds_records.read_labels(pair, tfds_records.read(learnt))
            )
    usual = (pair.image.key, pair.label.key) == ("image", "label")
    opened = Shards(
        name=tfds_names.name_of(builder, spec),
        class_names=class_names,
        place=use.place if usual else f"{use.place} ({pair.image.key}, {pair.label.key})",
        statistics=statistics.of_data(spec.name),
        crop=WHOLE if pair.side else CENTER,
        shards=shards,
        parse=tfds_records.parser(pair, values),
        label_width=pair.label_width,
        mend=mend,
    )
    pixels = opened.num_examples * max(pair.side, spec.image_size) ** 2
    if pair.side and not pair.several and 3 * pixels <= _IN_MEMORY:
        with tfds_builders.reported_as_damage(builder):
            return _with_own_classes(_in_memory(opened, spec, pair.side, builder), spec)
    return _with_own_classes(opened, spec)


def _in_memory(split: Shards, spec: DataSpec, side: int, builder: Any) -> InMemory:
    """Reads small images as RGB, whatever their channels."""
    import tensorflow as tf

    from skipnet_jax.data import decoding

    def decoded(record: Any) -> tuple[Any, Any]:
        encoded, label = split.parse(record)
        return tf.ensure_shape(decoding.decode(encoded, spec.background), [side, side, 3]), label

    images = np.empty((split.num_examples, side, side, 3), np.uint8)
    labels = np.empty(split.num_examples, np.int32)
    as_it_is = tf.autograph.experimental.do_not_convert
    examples = tfds_records.read(split.shards).map(
        as_it_is(decoded), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    start = 0
    for some_images, some_labels in examples.batch(_BATCH).as_numpy_iterator():
        stop = start + len(some_labels)
        images[start:stop], labels[start:stop] = some_images, some_labels
        start = stop
    if start != split.num_examples:
        expected = f"{split.num_examples}, as recorded in {builder.data_dir}"
        raise DataError(split.name, f"{start} images of {split.place}", expected, split.mend)
    wrong = labels[(labels < 0) | (labels >= split.num_classes)]
    if len(wrong):
        got, expected = f"label {wrong[0]} among {split.place}", f"0..{split.num_classes - 1}"
        raise DataError(split.name, got, expected, split.mend)
    return InMemory(
        name=split.name,
        class_names=split.class_names,
        place=split.place,
        statistics=split.statistics,
        images=images,
        labels=labels,
    )


def _with_own_classes(split: InMemory | Shards, spec: DataSpec) -> InMemory | Shards:
    """Limits predictions to the classes that occur in the split, if `data.eval_classes` says so.

    For shards, this reads all records: ImageNet-R's 2 GB take a minute.
    """
    if spec.eval_classes == "all":
        return split
    import tensorflow as tf

    if isinstance(split, InMemory):
        found = np.unique(split.labels).tolist()
    else:
        labels = tfds_records.read(split.shards).map(lambda record: split.parse(record)[1], num_parallel_calls=4)
        try:
            found = sorted({int(number) for label in labels.as_numpy_iterator() for number in label.ravel()} - {-1})
        except tf.errors.OpError as error:
            raise DataError(split.name, storage.reason(error), "data that can be read", split.mend) from None
    if len(found) < 2:
        got, mend = f"images of {len(found)} class", "Leave out `data.eval_classes`."
        raise UserError("data.eval_classes", f"'own' for {got}", "two classes or more", mend)
    return dataclasses.replace(split, classes=tuple(found))


def _require_one_label(spec: DataSpec, pair: tfds_features.Pair) -> None:
    if pair.several:
        raise UserError(
            "data.name",
            f"{spec.name} for training, whose {pair.label.key} may list several classes",
            "a data set with one label per image; with several, it can only be evaluated: any of them counts as right",
            "Change `data.name`, or give `data.label_key`.",
        )


def _require_training_images(builder: Any, spec: DataSpec, uses: tfds_splits.Uses) -> None:
    if not uses.train.parts:
        raise UserError(
            "data.name",
            f"{spec.name} for training, which has {tfds_splits.list_splits(builder)}",
            "a data set with training images, since this one is for evaluation alone",
            "Change `data.name`, or give `data.train_split`.",
        )


def _require_shuffled(builder: Any, divided: bool) -> None:
    """Refuses to hold out the last records of unshuffled shards; without a hold-out, warns about their order."""
    name = builder.info.full_name
    if divided:
        expected = "a split, since the last records belong to only some of the classes"
        raise UserError("data.holdout", f"a number for {name}, which is not shuffled", expected, "Name a split.")
    _log.warning("%s is not shuffled: training mixes its records only within windows", name)
