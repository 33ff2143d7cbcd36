"""Images as data sets are distributed: class folders, and tar files, which are read without being unpacked.

A listing holds where each image lies, not its content. It takes some sixty bytes an image, so a data set of any size
can be shuffled in little memory. Images are then read one by one, from anywhere in an archive.

The names of the files tell the layout, and `walk.py` says which files count:

    CLASS/anything/IMAGE     class folders, or a tar of them, in which outer folders may enclose them all
    CLASS.tar in a tar       the official ILSVRC2012_img_train.tar
    ILSVRC2012_val_#.JPEG    without folders: the official validation images; TensorFlow Datasets has their labels
"""

import array
import dataclasses
import hashlib
import itertools
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Int32, Int64

from skipnet_jax.data import storage, walk
from skipnet_jax.errors import DataError

_LARGEST = 2**50  # bytes; no tar is larger
# Damaged headers raise any of these.
BROKEN_TAR = (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError)
_OFFICIAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_READABLE = "a file that can be read"

# An image: its name, the offset of its content in the archive, and its size in bytes.
_Entry = tuple[str, int, int]


@dataclasses.dataclass(frozen=True)
class Listing:
    """All images of a split, found but not read.

    Args:
      path: the folder or the tar file.
      class_names: sorted; those that occur, or all 1000 if `official`.
      official: the images are ImageNet's validation set without folders.
      labels: index into class_names.
      offsets: of the file's content in the archive, in bytes; 0 in folders.
      sizes: in bytes.
      names: paths below `path`, concatenated; `name` cuts them out.
      name_ends: where each name ends.
      left_out: the files that do not count as images.
      is_archive: `path` is a tar, not a folder.
    """

    path: str
    class_names: tuple[str, ...]
    official: bool
    labels: Int32[np.ndarray, "n"]
    offsets: Int64[np.ndarray, "n"]
    sizes: Int64[np.ndarray, "n"]
    names: bytes
    name_ends: Int64[np.ndarray, "n"]
    left_out: walk.LeftOut
    is_archive: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Path of an image below the folder or within the tar."""
        start = self.name_ends[index - 1] if index else 0
        return os.fsdecode(self.names[start : self.name_ends[index]])

    def read(self, index: int) -> bytes:
        """Reads an image file.

        Raises:
          DataError: the file is gone, or its size has changed since it was listed.
        """
        name, offset, size = self.name(index), int(self.offsets[index]), int(self.sizes[index])
        # In a folder, an image with an offset is a member of a tar; its name begins with the tar's.
        path = self.path if self.is_archive else os.path.join(self.path, name.partition("/")[0] if offset else name)
        try:
            with storage.open_binary(path) as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise DataError(path, f"{error.strerror or error}", _READABLE) from error
        if len(content) != size and size >= 0:
            expected = f"{self.sizes[index]}, as when it was listed"
            raise DataError(path, f"{len(content)} bytes of {self.name(index)}", expected)
        return content

    def take(self, indexes: Int64[np.ndarray, "m"]) -> "Listing":
        """Some of the images, in this order."""
        names = [os.fsencode(self.name(index)) for index in indexes.tolist()]
        return dataclasses.replace(
            self,
            labels=self.labels[indexes],
            offsets=self.offsets[indexes],
            sizes=self.sizes[indexes],
            names=b"".join(names),
            name_ends=np.fromiter(itertools.accumulate(map(len, names)), np.int64),
        )

    def fingerprint(self) -> str:
        """SHA-256 of the whole listing except its path: equal for equal data sets."""
        digest = hashlib.sha256("\0".join(self.class_names).encode("utf-8", "surrogateescape") + self.names)
        for numbers in (self.labels, self.offsets, self.sizes, self.name_ends):
            digest.update(numbers.astype(f"<i{numbers.itemsize}").tobytes())
        return digest.hexdigest()


def find_images(path: str, found: Callable[[], None]) -> Listing:
    """Lists the images of a split, in an order that does not depend on the file system.

    Args:
      path: a folder or an uncompressed tar, local or gs://.
      found: called for each image.

    Raises:
      DataError: there are no images, the archive is broken, or an image is outside the class folders.
    """
    left_out = walk.LeftOut()
    is_archive = storage.is_file(path)
    if is_archive:
        entries = _in_tar(path, left_out)
    elif storage.is_folder(path):
        entries = _in_folder(path, left_out)
    else:
        raise DataError(path, "no file or folder of this name", "a folder of images or a tar of them")
    folders: dict[str, int] = {}
    places, offsets, sizes, name_ends = array.array("i"), array.array("q"), array.array("q"), array.array("q")
    names = bytearray()
    for name, offset, size in entries:
        places.append(folders.setdefault(name.rpartition("/")[0], len(folders)))
        offsets.append(offset)
        sizes.append(size)
        names += os.fsencode(name)
        name_ends.append(len(names))
        found()
    if not places:
        expected = f"{', '.join(walk.EXTENSIONS)} in one folder per class"
        raise DataError(path, f"no image; {left_out}" if left_out.counts else "no image", expected)
    listing = Listing(
        path=path,
        class_names=(),
        official=False,
        labels=np.frombuffer(places, np.int32),
        offsets=np.frombuffer(offsets, np.int64),
        sizes=np.frombuffer(sizes, np.int64),
        names=bytes(names),
        name_ends=np.frombuffer(name_ends, np.int64),
        left_out=left_out,
        is_archive=is_archive,
    )
    return _with_classes(listing, list(folders))


def _with_classes(listing: Listing, folders: list[str]) -> Listing:
    """Turns labels from numbers of folders into numbers of classes.

    Args:
      listing: of images whose labels are indexes into `folders`.
      folders: paths below the folder or in the tar; "" = beside the class folders.
    """
    if set(folders) <= {"", "."}:
        synsets = _official_labels()
        numbers = {name: k for k, name in enumerate(sorted(set(synsets)))}
        labels = [numbers[_official_class(listing.path, listing.name(k), synsets)] for k in range(len(listing))]
        return dataclasses.replace(
            listing, class_names=tuple(numbers), official=True, labels=np.asarray(labels, np.int32)
        )
    parts = [[part for part in folder.split("/") if part not in ("", ".", "..")] or [""] for folder in folders]
    if listing.is_archive:
        while _are_wrapped(parts):
            parts = [part[1:] or [""] for part in parts]
    classes = [walk.class_name(part[0]) for part in parts]
    class_names = tuple(sorted(set(classes) - {""}))
    if not listing.is_archive:
        folders_there = {walk.class_name(name) for name in walk.subfolders(listing.path)}
        if empty := sorted(folders_there - set(class_names)):
            got, mend = f"classes without images: {storage.some(empty)}", "Fill or remove the folders."
            raise DataError(listing.path, got, "images of each class", mend)
    numbers = {name: k for k, name in enumerate(class_names)} | {"": -1}
    labels = np.asarray([numbers[name] for name in classes], np.int32)[listing.labels]
    return _without_loose(dataclasses.replace(listing, class_names=class_names, labels=labels))


def _are_wrapped(folders: Sequence[Sequence[str]]) -> bool:
    """Whether one folder holds all others: each image lies deeper, or there are several classes beside loose images."""
    below = {folder[1] for folder in folders if len(folder) > 1}
    return len({folder[0] for folder in folders}) == 1 and (len(below) > 1 or all(len(each) > 1 for each in folders))


def _without_loose(listing: Listing) -> Listing:
    """Leaves out images that lie beside the class folders."""
    kept = listing.labels >= 0
    if kept.all():
        return listing
    for index in np.flatnonzero(~kept).tolist():
        listing.left_out.add(walk.LOOSE, listing.name(index))
    return listing.take(np.flatnonzero(kept))


def _in_folder(path: str, left_out: walk.LeftOut) -> Iterator[_Entry]:
    """Yields every image below a folder."""
    found = sorted(walk.images_below(path, left_out), key=lambda entry: walk.in_reading_order(entry[0]))
    yield from ((name, 0, size) for name, size in found)


def _in_tar(path: str, left_out: walk.LeftOut) -> Iterator[_Entry]:
    """Yields every image of a tar, and of the tars inside it, whose names become the classes."""
    try:
        with storage.open_binary(path) as file, tarfile.open(fileobj=file, mode="r:") as outer:
            for member in members(outer, path):
                if not is_plain(member, left_out):
                    continue
                name = member.name.removeprefix("./")
                last = name.rpartition("/")[2]
                if not last.endswith(".tar") or walk.is_junk(last):
                    if walk.counts(name, member.size, left_out):
                        yield member.name, member.offset_data, member.size
                    continue
                with tarfile.open(fileobj=outer.extractfile(member), mode="r:") as inner:
                    class_name = last.removesuffix(".tar")
                    for image in members(inner, f"{path}: {member.name}"):
                        if is_plain(image, left_out) and walk.counts(image.name, image.size, left_out):
                            offset = member.offset_data + image.offset_data
                            yield f"{class_name}/{image.name}", offset, image.size
    except BROKEN_TAR as error:
        raise broken_tar(path, error) from error


def broken_tar(path: str, error: BaseException) -> DataError:
    """The error for a file that cannot be read as a tar."""
    return DataError(
        path,
        f"no tar, or a broken or compressed one ({error})",
        "an uncompressed tar, since images are read from anywhere in it",
        "Fetch it again, or unpack it.",
    )


def members(archive: tarfile.TarFile, name: str) -> Iterator[tarfile.TarInfo]:
    """Yields all but the folders of a tar without keeping them; raises if the tar is cut off or its headers loop."""
    before = -1
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # otherwise all of them stay in memory
        if member.size < 0 or not before < archive.offset <= _LARGEST:
            raise tarfile.ReadError(f"{name} is damaged at byte {before:,}")
        before = archive.offset
        if not member.isdir():
            yield member
    # tarfile takes a damaged header for the end, but a real end is a block of zeros.
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"{name} is cut off or damaged at byte {archive.offset:,}")


def is_plain(member: tarfile.TarInfo, left_out: walk.LeftOut | None = None) -> bool:
    """Whether a member holds its own content in one piece; if not, tells `left_out`."""
    if member.isreg() and not member.issparse():
        return True
    if left_out is not None:
        left_out.add(walk.LINKED, member.name)
    return False


def _official_labels() -> list[str]:
    """The classes (synsets) of the 50,000 validation images of ILSVRC2012, in the images' order."""
    import tensorflow_datasets as tfds

    return tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()


def _official_class(path: str, name: str, labels: list[str]) -> str:
    match = _OFFICIAL_NAME.fullmatch(name.removeprefix("./"))
    if not match or not 1 <= int(match[1]) <= len(labels):
        raise DataError(
            path,
            f"{name}, which lies in no folder",
            f"one folder per class, or the official validation images, ILSVRC2012_val_00000001.JPEG to "
            f"ILSVRC2012_val_{len(labels):08d}.JPEG",
        )
    return labels[int(match[1]) - 1]
