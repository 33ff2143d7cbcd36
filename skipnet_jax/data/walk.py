"""One rule for which files count as images and what their classes are called, for folders, tars and buckets alike.

A file is an image if its extension is an image's (its first bytes decide how it is decoded). The files and folders that
systems and file managers leave behind do not count. A link to a folder is followed, but never upwards and never to a
folder that is read anyway: otherwise an image would be read twice, under two classes.
"""

import dataclasses
import os
import stat
import unicodedata
from collections.abc import Iterator

from skipnet_jax import files
from skipnet_jax.data import storage
from skipnet_jax.errors import DataError

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".avif", ".heic", ".heif",
)  # fmt: skip
# Written by macOS, Windows, Synology and Linux file systems; lower case. Hidden files are junk too.
_JUNK = ("__macosx", "@eadir", "thumbs.db", "desktop.ini", "ehthumbs.db", "$recycle.bin", "lost+found", "icon\r")
_UNKNOWN = -1  # a bucket's listing gives no sizes

OTHER, EMPTY, SYSTEM = "other files", "empty files", "files and folders of the system"
LOOSE = "images in no class folder"
LINKS, BROKEN = "links to folders that are read anyway or lie above", "broken links"
LINKED = "links and sparse files in a tar"


@dataclasses.dataclass
class LeftOut:
    """The files and folders that a walk has left out: how many of each kind, and the first few names."""

    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    names: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        """Counts a file or folder."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.names.setdefault(kind, [])
        if len(self.names[kind]) < storage.NAMED_AT_MOST:
            self.names[kind].append(name)

    def __str__(self) -> str:
        """As in "other files (2): notes.txt, b.csv; broken links (1): x.jpg"; empty if nothing is left out."""
        parts = []
        for kind, count in self.counts.items():
            shown = storage.some(self.names[kind])
            more = f" and {count - len(self.names[kind])} more" if count > len(self.names[kind]) else ""
            parts.append(f"{kind} ({count}): {shown}{more}")
        return "; ".join(parts)


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden, or left behind by a system or a file manager."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in _JUNK  # a tar may have ./ and ../


def class_name(folder: str) -> str:
    """The name of the class whose images lie in a folder.

    Unicode has two spellings of é; they are one class. Bytes that are not UTF-8 are read as Latin-1.
    """
    return unicodedata.normalize("NFC", text_of(folder))


def text_of(name: str) -> str:
    """The name of a file as text that can be written anywhere: bytes that are not UTF-8 are read as Latin-1."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode("latin-1")
    return name


def subfolders(directory: str) -> list[str]:
    """Names of the folders in a folder, sorted; system folders are left out.

    Raises:
      DataError: there is no such folder, or it cannot be read.
    """
    if not files.is_local(directory):  # is_dir would ask a bucket about each name; its listing marks the folders
        import tensorflow as tf

        names = [name.rstrip("/") for name in tf.io.gfile.listdir(directory) if name.endswith("/")]
    else:
        real = os.path.realpath(directory)
        names = [
            entry.name
            for entry in _scan(directory)
            if entry.is_dir() and not (entry.is_symlink() and _is_above(os.path.realpath(entry.path), real))
        ]
    return sorted(name for name in names if name and not is_junk(name))


def images_below(directory: str, left_out: LeftOut, *, empty: bool = False) -> Iterator[tuple[str, int]]:
    """Yields (path relative to the folder, size in bytes) of every image below a folder, in no particular order.

    Args:
      directory: local or gs://.
      left_out: told about all other files.
      empty: yield empty images too.

    Raises:
      DataError: a folder cannot be read, or has vanished meanwhile.
    """
    entries = _walk_local(directory, left_out) if files.is_local(directory) else _walk_bucket(directory, left_out)
    for name, size in entries:
        if counts(name, size, left_out, empty=empty):
            yield name, size


def counts(name: str, size: int, left_out: LeftOut, *, empty: bool = False) -> bool:
    """Whether a file of this path and size (in bytes) is an image of the data set; if not, tells `left_out`."""
    if any(map(is_junk, name.split("/"))):
        left_out.add(SYSTEM, name)
    elif not name.lower().endswith(EXTENSIONS):
        left_out.add(OTHER, name)
    elif not size and not empty:
        left_out.add(EMPTY, name)
    else:
        return True
    return False


def in_reading_order(name: str) -> list[tuple[bool, str]]:
    """A sort key that puts the files of a folder before its subfolders, each by name."""
    *folders, file = name.split("/")
    return [*((True, folder) for folder in folders), (False, file)]


def _walk_local(directory: str, left_out: LeftOut) -> Iterator[tuple[str, int]]:
    root = os.path.realpath(directory)
    followed: list[str] = []

    def level(path: str, real: str, below: str) -> Iterator[tuple[str, int]]:
        for entry in sorted(_scan(path), key=lambda entry: entry.name):
            name = f"{below}{entry.name}"
            if is_junk(entry.name):
                left_out.add(SYSTEM, name)
                continue
            try:
                status = entry.stat()
            except OSError:
                if not entry.is_symlink():
                    raise
                left_out.add(BROKEN, name)
                continue
            if not stat.S_ISDIR(status.st_mode):
                if stat.S_ISREG(status.st_mode):  # a named pipe would wait forever
                    yield name, status.st_size
                else:
                    left_out.add(OTHER, name)
                continue
            inside = os.path.join(real, entry.name)
            if entry.is_symlink():
                inside = os.path.realpath(entry.path)
                if _is_above(inside, real) or _is_above(inside, root) or _is_read_anyway(inside):
                    left_out.add(LINKS, name)
                    continue
                followed.append(inside)
            elif inside in followed:
                left_out.add(LINKS, name)
                continue
            yield from level(entry.path, inside, f"{name}/")

    def _is_read_anyway(target: str) -> bool:
        within_root = _is_above(root, target) and not any(map(is_junk, target[len(root) :].split(os.sep)))
        return within_root or any(_is_above(other, target) for other in followed)

    try:
        yield from level(directory, root, "")
    except OSError as error:
        raise _unreadable(error) from error


def _walk_bucket(directory: str, left_out: LeftOut) -> Iterator[tuple[str, int]]:
    import tensorflow as tf

    for level, _, names in tf.io.gfile.walk(directory):
        within = level.rstrip("/")[len(directory.rstrip("/")) :].strip("/")
        for name in filter(None, names):
            yield f"{within}/{name}".lstrip("/"), _UNKNOWN


def _is_above(folder: str, path: str) -> bool:
    """Whether `folder` is `path` or contains it; both are real paths."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _scan(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError as error:
        raise _unreadable(error) from error


def _unreadable(error: OSError) -> DataError:
    return DataError(
        storage.show(f"{error.filename}"), f"{error.strerror}", "a folder that can be read", "Mend it, or give another."
    )
