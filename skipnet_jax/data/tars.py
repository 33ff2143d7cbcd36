"""Splits in WebDataset's tars, local or gs://: which tars hold which split, and how images are read.

The tars are DIR/train/*.tar and DIR/val/*.tar, or DIR/*-train-*.tar and DIR/*-val-*.tar (or other usual names), or any
tars with `data.holdout`. `webdataset.py` finds the samples in them.
"""

import dataclasses
import functools
import itertools
import logging
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from skipnet_jax.data import folders, holdout, layout, storage, walk, webdataset
from skipnet_jax.data.archives import Listing
from skipnet_jax.data.listed import ListedSplit
from skipnet_jax.errors import DataError
from skipnet_jax.specs import DataSpec

_log = logging.getLogger(__name__)
_PLACES = (layout.TRAIN, layout.VALIDATION, layout.TEST)
_EXPECTED = "DIR/train/*.tar and DIR/val/*.tar, DIR/*-train-*.tar and DIR/*-val-*.tar, or DIR/*.tar with data.holdout"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tars(ListedSplit):
    """Images at known places in tars.

    Args:
      listing: lists these images, and maybe others.
      numbers: the places of these images in the listing.
    """

    listing: Listing
    numbers: Int64[np.ndarray, "n"]
    mend: str = "Replace or remove the tar."

    def describe(self, index: int) -> str:
        return storage.show(f"{self.listing.path}/{self.listing.name(int(self.numbers[index]))}")

    def chosen(self, mask: Bool[np.ndarray, "n"]) -> "Tars":
        return dataclasses.replace(self, numbers=self.numbers[mask], labels=self.labels[mask])

    def reader(self) -> Callable[[Any, Any], tuple[Any, Any]]:
        import tensorflow as tf

        labels = tf.constant(self.labels)

        def read(index: np.int64) -> bytes:
            return self.listing.read(int(self.numbers[index]))

        def encoded_and_label(index: Any, record: Any) -> tuple[Any, Any]:
            encoded = tf.numpy_function(read, [index], tf.string, stateful=False)
            return tf.ensure_shape(encoded, []), labels[index]

        return encoded_and_label


@dataclasses.dataclass(frozen=True)
class Found:
    """The tars of each place.

    Args:
      layout: which place holds the training, validation and test images.
      tars: by place: the folder, and the names of its tars.
    """

    layout: layout.Layout
    tars: dict[str, tuple[str, tuple[str, ...]]]


def find(spec: DataSpec) -> Found:
    """Finds the tars, and the split of each.

    Raises:
      DataError: there are none.
      UserError: `data.holdout` names no split that is there.
    """
    root = spec.dir.rstrip("/") or "/"
    loose = webdataset.tars_in(root)
    tars: dict[str, tuple[str, tuple[str, ...]]] = {}
    if loose:
        split_folders = [name for name in walk.subfolders(root) if name.lower() in itertools.chain(*_PLACES)]
        if hidden := [name for name in split_folders if webdataset.tars_in(f"{root}/{name}")]:
            got = f"tars both in {storage.both(hidden)} and beside these folders ({storage.some(loose)})"
            raise DataError(root, got, _EXPECTED, "Change `data.dir`, or move the tars.")
        words_of = {tar: set(re.findall("[a-z]+", tar.lower())) for tar in loose}
        for tar, its in words_of.items():
            if len(of_several := [words[0] for words in _PLACES if its & set(words)]) > 1:
                got = f"{storage.show(tar)}, whose name says {' and '.join(of_several)}"
                mend = "Rename the tars, or move them to train/, val/ and test/."
                raise DataError(root, got, "names that tell one split each", mend)
        for words in _PLACES:
            named = tuple(tar for tar in loose if words_of[tar] & set(words))
            if named:
                tars[words[0]] = root, named
        if not tars:
            tars[""] = root, tuple(loose)
        elif unclear := set(loose) - {tar for _, named in tars.values() for tar in named}:
            _log.warning("%s: left out, since their names tell no split: %s", root, storage.some(sorted(unclear)))
    else:
        for name in walk.subfolders(root):
            if inside := webdataset.tars_in(f"{root}/{name}"):
                tars[name] = f"{root}/{name}", tuple(inside)
    names = {words: [name for name in tars if name.lower() in words] for words in _PLACES}
    for found in names.values():
        if len(found) > 1:
            raise DataError(root, f"{storage.both(found)}, either of which may be meant,", _EXPECTED, layout.MEND)
    train, validation, test = (found[0] if found else "" for found in names.values())
    of = layout.Layout(root, train, validation, test, whole="" in tars)
    if not tars or not (of.whole or train or validation or test):
        there = f"tars in {storage.some(sorted(tars))}" if tars else "no tars"
        raise DataError(root, there, _EXPECTED, "Change `data.dir`, or move the tars.")
    if "test" not in of.places(spec) and not isinstance(holdout.parse(spec.holdout), holdout.Amount):
        mend = "Keep a tenth of them for testing with `data.holdout`=0.1."
        raise DataError(
            root, f"{sum(len(named) for _, named in tars.values())} tars, none to test with,", _EXPECTED, mend
        )
    return Found(of, tars)


def open_tars(spec: DataSpec, split: str) -> ListedSplit | None:
    """Lists the images of a split, "train", "holdout" or "test", as `folders.open_folder` does.

    Raises:
      DataError: there are none, a tar is damaged, or the splits have different classes.
    """
    found = find(spec)

    def listing_of(place: str) -> Listing:
        folder, names = found.tars[place]
        return _list(folder, names, _stamps(folder, names), spec.image_key, spec.label_key)

    def list_place(place: str) -> Tars:
        listing = listing_of(place)
        if listing.left_out.counts:
            _log.warning("%s: left out: %s", listing.path, listing.left_out)
        return Tars(
            name=os.path.basename(found.layout.root) or "webdataset",
            place=f"{len(found.tars[place][1])} tars of {place or 'all'}",
            class_names=listing.class_names,
            labels=listing.labels,
            listing=listing,
            numbers=np.arange(len(listing)),
        )

    return folders.open_listed(found.layout, spec, split, list_place, lambda place: listing_of(place).class_names)


def _stamps(folder: str, names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Size and modification time of each local tar, so that a replaced tar is listed again."""
    if "://" in folder:
        return ()
    stats = [os.stat(f"{folder}/{name}") for name in names]
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)


@functools.lru_cache(maxsize=4)  # training, hold-out and test images; each needs the training images' classes too
def _list(folder: str, names: tuple[str, ...], stamps: tuple[Any, ...], image_key: str, label_key: str) -> Listing:
    return webdataset.list_samples(folder, names, image_key=image_key, label_key=label_key)
