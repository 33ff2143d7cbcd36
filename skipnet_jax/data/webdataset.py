"""Finds the samples in WebDataset's tars: `KEY.jpg` with its label in `KEY.cls`, `KEY.json` or `KEY.txt`.

The tars are read once, header by header, to find the place of each image. Then images are read from anywhere, so that
the order of training depends on the seed and the step alone. Nothing is ever unpacked.
"""

import array
import fnmatch
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from skipnet_jax import files
from skipnet_jax.data import storage, walk
from skipnet_jax.data.archives import BROKEN_TAR, Listing, broken_tar, is_plain, members
from skipnet_jax.errors import DataError

# The files that may hold a label; the first that exists counts.
_LABELS = ("cls", "json", "txt")
_JSON_KEYS = ("label", "cls", "class", "class_id", "label_id", "target", "category", "class_name", "label_name")
_LABEL_BYTES = 1 << 20  # a larger file is not a label
_PEEKED = 64  # members at the beginning of a tar that tell whether it holds samples
_UNLABELLED, _NO_IMAGE = "images without a label", "labels without an image"
_EXPECTED = "samples as KEY.jpg with KEY.cls (a number or a word), or KEY.json or KEY.txt"


def is_given(path: str) -> bool:
    """Whether a path means WebDataset's tars: a pattern, a folder with tars, or a tar of samples."""
    if re.search(r"[*?{]", path.rpartition("/")[2]) and not storage.is_folder(path):
        return True
    if storage.is_file(path):
        return is_sample_tar(path)
    return bool(tars_in(path))


def list_given(path: str, found: Callable[[], None], *, image_key: str = "", label_key: str = "") -> Listing:
    """Lists the samples of a path that `is_given` accepts; raises as `list_samples` does."""
    if storage.is_folder(path):
        folder, names = path.rstrip("/"), tars_in(path)
    else:
        tars = [path] if storage.is_file(path) else expand(path)
        folder, names = _split_path(tars[0])[0], [_split_path(tar)[1] for tar in tars]
    return list_samples(folder, names, found, image_key=image_key, label_key=label_key)


def expand(pattern: str) -> list[str]:
    """The tars that match a pattern, sorted: with * and ?, or with WebDataset's own {000000..000146}.

    Raises:
      DataError: there are none.
    """
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if braces:
        width, numbers = len(braces[1]), range(int(braces[1]), int(braces[2]) + 1)
        if not numbers:
            raise DataError(pattern, f"the empty range {braces[0]}", "the lower number first", "Change the pattern.")
        return [f"{pattern[: braces.start()]}{number:0{width}}{pattern[braces.end() :]}" for number in numbers]
    folder, name = _split_path(pattern)
    there = [file for file in tars_in(folder) if fnmatch.fnmatchcase(file, name)]
    if not there:
        raise DataError(pattern, "no matching tar", "tars with images and labels", "Change the pattern.")
    return [f"{pattern.removesuffix(name)}{file}" for file in there]


def _split_path(path: str) -> tuple[str, str]:
    """The folder and the name of a file; the folder is "/" for /train.tar, and "." for train.tar."""
    folder, slash, name = path.rpartition("/")
    return folder or slash or ".", name


def tars_in(folder: str) -> list[str]:
    """Names of the tars in a folder, sorted; none if there is no folder."""
    if files.is_local(folder):
        try:
            names = os.listdir(folder)
        except OSError:
            return []
    else:
        names = [path.name for path in epath.Path(folder).iterdir()] if storage.is_folder(folder) else []
    return sorted(name for name in names if name.lower().endswith(".tar") and not walk.is_junk(name))


def is_sample_tar(path: str) -> bool:
    """Whether a tar begins with an image and a label of the same name."""
    try:
        with storage.open_binary(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            first = [member for member, _ in zip(members(archive, path), range(_PEEKED), strict=False)]
            names = [_split(member.name) for member in first if is_plain(member)]
    except BROKEN_TAR:
        return False
    labels = {key for key, kind in names if kind in _LABELS}
    return any(key in labels for key, kind in names if _is_image(kind))


def list_samples(
    folder: str,
    tars: Sequence[str],
    found: Callable[[], None] = lambda: None,
    *,
    image_key: str = "",
    label_key: str = "",
) -> Listing:
    """Lists the samples of tars, in the order of the tars and of the images in them.

    Args:
      folder: holds the tars, local or gs://.
      tars: their names in the folder.
      found: called at each image.
      image_key: which image of a sample, as in "left.jpg"; empty = the only one.
      label_key: key of the label in JSON, and then no other file holds it; empty = one of the usual keys.

    Raises:
      DataError: a tar is damaged, a sample has several images, or nothing is labelled.
    """
    left_out = walk.LeftOut()
    labels: list[int | str] = []
    offsets, sizes, name_ends, names = array.array("q"), array.array("q"), array.array("q"), bytearray()
    for tar in tars:
        for name, offset, size, label in _samples(f"{folder}/{tar}", left_out, image_key, label_key):
            labels.append(label)
            offsets.append(offset)
            sizes.append(size)
            names += os.fsencode(f"{tar}/{name}")
            name_ends.append(len(names))
            found()
    if not labels:
        got = f"no labelled image; {left_out}" if left_out.counts else "no image"
        raise DataError(f"{folder}/{tars[0]}" if tars else folder, got, _EXPECTED)
    class_names, numbers = _number(labels, folder)
    return Listing(
        path=folder,
        class_names=class_names,
        official=False,
        labels=numbers,
        offsets=np.frombuffer(offsets, np.int64),
        sizes=np.frombuffer(sizes, np.int64),
        names=bytes(names),
        name_ends=np.frombuffer(name_ends, np.int64),
        left_out=left_out,
    )


def _samples(
    path: str, left_out: walk.LeftOut, image_key: str, label_key: str
) -> Iterator[tuple[str, int, int, int | str]]:
    """Reads all headers of a tar, then yields name, offset, size and label of each image."""
    images: dict[str, tuple[str, str, int, int]] = {}
    labels: dict[str, tuple[int, int | str]] = {}
    try:
        with storage.open_binary(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in members(archive, path):
                key, kind = _split(member.name)
                if not is_plain(member, left_out):
                    continue
                if kind in (("json",) if label_key else _LABELS) and member.size <= _LABEL_BYTES:
                    label = _read_label(archive, member, kind, label_key)
                    rank = _LABELS.index(kind)
                    if label is not None and rank <= labels.get(key, (rank, 0))[0]:
                        labels[key] = rank, label
                elif kind == image_key.lower() or (not image_key and _is_image(kind)):
                    if not walk.counts(f"{key}.jpg", member.size, left_out):
                        continue
                    if key in images:
                        got = f"{images[key][1]} and {kind} of the sample {storage.show(key)}"
                        mend = f"Choose one, for example with `image_key`={kind}."
                        raise DataError(path, got, "one image in each sample", mend)
                    images[key] = member.name, kind, member.offset_data, member.size
                else:
                    left_out.add(walk.OTHER, member.name)
    except BROKEN_TAR as error:
        raise broken_tar(path, error) from error
    for key, (name, _, offset, size) in images.items():
        if key in labels:
            yield name, offset, size, labels[key][1]
        else:
            left_out.add(_UNLABELLED, name)
    for key in labels.keys() - images.keys():
        left_out.add(_NO_IMAGE, key)


def _read_label(archive: tarfile.TarFile, member: tarfile.TarInfo, kind: str, label_key: str) -> int | str | None:
    """Returns a label as a number if it is one, otherwise as a word; None if there is no label."""
    content = archive.extractfile(member)
    assert content is not None  # a regular file has content
    text = content.read().decode("utf-8", "replace").strip()
    value: Any = text
    if kind == "json":
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(record, dict):
            value = record
        else:
            value = next((record[key] for key in ([label_key] if label_key else _JSON_KEYS) if key in record), None)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value):
        value = int(value)
    return value if type(value) is int or (isinstance(value, str) and value) else None


def _number(labels: list[int | str], folder: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the names of the classes, and each label's class: numbers stay, words are numbered in order."""
    numbers = [label for label in labels if isinstance(label, int)]
    if len(numbers) == len(labels):
        last = max(numbers)
        if min(numbers) < 0 or last >= max(1000, 100 * len(set(numbers))):
            raise DataError(folder, f"labels from {min(numbers)} to {last}", "numbers of classes, from 0 on")
        return tuple(map(str, range(last + 1))), np.asarray(numbers, np.int32)
    words = [walk.class_name(str(label)) for label in labels]
    class_names = tuple(sorted(set(words)))
    if len(class_names) == len(labels) > 1:
        got = f"{len(labels)} labels that all differ ({storage.some(class_names)})"
        raise DataError(folder, got, "names of classes rather than captions", "Give `label_key`, or add KEY.cls.")
    of_name = {name: k for k, name in enumerate(class_names)}
    return class_names, np.asarray([of_name[word] for word in words], np.int32)


def _split(name: str) -> tuple[str, str]:
    """Returns a file's key and kind: its name before and after the first dot, the kind in lower case."""
    folder, slash, file = name.rpartition("/")
    stem, _, kind = file.lstrip(".").partition(".") if not file.startswith("._") else (file, "", "")
    return f"{folder}{slash}{stem}", kind.lower()


def _is_image(kind: str) -> bool:
    return f".{kind}" in walk.EXTENSIONS
