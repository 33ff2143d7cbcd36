"""Your own images: DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg (or val/, validation/), local or gs://.

A folder's name is the class's name, and classes are numbered in the order of their names. Images may lie deeper within
the folder of their class.
"""

import logging
import os
from collections.abc import Iterator

import numpy as np

from skipnet_jax.data import storage
from skipnet_jax.data.splits import Files
from skipnet_jax.errors import DataError
from skipnet_jax.specs import DataSpec

_log = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png")
FOLDERS = {"train": ("train",), "test": ("test", "val", "validation")}
_LAYOUT = f"DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg (or val/, validation/; {', '.join(EXTENSIONS)})"
_MEND = "Change `data.dir`, or move the images."
# Names that a message lists one by one.
_NAMED_AT_MOST = 5


def open_folder(spec: DataSpec, split: str) -> Files:
    """Lists the images of a split.

    Args:
      spec: says where.
      split: "train" or "test".

    Raises:
      DataError: there is no such folder, a class has no images, or the splits have different classes.
    """
    place = find_split(spec.dir, split)
    files = sorted(_walk(place))
    classes = sorted({name.partition("/")[0] for name in _subfolders(place)})
    other = "test" if split == "train" else "train"
    if _found(spec.dir, other):
        _require_same(spec.dir, {split: set(classes), other: set(_subfolders(find_split(spec.dir, other)))})
    number = {name: k for k, name in enumerate(classes)}
    images = [file for file in files if "/" in file and file.lower().endswith(EXTENSIONS)]
    present = {file.partition("/")[0] for file in images}
    empty = [name for name in classes if name not in present]
    if not images or empty:
        what = (
            f"{len(empty)} classes without images: {_some(empty)}" if images else f"no images in {len(classes)} folders"
        )
        raise DataError(place, what, _LAYOUT, _MEND)
    ignored = sorted(set(files) - set(images))
    if ignored:
        _log.warning("%s: %d other files are left out: %s", place, len(ignored), _some(ignored))
    return Files(
        name=os.path.basename(spec.dir.rstrip("/")) or "folder",
        class_names=tuple(classes),
        paths=tuple(storage.join(place, file) for file in images),
        labels=np.asarray([number[file.partition("/")[0]] for file in images], np.int32),
    )


def find_split(directory: str, split: str) -> str:
    """The folder of a split.

    Raises:
      DataError: there is none, or more than one.
    """
    found = _found(directory, split)
    if len(found) != 1:
        what = "no folder" if not found else f"{' and '.join(found)}, which may be either"
        raise DataError(directory, f"{what} for the {split} images", _LAYOUT, _MEND)
    return storage.join(directory, found[0])


def _found(directory: str, split: str) -> list[str]:
    present = _subfolders(directory)
    return [name for name in FOLDERS[split] if name in present]


def _subfolders(directory: str) -> list[str]:
    """Names of the folders in a folder, but for hidden ones."""
    if storage.is_bucket(directory):
        import tensorflow as tf

        names = [name.rstrip("/") for name in tf.io.gfile.listdir(directory) if name.endswith("/")]
    elif os.path.isdir(directory):
        names = [entry.name for entry in os.scandir(directory) if entry.is_dir()]
    else:
        raise DataError(directory, "no folder", _LAYOUT, _MEND)
    return sorted(name for name in names if not name.startswith("."))


def _walk(directory: str) -> Iterator[str]:
    """Paths of all files below, relative to the folder, but for hidden ones."""
    if storage.is_bucket(directory):
        import tensorflow as tf

        levels = tf.io.gfile.walk(directory)
    else:
        levels = os.walk(directory, followlinks=True)
    for level, _, names in levels:
        within = level.rstrip("/")[len(directory) :].strip("/")
        if not any(part.startswith(".") for part in within.split("/")):
            yield from (f"{within}/{name}".lstrip("/") for name in names if not name.startswith("."))


def _require_same(directory: str, classes: dict[str, set[str]]) -> None:
    (one, ones), (other, others) = classes.items()
    only = [
        f"only in {split}: {_some(sorted(names))}"
        for split, names in ((one, ones - others), (other, others - ones))
        if names
    ]
    if only:
        raise DataError(directory, f"classes {'; '.join(only)}", "the same folders in both", "Rename or add them.")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return ", ".join(names[:_NAMED_AT_MOST]) + more
