"""The data sets by name: digits, those of TensorFlow Datasets, and your own."""

import dataclasses
import difflib
import fnmatch
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from skipnet_jax.data import folders, statistics, storage, tfds_builders, tfds_sources, tfrecords
from skipnet_jax.data.splits import InMemory, Shards, Source
from skipnet_jax.errors import DataError, UserError
from skipnet_jax.specs import DataSpec

SPLITS = ("train", "test")
_NAMES = ("digits", "tfrecords", "folder", *tfds_sources.SPLITS)


def load(spec: DataSpec, split: str) -> Source:
    """Opens a split, preparing the data set first where that has not been done; small ones are read into memory.

    Args:
      spec: which data set, where, and at which image size.
      split: "train" or "test" (ImageNet's validation images).

    Returns:
      The split, in an order that is always the same.

    Raises:
      ValueError: an unknown data set or split, or one that does not go with the rest of the spec.
      DataError: the data set is not here and cannot be fetched, or is damaged.
    """
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}.")  # only our own code names it
    require_available(spec)
    with _told_as_data_error(spec):
        if spec.name == "digits":
            source: Source = _read_digits(spec, split)
        elif spec.name == "tfrecords":
            source = _open_tfrecords(spec, split)
        elif spec.name == "folder":
            source = folders.open_folder(spec, split)
        else:
            source = tfds_sources.open_split(spec, split)
    if isinstance(source, InMemory) and source.images.shape[1:3] != (spec.image_size, spec.image_size):
        from skipnet_jax.data import image_ops

        source = dataclasses.replace(source, images=image_ops.resize(source.images, spec.image_size))
    return _keep_classes(source, spec.classes) if spec.classes else source


def is_tfds(name: str) -> bool:
    """Whether a data set is one of TensorFlow Datasets'."""
    return name.partition("/")[0] in tfds_sources.SPLITS


def require_available(spec: DataSpec) -> None:
    """Raises within 5 seconds, and unless in a bucket before TensorFlow is imported, if `load` could not get the data.

    Args:
      spec: which data set, and where.

    Raises:
      ValueError: an unknown data set, or fields that do not go together.
      DataError: the data set is not here and cannot be fetched; the message says what to do.
    """
    if spec.name.partition("/")[0] not in _NAMES or spec.name.startswith(("digits/", "tfrecords/", "folder/")):
        nearest = difflib.get_close_matches(spec.name, _NAMES, n=len(_NAMES), cutoff=0)
        raise UserError("data.name", repr(spec.name), f"one of {', '.join(nearest)}", "Change `data.name`.")
    if spec.eval_classes == "own" and spec.name not in tfds_sources.WITH_OWN_CLASSES:
        raise UserError(
            "data.eval_classes",
            f"'own' for {spec.name}",
            f"'all', since only {' and '.join(tfds_sources.WITH_OWN_CLASSES)} have fewer classes than the network",
            "Leave out `data.eval_classes`.",
        )
    if spec.pattern != "*" and spec.name != "tfrecords":
        raise UserError(
            "data.pattern",
            f"{spec.pattern!r} for {spec.name}",
            "'*', since only tfrecords have shards to choose from",
            "Leave out `data.pattern`.",
        )
    if spec.name == "digits":
        if importlib.util.find_spec("sklearn") is None:
            raise DataError(
                "data.name",
                "'digits' without scikit-learn",
                "scikit-learn, which brings the images",
                "Run: pip install scikit-learn",
            )
    elif spec.name in ("tfrecords", "folder"):
        if not spec.dir:
            raise UserError("data.dir", "nothing", f"the folder that holds the {spec.name}", "Give `data.dir`.")
        with _told_as_data_error(spec):
            if spec.name == "tfrecords":
                tfrecords.read_index(spec.dir)
            else:
                folders.find_split(spec.dir, "test")
    else:
        with _told_as_data_error(spec):
            tfds_builders.require_available(spec)


@contextmanager
def _told_as_data_error(spec: DataSpec) -> Iterator[None]:
    """A place that cannot be read: TensorFlow's errors of a bucket, and the disk's, become DataErrors."""
    if not storage.is_bucket(spec.dir):
        try:
            yield
        except (PermissionError, NotADirectoryError, FileNotFoundError) as error:
            raise DataError(
                f"{error.filename}", f"{error.strerror}", "a place that can be read", "Change `data.dir`."
            ) from None
        return
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        raise DataError(
            spec.dir,
            error.message,
            "a place that can be read",
            "Change `data.dir`, or let this machine read it: gcloud auth application-default login.",
        ) from None


def _open_tfrecords(spec: DataSpec, split: str) -> Shards:
    """Shards of the project's own format."""
    index = tfrecords.read_index(spec.dir)
    if split not in index.splits:
        raise DataError(spec.dir, ", ".join(index.splits), f"a split {split!r}", "Make one, or change `data.dir`.")
    every = index.splits[split]
    pattern = spec.pattern if split == "train" else "*"
    chosen = [shard for shard in every if fnmatch.fnmatchcase(shard.name, pattern)]
    shards = tuple(sorted((shard for shard in chosen if shard.examples), key=lambda shard: shard.name))
    if not shards:
        raise DataError(
            "data.pattern",
            repr(spec.pattern),
            f"one that fits some of the {len(every)} {split} shards, such as {every[0].name}",
            "Change `data.pattern`.",
        )
    tfrecords.require_shards(spec.dir, shards)
    offset = index.label_offset

    def parse(serialized: Any) -> tuple[Any, Any]:
        import tensorflow as tf

        encoded, label = tfrecords.parse(serialized)
        # What 32 bits cannot hold stays out of range.
        return encoded, tf.cast(tf.clip_by_value(label - offset, -1, np.iinfo(np.int32).max), tf.int32)

    check = f"Run {tfrecords.MAKE} --check={spec.dir} to find what is damaged"
    return Shards(name=index.name, class_names=index.class_names, shards=shards, parse=parse, how_to_check=check)


def _read_digits(spec: DataSpec, split: str) -> InMemory:
    """scikit-learn's handwritten digits: 1,437 to train and 360 to test, 8x8 grey values 0..16."""
    import sklearn.datasets
    import sklearn.model_selection

    from skipnet_jax.data import image_ops

    digits = sklearn.datasets.load_digits()
    # Part of the data set's definition: another split would make results incomparable.
    halves = sklearn.model_selection.train_test_split(
        np.arange(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0
    )
    chosen = halves[SPLITS.index(split)]
    grey = digits.images[chosen].astype(np.float32) * (255 / 16)
    return InMemory(
        name="digits",
        class_names=tuple("0123456789"),
        statistics=statistics.of_data("digits"),
        images=image_ops.resize(np.repeat(grey[..., None], 3, axis=3), spec.image_size),  # of numbers not yet whole
        labels=digits.target[chosen].astype(np.int32),
    )


def _keep_classes(source: Source, classes: tuple[int, ...]) -> Source:
    """Leaves out the examples of all other classes, and numbers these anew."""
    advice = "Change `data.classes`."
    if isinstance(source, Shards):
        raise UserError(
            "data.classes",
            f"{classes} for {source.name}",
            "none, since shards are read as they are; classes can be chosen of data in memory or in a folder",
            advice,
        )
    wrong = [number for number in classes if number >= source.num_classes]
    if wrong:
        raise UserError("data.classes", f"{wrong}", f"numbers 0..{source.num_classes - 1} of {source.name}", advice)
    renumbered = np.full(source.num_classes, -1, np.int32)
    renumbered[list(classes)] = np.arange(len(classes))
    labels = renumbered[source.labels]
    kept = np.flatnonzero(labels >= 0)
    if not len(kept):
        raise DataError("data.classes", f"{classes}", f"classes of which {source.name} has images", advice)
    names = tuple(source.class_names[number] for number in classes)
    if isinstance(source, InMemory):
        return dataclasses.replace(source, images=source.images[kept], labels=labels[kept], class_names=names)
    paths = tuple(source.paths[k] for k in kept)
    return dataclasses.replace(source, paths=paths, labels=labels[kept], class_names=names)
