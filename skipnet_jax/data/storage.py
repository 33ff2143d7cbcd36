"""Files that lie on a local disk or in a bucket (gs://...).

TensorFlow, which takes seconds to import, is asked only where it has to be.
"""

import hashlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from skipnet_jax import files
from skipnet_jax.errors import DataError

_CHUNK = 1 << 20


def is_bucket(path: str) -> bool:
    """Whether a path is none of the local file system."""
    return "://" in path


def join(directory: str, name: str) -> str:
    """The path of a file in a folder."""
    return f"{directory.rstrip('/')}/{name}" if directory else name


def require_bucket(path: str) -> None:
    """Raises at once where TensorFlow would try for minutes, or end with a stack trace; nothing to do for local paths.

    Args:
      path: that is going to be read or written.

    Raises:
      DataError: there is no such bucket, or no access to it.
    """
    if not is_bucket(path):
        return
    import tensorflow as tf

    root = "/".join(path.split("/")[:3])
    try:
        if not tf.io.gfile.exists(path):  # one may use a folder without being allowed to look at the bucket itself
            tf.io.gfile.stat(root)
    except tf.errors.NotFoundError as error:
        raise DataError(path, f"no bucket {root}", "one that exists", "Create it, or give another path.") from error
    except tf.errors.OpError as error:
        reason = " ".join(error.message.split())[:200]
        raise DataError(
            path,
            f"no access to {root} ({reason})",
            "the right to read and write it",
            "Run gcloud auth application-default login, or give this machine's account the right.",
        ) from error


def read_bytes(path: str) -> bytes:
    """A whole file.

    Raises:
      FileNotFoundError: there is none.
      DataError: it cannot be read.
    """
    try:
        if not is_bucket(path):
            return pathlib.Path(path).read_bytes()
        import tensorflow as tf

        try:
            with tf.io.gfile.GFile(path, "rb") as file:
                return file.read()
        except tf.errors.NotFoundError as error:
            raise FileNotFoundError(path) from error
        except tf.errors.OpError as error:
            raise DataError(path, error.message, "a file that can be read") from error
    except (PermissionError, NotADirectoryError, IsADirectoryError) as error:
        raise DataError(path, f"{error.strerror}", "a file that can be read") from error


def write_text(path: str, text: str) -> None:
    """Writes a file, whole or not at all."""
    if is_bucket(path):
        import tensorflow as tf

        with tf.io.gfile.GFile(path, "w") as file:  # an upload is there all at once
            file.write(text)
    else:
        files.write_text(path, text)


def publish(local: str, path: str) -> None:
    """Moves a finished local file to its place: there it is whole or not at all."""
    if is_bucket(path):
        import tensorflow as tf

        tf.io.gfile.copy(local, path, overwrite=True)
        os.remove(local)
    else:
        files.put_in_place(local, path)


@contextmanager
def local_copy(path: str) -> Iterator[str]:
    """A local path of the file: its own, or that of a copy that is removed afterwards."""
    if not is_bucket(path):
        yield path
        return
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as scratch:
        copy = os.path.join(scratch, "copy")
        tf.io.gfile.copy(path, copy)
        yield copy


def hash_file(path: str) -> tuple[int, str]:
    """Size in bytes and SHA-256, in hexadecimal, of a local file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        return file.tell(), digest.hexdigest()
