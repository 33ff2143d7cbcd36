"""Your own images: DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg (or val/, validation/), local or gs://.

The name of a folder is the name of its class, and classes are numbered in the order of their names. An image may lie
deeper within the folder of its class.
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Int32

from skipnet_jax import files
from skipnet_jax.data import storage
from skipnet_jax.data.encoded import EncodedSplit
from skipnet_jax.data.splits import BatchRequest
from skipnet_jax.errors import DataError
from skipnet_jax.specs import DataSpec

_log = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png")
FOLDERS = {"train": ("train",), "test": ("test", "val", "validation")}
_LAYOUT = f"DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg (or val/, validation/; {', '.join(EXTENSIONS)})"
_MEND = "Change `data.dir`, or move the images."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files(EncodedSplit):
    """One image file per example.

    Args:
      paths: of the files, local or gs://.
      labels: 0..number of classes - 1.
    """

    paths: tuple[str, ...]
    labels: Int32[np.ndarray, "n"]
    mend: str = "Replace or remove the file."

    @property
    def num_examples(self) -> int:
        return len(self.paths)

    def describe(self, index: int) -> str:
        return self.paths[index]

    def reader(self) -> Callable[[Any, Any], tuple[Any, Any]]:
        import tensorflow as tf

        paths, labels = tf.constant(self.paths), tf.constant(self.labels)
        return lambda index, record: (tf.io.read_file(paths[index]), labels[index])

    def train_records(self, request: BatchRequest) -> Any:
        """Follows a permutation of all files, a new one in each epoch."""
        import tensorflow as tf

        from skipnet_jax.data import keys

        steps = request.steps_per_epoch(self.num_examples)
        host_start = request.process_index * request.host_batch

        def epoch_of(epoch: Any) -> Any:
            order = keys.permutation(request.seed, epoch, self.num_examples)

            def step_of(step: Any) -> Any:
                indexes = tf.slice(order, [step * request.batch_size + host_start], [request.host_batch])
                return tf.data.Dataset.from_tensor_slices(indexes)

            first = tf.maximum(request.start_step - epoch * steps, 0)
            return tf.data.Dataset.range(first, steps).flat_map(step_of).map(lambda index: (epoch, index, "file"))

        epochs = tf.data.Dataset.range(request.start_step // steps, np.iinfo(np.int64).max)
        return epochs.flat_map(tf.autograph.experimental.do_not_convert(epoch_of))

    def eval_records(self, start: int, stop: int) -> Any:
        import tensorflow as tf

        return tf.data.Dataset.range(start, stop).map(lambda index: (tf.zeros([], tf.int64), index, "file"))


def open_folder(spec: DataSpec, split: str) -> Files:
    """Lists the images of a split.

    Args:
      spec: says where.
      split: "train" or "test".

    Raises:
      DataError: there is no such folder, a class has no images, or the splits have different classes.
    """
    place = find_split(spec.dir, split)
    names = sorted(_walk(place))
    classes = _subfolders(place)
    other = "test" if split == "train" else "train"
    if _candidates(spec.dir, other):
        _require_same(spec.dir, split, set(classes), other, set(_subfolders(find_split(spec.dir, other))))
    number = {name: k for k, name in enumerate(classes)}
    images = [name for name in names if "/" in name and name.lower().endswith(EXTENSIONS)]
    labels = np.asarray([number[name.partition("/")[0]] for name in images], np.int32)
    if not images:
        raise DataError(place, f"no images in {len(classes)} folders", _LAYOUT, _MEND)
    if empty := [name for name in classes if number[name] not in set(labels.tolist())]:
        raise DataError(place, f"{len(empty)} classes without images: {storage.some(empty)}", _LAYOUT, _MEND)
    if ignored := sorted(set(names) - set(images)):
        _log.warning("%s: %d other files are left out: %s", place, len(ignored), storage.some(ignored))
    return Files(
        name=os.path.basename(spec.dir.rstrip("/")) or "folder",
        class_names=tuple(classes),
        paths=tuple(f"{place}/{name}" for name in images),
        labels=labels,
    )


def find_split(directory: str, split: str) -> str:
    """Finds the folder of a split.

    Raises:
      DataError: there is none, or more than one.
    """
    found = _candidates(directory, split)
    if len(found) != 1:
        got = "no folder" if not found else f"{' and '.join(found)}, either of which may be meant,"
        raise DataError(directory, f"{got} for the {split} images", _LAYOUT, _MEND)
    return f"{directory.rstrip('/')}/{found[0]}"


def _candidates(directory: str, split: str) -> list[str]:
    present = _subfolders(directory)
    return [name for name in FOLDERS[split] if name in present]


def _subfolders(directory: str) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones."""
    if not files.is_local(directory):  # a bucket would be asked about each name, but its listing marks the folders
        import tensorflow as tf

        names = [name.rstrip("/") for name in tf.io.gfile.listdir(directory) if name.endswith("/")]
    elif os.path.isdir(directory):
        names = [entry.name for entry in os.scandir(directory) if entry.is_dir()]
    else:
        raise DataError(directory, "no folder", _LAYOUT, _MEND)
    return sorted(name for name in names if not name.startswith("."))


def _walk(directory: str) -> Iterator[str]:
    """Paths of all files below a folder, relative to it, without hidden ones."""
    if files.is_local(directory):
        levels = os.walk(directory, followlinks=True)
    else:
        import tensorflow as tf

        levels = tf.io.gfile.walk(directory)
    for level, _, names in levels:
        within = level.rstrip("/")[len(directory) :].strip("/")
        if not any(part.startswith(".") for part in within.split("/")):
            yield from (f"{within}/{name}".lstrip("/") for name in names if not name.startswith("."))


def _require_same(directory: str, one: str, ones: set[str], other: str, others: set[str]) -> None:
    only = [
        f"only in {split}: {storage.some(sorted(names))}"
        for split, names in ((one, ones - others), (other, others - ones))
        if names
    ]
    if only:
        raise DataError(directory, f"classes {'; '.join(only)}", "the same folders in both", "Rename or add them.")
