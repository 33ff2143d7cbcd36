"""Helpers for disks and buckets (gs://...) beyond epath: errors for people, local copies, checksums."""

import hashlib
import os
import re
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from etils import epath

from skipnet_jax import files
from skipnet_jax.errors import DataError, UserError

NAMED_AT_MOST = 5  # names in a message
# The compressions of TFRecord files, by TensorFlow's names; empty = none.
COMPRESSIONS = ("", "GZIP", "ZLIB")
_STARTS = {"GZIP": b"\x1f\x8b\x08", "ZLIB": b"\x78"}
_ANY_COMPRESSION = 32 + zlib.MAX_WBITS  # zlib finds out which one it is
_BLOCK = 1 << 20
_BUCKETS = "gs://"


def require_bucket(path: str) -> None:
    """Checks that a bucket can be used, where TensorFlow would retry for minutes or end with a stack trace.

    Args:
      path: about to be read or written; a local path is not checked.

    Raises:
      DataError: there is no such bucket, or no access to it, or the path is of another kind of storage.
    """
    if files.is_local(path):
        return
    if not path.startswith(_BUCKETS):
        kind = path.partition("://")[0]
        mend = "Give a local path as it is, without file://, and copy or mount what lies elsewhere."
        raise DataError(path, f"a place on {kind}://", f"a local path, or a bucket ({_BUCKETS}...)", mend)
    import tensorflow as tf

    root = "/".join(path.split("/")[:3])
    try:
        if not tf.io.gfile.exists(path):  # some users may read a folder but not the bucket's root
            tf.io.gfile.stat(root)
    except tf.errors.NotFoundError as error:
        raise DataError(path, f"no bucket {root}", "one that exists", "Create it, or give another path.") from error
    except tf.errors.OpError as error:
        raise DataError(
            path,
            f"no access to {root} ({' '.join(error.message.split())[:200]})",
            "the right to read and write it",
            "Run gcloud auth application-default login, or give this machine's account the right.",
        ) from error


@contextmanager
def local_copy(path: str) -> Iterator[str]:
    """Yields the path of a local file: the file itself, or a copy that is removed afterwards."""
    if files.is_local(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield os.fspath(epath.Path(path).copy(f"{scratch}/copy"))


def is_folder(path: str) -> bool:
    """Whether there is such a folder, local or gs://."""
    return os.path.isdir(path) if files.is_local(path) else epath.Path(path).is_dir()


def is_file(path: str) -> bool:
    """Whether there is such a file, local or gs://."""
    return os.path.isfile(path) if files.is_local(path) else epath.Path(path).exists() and not is_folder(path)


def open_binary(path: str) -> Any:
    """Opens a file, local or gs://, to read bytes from anywhere in it."""
    if files.is_local(path):
        return open(path, "rb")
    import tensorflow as tf

    return tf.io.gfile.GFile(path, "rb")


def compression_of(path: str) -> str:
    """How a file of records is compressed, by its first bytes: one of `COMPRESSIONS`."""
    with epath.Path(path).open("rb") as file:
        start = file.read(4096)
    for name, first in _STARTS.items():
        # The length of a plain file's first record may begin like this too, but then zlib refuses the rest.
        if start.startswith(first):
            try:
                return name if zlib.decompressobj(_ANY_COMPRESSION).decompress(start) else ""
            except zlib.error:
                return ""
    return ""


@contextmanager
def decompressed(path: str, compression: str) -> Iterator[str]:
    """Yields the path of a local file: the file itself, or a plain copy that is removed afterwards.

    The copy of a damaged file ends before the damage.
    """
    if not compression:
        yield path
        return
    with tempfile.NamedTemporaryFile() as plain:
        with open(path, "rb") as file, suppress(zlib.error):
            inflate = zlib.decompressobj(_ANY_COMPRESSION)
            while block := inflate.unconsumed_tail or file.read(_BLOCK):
                plain.write(inflate.decompress(block, _BLOCK))
                if inflate.eof and (rest := inflate.unused_data or file.read(1)):  # gzip files may be concatenated
                    file.seek(-len(rest), os.SEEK_CUR)
                    inflate = zlib.decompressobj(_ANY_COMPRESSION)
            plain.write(inflate.flush())
        plain.flush()
        yield plain.name


def hash_file(path: str) -> tuple[int, str]:
    """Size in bytes and SHA-256, in hexadecimal, of a local file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def reason(error: BaseException) -> str:
    """The first line of an error, without the names in TensorFlow's graph."""
    lines = (getattr(error, "message", None) or str(error)).splitlines() or [""]
    return lines[0].split("}} ")[-1].split(" [Op:")[0].strip() or type(error).__name__


def show(name: str) -> str:
    """A name for a message: quoted and escaped if it has spaces at its ends, line breaks or odd bytes."""
    return name if name and name.isprintable() and name == name.strip() else repr(name)


def some(names: Sequence[str]) -> str:
    """The first few names, for a message, and how many more there are."""
    more = f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
    return ", ".join(map(show, names[:NAMED_AT_MOST])) + more


def both(names: Sequence[str]) -> str:
    """All names, for a message."""
    return " and ".join(map(show, names))


def expand(path: str, field: str = "data.dir") -> str:
    """A path with ~ and environment variables replaced.

    Args:
      path: as the user gave it.
      field: holds the path, for a message.

    Raises:
      UserError: a variable is not set, or there is no such user.
    """
    expanded = os.path.expanduser(os.path.expandvars(path))
    unknown = re.search(r"\$\{?\w+\}?", expanded)
    if unknown and unknown[0] in path and not os.path.exists(expanded):
        name = unknown[0].strip("${}")
        raise UserError(field, repr(path), f"variables that are set, but {name} is not", f"Set {name}, or `{field}`.")
    if expanded.startswith("~") and not os.path.exists(expanded):
        user = expanded.partition("/")[0]
        raise UserError(field, repr(path), f"the name of a user after the ~, but there is no {user}", f"Set `{field}`.")
    return expanded
