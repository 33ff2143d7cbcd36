"""Opens data sets by name: digits, the data sets of TensorFlow Datasets, and your own images."""

import dataclasses
import fnmatch
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from skipnet_jax import files
from skipnet_jax.data import folders, holdout, layout, statistics, storage, tars, tfds_names, tfds_sources, tfrecords
from skipnet_jax.data.in_memory import InMemory
from skipnet_jax.data.listed import ListedSplit
from skipnet_jax.data.shards import Shards
from skipnet_jax.data.splits import DataSplit
from skipnet_jax.errors import DataError, UserError
from skipnet_jax.specs import DataSpec

SPLITS = ("train", "holdout", "test")


def load(spec: DataSpec, split: str) -> DataSplit:
    """Opens a split, whose order is always the same. A data set that is not prepared yet is prepared first.

    Args:
      spec: which data set, where, and at which image size.
      split: "train", "test" (for ImageNet, its validation images), or "holdout" if the spec holds images out.

    Raises:
      UserError: an unknown data set, or one that does not go with the rest of the spec.
      DataError: the data set is not here and cannot be fetched, or it is damaged.
    """
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}.")
    opened = _open(spec, split)
    if opened is None:
        got, mend = f"{spec.holdout!r}, which holds no images out", "Set it, or use `sources.load_holdout`."
        raise UserError("data.holdout", got, "a fraction, a number of images or a split", mend)
    return opened


def load_holdout(spec: DataSpec) -> DataSplit | None:
    """Opens the training images that choose the best checkpoint (`data.holdout`); None if the test images choose it.

    Raises:
      UserError, DataError: as `load` does.
    """
    return _open(spec, "holdout")


def _open(spec: DataSpec, split: str) -> DataSplit | None:
    spec = _expanded(spec)
    require_available(spec)
    opened: DataSplit | None
    with _reported_as_data_error(spec):
        if spec.name == "digits":
            opened = _divided(lambda whole: _read_digits(spec, whole), spec, split, has_test=True)
        elif spec.name == "tfrecords":
            has_test = "test" in tfrecords.read_index(spec.dir).splits
            opened = _divided(lambda whole: _open_tfrecords(spec, whole), spec, split, has_test=has_test)
        elif spec.name == "folder":
            opened = folders.open_folder(spec, split)
        elif spec.name == "webdataset":
            opened = tars.open_tars(spec, split)
        else:
            opened = tfds_sources.open_split(spec, split)
    if opened is None:
        return None
    if spec.mean:
        opened = dataclasses.replace(opened, statistics=statistics.of_spec(spec))
    if isinstance(opened, InMemory) and opened.images.shape[1:3] != (spec.image_size, spec.image_size):
        from skipnet_jax.data import image_ops

        opened = dataclasses.replace(opened, images=image_ops.resize(opened.images, spec.image_size))
    return _keep_classes(opened, spec.classes) if spec.classes else opened


def _divided(open_whole: Callable[[str], DataSplit], spec: DataSpec, split: str, *, has_test: bool) -> DataSplit | None:
    """Opens a split of a data set that has only "train" and "test", and takes the hold-out from "train"."""
    kept = holdout.parse(spec.holdout)
    if isinstance(kept, str) and kept:
        expected = f"a fraction or a number of the training images, since {spec.name} has no other splits"
        raise UserError("data.holdout", repr(kept), expected, "Change `data.holdout`.")
    if not isinstance(kept, holdout.Amount) or (split == "test" and has_test):
        return None if split == "holdout" else open_whole(split)
    rest, held_out = open_whole("train").divide(kept)
    return rest if split == "train" else dataclasses.replace(held_out, held_out=True)


def _expanded(spec: DataSpec) -> DataSpec:
    return dataclasses.replace(spec, dir=storage.expand(spec.dir))


def is_tfds(name: str) -> bool:
    """Whether the name is one of TensorFlow Datasets, whose data sets lie side by side in one folder."""
    return name not in (*tfds_names.OTHERS, tfds_names.FOLDER)


def require_available(spec: DataSpec, *, to_train: bool = False) -> None:
    """Checks within 5 seconds that `load` could get the data; imports TensorFlow only if it has to read them.

    Args:
      to_train: training images are needed too.

    Raises:
      UserError: an unknown data set, or fields that do not go together.
      DataError: the data set is not here and cannot be fetched; the message says what to do.
    """
    spec = _expanded(spec)
    if spec.name in tfds_names.OTHERS:
        _require_no_tfds_fields(spec)
    if spec.pattern != "*" and spec.name != "tfrecords":
        expected = "'*', since only tfrecords have shards to choose from"
        raise UserError("data.pattern", f"{spec.pattern!r} for {spec.name}", expected, "Leave out `data.pattern`.")
    if spec.name == "digits":
        if importlib.util.find_spec("sklearn") is None:
            expected = "scikit-learn, which contains the images"
            raise DataError("data.name", "'digits' without scikit-learn", expected, "Run: pip install scikit-learn")
        return
    if spec.name in tfds_names.FORMATS and not spec.dir:
        raise UserError("data.dir", "nothing", f"the folder that holds the {spec.name}", "Give `data.dir`.")
    with _reported_as_data_error(spec):
        if spec.name == "tfrecords":
            tfrecords.read_index(spec.dir)
        elif spec.name == "folder":
            layout.require(spec)
        elif spec.name == "webdataset":
            tars.find(spec)
        else:
            tfds_sources.require_available(spec, to_train=to_train)


def _require_no_tfds_fields(spec: DataSpec) -> None:
    """Refuses fields that only the data sets of TensorFlow Datasets have."""
    defaults = {"train_split": "", "test_split": "", "eval_classes": "all"}
    if spec.name != "webdataset":  # which has these two as well
        defaults |= {"image_key": "", "label_key": ""}
    values = dataclasses.asdict(spec)
    for field, default in defaults.items():
        if values[field] != default:
            owners = "TensorFlow Datasets" + (" or webdataset" if field.endswith("_key") else "")
            got = f"{values[field]!r} for {spec.name}"
            raise UserError(f"data.{field}", got, f"a data set of {owners}", f"Leave out `data.{field}`.")


@contextmanager
def _reported_as_data_error(spec: DataSpec) -> Iterator[None]:
    """Turns errors of the disk, and TensorFlow's errors about a bucket, into DataErrors."""
    expected = "a place that can be read"
    if files.is_local(spec.dir):
        try:
            yield
        except (PermissionError, NotADirectoryError, FileNotFoundError) as error:
            raise DataError(f"{error.filename}", f"{error.strerror}", expected, "Change `data.dir`.") from None
        return
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        mend = "Change `data.dir`, or let this machine read it: gcloud auth application-default login."
        raise DataError(spec.dir, error.message, expected, mend) from None


def _open_tfrecords(spec: DataSpec, split: str) -> Shards:
    """Opens shards in the project's own format."""
    index = tfrecords.read_index(spec.dir)
    if split not in index.splits:
        got = f"only a split {' and '.join(index.splits)}"
        raise DataError(spec.dir, got, f"a split {split}", "Make one, or change `data.dir`.")
    every = index.splits[split]
    pattern = spec.pattern if split == "train" else "*"
    chosen = [shard for shard in every if fnmatch.fnmatchcase(shard.name, pattern)]
    shards = tuple(sorted((shard for shard in chosen if shard.examples), key=lambda shard: shard.name))
    if not shards:
        expected = f"a pattern that matches some of the {len(every)} {split} shards, such as {every[0].name}"
        raise DataError("data.pattern", repr(spec.pattern), expected, "Change `data.pattern`.")
    tfrecords.require_shards(spec.dir, shards)
    offset, take_apart = index.label_offset, index.records.parser(index.class_names)

    def parse(serialized: Any) -> tuple[Any, Any]:
        import tensorflow as tf

        encoded, label = take_apart(serialized)
        # A label that 32 bits cannot hold stays out of range.
        return encoded, tf.cast(tf.clip_by_value(label - offset, -1, np.iinfo(np.int32).max), tf.int32)

    mend = f"Run {tfrecords.MAKE} --check={spec.dir} to find what is damaged."
    return Shards(name=index.name, class_names=index.class_names, shards=shards, parse=parse, mend=mend)


def _read_digits(spec: DataSpec, split: str) -> InMemory:
    """Reads scikit-learn's handwritten digits: 1,437 to train and 360 to test, 8x8 grey values 0..16."""
    import sklearn.datasets
    import sklearn.model_selection

    from skipnet_jax.data import image_ops

    digits = sklearn.datasets.load_digits()
    # Part of the data set's definition: results on another split could not be compared.
    parts = sklearn.model_selection.train_test_split(
        np.arange(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0
    )
    chosen = parts[0 if split == "train" else 1]
    grey = digits.images[chosen].astype(np.float32) * (255 / 16)
    return InMemory(
        name="digits",
        class_names=tuple("0123456789"),
        statistics=statistics.of_data("digits"),
        images=image_ops.resize(np.repeat(grey[..., None], 3, axis=3), spec.image_size),  # before any rounding
        labels=digits.target[chosen].astype(np.int32),
    )


def _keep_classes(split: DataSplit, classes: tuple[int, ...]) -> DataSplit:
    """Keeps only the examples of these classes, and renumbers the classes."""
    mend = "Change `data.classes`."
    if not isinstance(split, InMemory | ListedSplit):
        expected = "none, since only data in memory or in files can be reduced to some classes"
        raise UserError("data.classes", f"{classes} for {split.name}", expected, mend)
    wrong = [number for number in classes if number >= split.num_classes]
    if wrong:
        raise UserError("data.classes", f"{wrong}", f"numbers 0..{split.num_classes - 1} of {split.name}", mend)
    renumbered = np.full(split.num_classes, -1, np.int32)
    renumbered[list(classes)] = np.arange(len(classes))
    labels = renumbered[split.labels]
    kept = np.flatnonzero(labels >= 0)
    if not len(kept):
        raise DataError("data.classes", f"{classes}", f"classes that have images in {split.name}", mend)
    names = tuple(split.class_names[number] for number in classes)
    if isinstance(split, InMemory):
        return dataclasses.replace(split, images=split.images[kept], labels=labels[kept], class_names=names)
    return dataclasses.replace(split.chosen(labels >= 0), labels=labels[kept], class_names=names)
