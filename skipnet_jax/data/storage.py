"""What the data sets need of disks and buckets (gs://...) beyond epath: errors for people, local copies, checksums."""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from etils import epath

from skipnet_jax import files
from skipnet_jax.errors import DataError

_NAMED_AT_MOST = 5


def require_bucket(path: str) -> None:
    """Checks that a bucket can be used, where TensorFlow would retry for minutes or end with a stack trace.

    Args:
      path: about to be read or written; of a local one nothing is checked.

    Raises:
      DataError: there is no such bucket, or no access to it.
    """
    if files.is_local(path):
        return
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


def hash_file(path: str) -> tuple[int, str]:
    """Size in bytes and SHA-256, in hexadecimal, of a local file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def reason(error: BaseException) -> str:
    """The first line of an error, without the names in TensorFlow's graph."""
    lines = (getattr(error, "message", None) or str(error)).splitlines() or [""]
    return lines[0].split("}} ")[-1].split(" [Op:")[0].strip() or type(error).__name__


def some(names: Sequence[str]) -> str:
    """The first few names, for a message, and how many more there are."""
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return ", ".join(names[:_NAMED_AT_MOST]) + more
