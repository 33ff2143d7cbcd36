"""Images as data sets are distributed: class folders, and tar files, which are read without being unpacked.

A listing knows where each image lies and nothing of its content: some sixty bytes an image, so a data set of any size
can be shuffled in little memory. Then images are read one by one, from anywhere in an archive.

The names of the files tell the layout:

    CLASS/anything/IMAGE     class folders, or a tar of them (there the folder right above the image is the class)
    CLASS.tar in a tar       the official ILSVRC2012_img_train.tar
    ILSVRC2012_val_#.JPEG    without folders: the official validation images; TensorFlow Datasets has their labels
"""

import array
import dataclasses
import hashlib
import os
import pathlib
import re
import tarfile
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int32, Int64

from skipnet_jax.errors import DataError

SUFFIXES = (".jpeg", ".jpg", ".png")
_LARGEST = 2**50  # bytes; no tar is larger
_OFFICIAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_READABLE = "a file that can be read"

# What a layout yields for each file: class, name, offset of the content in the archive, size in bytes.
_Entry = tuple[str, str, int, int]


@dataclasses.dataclass(frozen=True)
class Listing:
    """All images of a split, found but not read.

    Args:
      path: the folder or the tar file.
      class_names: sorted; those that occur, or all 1000 where `official`.
      official: the images are ImageNet's validation set without folders.
      labels: index into class_names.
      offsets: of the file's content in the archive, in bytes; 0 in folders.
      sizes: in bytes.
      names: paths below `path`, one after the other; `name` cuts them out.
      name_ends: where each name ends.
      ignored: names of some files that are no images, and how many there are.
    """

    path: str
    class_names: tuple[str, ...]
    official: bool
    labels: Int32[np.ndarray, "n"]
    offsets: Int64[np.ndarray, "n"]
    sizes: Int64[np.ndarray, "n"]
    names: bytes
    name_ends: Int64[np.ndarray, "n"]
    ignored: tuple[list[str], int]

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Path of an image below the folder or within the tar."""
        start = self.name_ends[index - 1] if index else 0
        return os.fsdecode(self.names[start : self.name_ends[index]])

    def read(self, index: int) -> bytes:
        """Reads an image file.

        Raises:
          DataError: the file is gone, or has another size than when it was listed.
        """
        path = self.path if os.path.isfile(self.path) else os.path.join(self.path, self.name(index))
        try:
            with open(path, "rb") as file:
                file.seek(int(self.offsets[index]))
                content = file.read(int(self.sizes[index]))
        except OSError as error:
            raise DataError(path, f"{error.strerror or error}", _READABLE) from error
        if len(content) != self.sizes[index]:
            expected = f"{self.sizes[index]}, as when it was listed"
            raise DataError(path, f"{len(content)} bytes of {self.name(index)}", expected)
        return content

    def fingerprint(self) -> str:
        """SHA-256 of everything in the listing except where it lies: equal for equal data sets."""
        digest = hashlib.sha256("\0".join(self.class_names).encode("utf-8", "surrogateescape") + self.names)
        for numbers in (self.labels, self.offsets, self.sizes, self.name_ends):
            digest.update(numbers.astype(f"<i{numbers.itemsize}").tobytes())
        return digest.hexdigest()


def find_images(path: str, found: Callable[[], None]) -> Listing:
    """Lists the images of a split, in an order that does not depend on the file system.

    Args:
      path: a folder or an uncompressed tar.
      found: called at each image.

    Raises:
      DataError: there are none, the archive is broken, or an image lies in no class folder.
    """
    if os.path.isdir(path):
        entries = _in_folder(path)
    elif os.path.isfile(path):
        entries = _in_tar(path)
    else:
        raise DataError(path, "no file or folder of this name", "a folder of images or a tar of them")
    official_labels: list[str] = []
    ignored: list[str] = []
    num_ignored = 0
    numbers: dict[str, int] = {}
    labels, offsets, sizes, name_ends = array.array("i"), array.array("q"), array.array("q"), array.array("q")
    names = bytearray()
    for class_name, name, offset, size in entries:
        if not name.lower().endswith(SUFFIXES) or name.rpartition("/")[2].startswith("."):
            ignored = [*ignored, name][:3]
            num_ignored += 1
            continue
        if not class_name:
            official_labels = official_labels or _official_labels()
            class_name = _official_class(path, name, official_labels)
        elif official_labels:
            raise DataError(path, f"{name} beside images that lie in no folder", "one layout")
        labels.append(numbers.setdefault(class_name, len(numbers)))
        offsets.append(offset)
        sizes.append(size)
        names += os.fsencode(name)
        name_ends.append(len(names))
        found()
    if not labels:
        expected = f"{', '.join(SUFFIXES)} in one folder per class"
        raise DataError(path, f"no image among {num_ignored} files", expected)
    class_names = tuple(sorted(set(official_labels or numbers)))
    order = np.array([class_names.index(name) for name in numbers], np.int32)
    return Listing(
        path=path,
        class_names=class_names,
        official=bool(official_labels),
        labels=order[np.frombuffer(labels, np.int32)],
        offsets=np.frombuffer(offsets, np.int64),
        sizes=np.frombuffer(sizes, np.int64),
        names=bytes(names),
        name_ends=np.frombuffer(name_ends, np.int64),
        ignored=(ignored, num_ignored),
    )


def _in_folder(path: str) -> Iterator[_Entry]:
    """Yields every file below a folder; the class is the first folder on the way."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}", f"{error.strerror}", "a folder that can be read") from error

    for folder, subfolders, names in os.walk(path, onerror=refuse, followlinks=True):
        subfolders.sort()
        below = pathlib.Path(folder).relative_to(path)
        if len(below.parts) == 1 and not subfolders and not names:
            raise DataError(folder, "an empty folder", "images of the class", "Fill or remove it.")
        for file in sorted(names):
            try:
                size = os.stat(os.path.join(folder, file)).st_size
            except OSError as error:
                raise DataError(f"{folder}/{file}", f"{error.strerror}", _READABLE) from error
            yield (below.parts[0] if below.parts else ""), (below / file).as_posix(), 0, size


def _in_tar(path: str) -> Iterator[_Entry]:
    """Yields every file of a tar, and of the tars within it, whose names are then the classes."""
    try:
        with tarfile.open(path, "r:") as outer:
            for member in _members(outer, path):
                folder, _, file = member.name.removeprefix("./").rpartition("/")
                if not file.endswith(".tar"):
                    yield folder.rpartition("/")[2], member.name, member.offset_data, member.size
                    continue
                with tarfile.open(fileobj=outer.extractfile(member), mode="r:") as inner:
                    class_name = file.removesuffix(".tar")
                    for image in _members(inner, f"{path}: {member.name}"):
                        offset = member.offset_data + image.offset_data
                        yield class_name, f"{class_name}/{image.name}", offset, image.size
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError) as error:  # of damaged headers
        raise DataError(
            path,
            f"no tar, or a broken or compressed one ({error})",
            "an uncompressed tar, since images are read from anywhere in it",
            "Fetch it again, or unpack it.",
        ) from error


def _members(archive: tarfile.TarFile, name: str) -> Iterator[tarfile.TarInfo]:
    """Yields the regular files of a tar and keeps none; raises if the tar was cut off or goes in circles."""
    before = -1
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # otherwise all of them stay in memory
        if member.size < 0 or not before < archive.offset <= _LARGEST:
            raise tarfile.ReadError(f"{name} is damaged at byte {before:,}")
        before = archive.offset
        if member.isreg() and not member.issparse():
            yield member
    # tarfile takes a damaged header for the end, but a real end is a block of zeros.
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"{name} is cut off or damaged at byte {archive.offset:,}")


def _official_labels() -> list[str]:
    """The classes (synsets) of the 50,000 validation images of ILSVRC2012, in their order."""
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
