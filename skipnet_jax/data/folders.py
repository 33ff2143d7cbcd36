"""Your own images in folders, local or gs://: DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg.

The name of a folder is the name of its class, and classes are numbered in the order of their names. An image may lie
deeper within the folder of its class. `walk.py` says which files count, and `layout.py` which folders.
"""

import dataclasses
import itertools
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from skipnet_jax.data import holdout, layout, storage, walk
from skipnet_jax.data.listed import ListedSplit
from skipnet_jax.errors import DataError
from skipnet_jax.specs import DataSpec

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files(ListedSplit):
    """One image file per example.

    Args:
      paths: of the files, local or gs://.
    """

    paths: tuple[str, ...]
    mend: str = "Replace or remove the file."

    def describe(self, index: int) -> str:
        return storage.show(self.paths[index])

    def chosen(self, mask: Bool[np.ndarray, "n"]) -> "Files":
        paths = tuple(itertools.compress(self.paths, mask))
        return dataclasses.replace(self, paths=paths, labels=self.labels[mask])

    def reader(self) -> Callable[[Any, Any], tuple[Any, Any]]:
        import tensorflow as tf

        paths, labels = tf.constant([os.fsencode(path) for path in self.paths]), tf.constant(self.labels)
        return lambda index, record: (tf.io.read_file(paths[index]), labels[index])


def open_folder(spec: DataSpec, split: str) -> ListedSplit | None:
    """Lists the images of a split.

    Args:
      split: "train", "test", or "holdout" for the images that choose the best checkpoint. Without a folder of test
        images, "test" is the hold-out too.

    Returns:
      None if there is no hold-out.

    Raises:
      DataError: there is no such folder, or the splits have different classes.
    """
    layout.require(spec)
    of = layout.find(spec)

    def learnt(place: str) -> tuple[str, ...]:
        return tuple(sorted({walk.class_name(name) for name in walk.subfolders(f"{of.root}/{place}")}))

    return open_listed(of, spec, split, lambda place: _list(spec, of.root, place), learnt)


def open_listed(
    of: layout.Layout,
    spec: DataSpec,
    split: str,
    list_place: Callable[[str], ListedSplit],
    learnt: Callable[[str], tuple[str, ...]],
) -> ListedSplit | None:
    """Lists the images of a split, as `open_folder` does.

    Args:
      of: where the images lie.
      spec, split: as for `open_folder`.
      list_place: lists the images in one of the layout's places.
      learnt: returns the classes of the training images, given their place.
    """
    places, kept = of.places(spec), holdout.parse(spec.holdout)
    part = split not in places or (isinstance(kept, holdout.Amount) and split != "test")
    if split == "holdout" and part and not isinstance(kept, holdout.Amount):
        return None
    place = places.get("train" if part else split)
    if place is None:
        raise DataError(of.root, f"no folder for the {split} images", layout.EXPECTED, layout.MEND)
    found = list_place(place)
    if "train" in places and place != places["train"]:
        found = _with_classes_of(found, spec, of.root, learnt(places["train"]), (places["train"], place))
    else:
        _require_all(found, of.root)
    if part and isinstance(kept, holdout.Amount):
        rest, held_out = found.divide(kept)
        found = dataclasses.replace(rest if split == "train" else held_out, place=f"part of {found.place}")
    return dataclasses.replace(found, held_out=split == "holdout" or (part and split == "test"))


def _list(spec: DataSpec, root: str, place: str) -> Files:
    """Lists the images below a folder whose subfolders are the classes."""
    directory = f"{root}/{place}" if place else root
    left_out = walk.LeftOut()
    names = sorted(name for name, _ in walk.images_below(directory, left_out))
    images = [name for name in names if "/" in name]
    folders = walk.subfolders(directory)
    if not images:
        why = f" ({left_out})" if left_out.counts else ""
        got = f"{len(names)} images, which lie in no class folder" if names else f"no images in {len(folders)} folders"
        raise DataError(storage.show(directory), got + why, layout.EXPECTED, layout.MEND)
    for name in names:
        if "/" not in name:
            left_out.add(walk.LOOSE, name)
    if left_out.counts:
        _log.warning("%s: left out: %s", storage.show(directory), left_out)
    if deeper := sorted({"/".join(name.split("/")[:2]) for name in images if name.count("/") > 1}):
        _log.warning("%s: images in subfolders of a class count as that class's: %s", directory, storage.some(deeper))
    of_folder = {folder: walk.class_name(folder) for folder in {name.partition("/")[0] for name in images}}
    class_names = tuple(sorted({walk.class_name(folder) for folder in folders} | set(of_folder.values())))
    number = {name: k for k, name in enumerate(class_names)}
    return Files(
        name=os.path.basename(spec.dir.rstrip("/")) or "folder",
        place=f"{directory.removeprefix(spec.dir.rstrip('/'))}/".lstrip("/") or "all class folders",
        class_names=class_names,
        paths=tuple(f"{directory}/{name}" for name in images),
        labels=np.asarray([number[of_folder[name.partition("/")[0]]] for name in images], np.int32),
    )


def _require_all(train: ListedSplit, root: str) -> None:
    """Refuses training data of one class, or with empty classes."""
    empty = _empty(train)
    if empty or train.num_classes < 2:
        got = f"classes without images: {storage.some(empty)}" if empty else f"one class, {train.class_names[0]!r}"
        raise DataError(f"{root}/{train.place}", got, "images of two classes or more", layout.MEND)


def _with_classes_of(
    found: ListedSplit, spec: DataSpec, root: str, learnt: tuple[str, ...], places: tuple[str, str]
) -> ListedSplit:
    """Gives test images the class numbers of the training images, and reports classes that only one side has.

    Args:
      spec: says whether classes may be absent.
      root, places: where the training and the test images lie.
      learnt: the classes of the training images.
    """
    train, place = places
    present = [found.class_names[number] for number in sorted(set(found.labels.tolist()))]
    unknown, absent = sorted(set(present) - set(learnt)), sorted(set(learnt) - set(present))
    if unknown or (absent and spec.absent_classes == "error"):
        raise _differ(root, train, place, unknown, absent)
    if absent:
        _log.warning("%s: no images of %d classes: %s", f"{root}/{place}", len(absent), storage.some(absent))
    numbers = np.asarray([learnt.index(name) if name in learnt else -1 for name in found.class_names], np.int32)
    return dataclasses.replace(found, class_names=learnt, labels=numbers[found.labels])


def _differ(root: str, train: str, other: str, unknown: Sequence[str], absent: Sequence[str]) -> DataError:
    sides = ((train.rstrip("/"), absent), (other, unknown))
    only = "; ".join(f"only in {place}/: {storage.some(names)}" for place, names in sides if names)
    mend = "Rename the classes, or add images."
    if absent and not unknown:
        mend += " To evaluate the classes that are there, set `data.absent_classes`=allow."
    return DataError(storage.show(root), f"classes that have images {only}", "the same classes in both", mend)


def _empty(files: ListedSplit) -> list[str]:
    """Classes without images."""
    present = set(files.labels.tolist())
    return [name for number, name in enumerate(files.class_names) if number not in present]
