"""Where the lease of a workdir is written: on a file system, or in a bucket. `lease.py` says what it means.

Both places offer the same four operations. They are safe because only one of several processes that `take` the lease
after the same version succeeds: a file system creates a file only once, and a bucket writes an object only if its
generation is the expected one.
"""

import abc
import contextlib
import os
import pathlib
from typing import Any

from etils import epath

from skipnet_jax import files

FOLDER = "lease"


class Store(abc.ABC):
    """A versioned text; version 0 means that there is none."""

    @abc.abstractmethod
    def read(self) -> tuple[int, bytes]:
        """Returns the newest version and its content."""

    @abc.abstractmethod
    def take(self, after: int, content: bytes) -> int | None:
        """Writes the version that follows `after`; returns its number, or None if another process was faster."""

    @abc.abstractmethod
    def renew(self, version: int, content: bytes) -> int:
        """Replaces the content of a version by one of the same length, and returns the version's new number.

        Raises:
          LookupError: it is not the newest any more.
        """

    @abc.abstractmethod
    def remove(self, version: int) -> None:
        """Removes a version, unless there is a newer one."""


def open_store(workdir: epath.Path) -> Store:
    """Opens the place in a workdir, which need not exist yet.

    Raises:
      UserError: the workdir is in a bucket, and the package for buckets is not installed.
    """
    files.require_cloud_storage(workdir)
    return FileStore(pathlib.Path(workdir)) if files.is_local(workdir) else BucketStore(str(workdir))


class FileStore(Store):
    """Numbered files in the folder `lease`; the highest number is the newest version.

    Works on local disks and on NFS, where exclusive creation and opening a file see what other hosts have done.
    """

    def __init__(self, workdir: pathlib.Path) -> None:
        self._folder = workdir / FOLDER

    def read(self) -> tuple[int, bytes]:
        while newest := max(self._numbers(), default=0):
            with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                return newest, self._file(newest).read_bytes()
        return 0, b""

    def take(self, after: int, content: bytes) -> int | None:
        number = after + 1
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            with self._file(number).open("xb") as stream:
                stream.write(content)
        except FileExistsError:
            return None
        except FileNotFoundError:  # another process has just removed the folder
            return None
        except OSError:
            self._file(number).unlink(missing_ok=True)  # the full disk left it empty
            raise
        numbers = self._numbers()
        if max(numbers, default=0) != number:
            self._file(number).unlink(missing_ok=True)
            return None
        for older in sorted(numbers):
            if older < number:
                self._file(older).unlink(missing_ok=True)
        return number

    def renew(self, version: int, content: bytes) -> int:
        """Overwrites in place, which needs no room on a full disk."""
        if max(self._numbers(), default=0) != version:
            raise LookupError
        try:
            with self._file(version).open("r+b", buffering=0) as stream:
                stream.write(content)
        except FileNotFoundError:
            raise LookupError from None
        return version

    def remove(self, version: int) -> None:
        self._file(version).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another process has just taken the lease
            self._folder.rmdir()

    def _file(self, number: int) -> pathlib.Path:
        return self._folder / str(number)

    def _numbers(self) -> list[int]:
        try:
            return [int(name) for name in os.listdir(self._folder) if name.isdecimal()]
        except FileNotFoundError:
            return []


class BucketStore(Store):
    """The object `lease`; its generation is the version, and every write names the generation that it replaces."""

    def __init__(self, workdir: str) -> None:
        """Connects to the bucket.

        Args:
          workdir: gs://BUCKET/PATH.
        """
        from google.cloud import storage

        bucket, _, path = workdir.removeprefix("gs://").partition("/")
        self._bucket = storage.Client().bucket(bucket)
        self._name = f"{path.rstrip('/')}/{FOLDER}".lstrip("/")

    def read(self) -> tuple[int, bytes]:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        while (found := self._bucket.get_blob(self._name)) is not None:
            with contextlib.suppress(NotFound, PreconditionFailed):  # replaced or removed since
                blob = self._bucket.blob(self._name)
                return found.generation, blob.download_as_bytes(if_generation_match=found.generation)
        return 0, b""

    def take(self, after: int, content: bytes) -> int | None:
        try:
            return self._write(after, content)
        except LookupError:
            return None

    def renew(self, version: int, content: bytes) -> int:
        return self._write(version, content)

    def remove(self, version: int) -> None:
        from google.api_core.exceptions import GoogleAPICallError

        with contextlib.suppress(GoogleAPICallError):  # taken over, or gone
            self._bucket.blob(self._name).delete(if_generation_match=version)

    def _write(self, after: int, content: bytes) -> int:
        from google.api_core.exceptions import PreconditionFailed

        blob: Any = self._bucket.blob(self._name)
        try:
            blob.upload_from_string(content, if_generation_match=after)
        except PreconditionFailed:
            version, found = self.read()
            if found != content:  # otherwise a reply was lost, and the client wrote a second time
                raise LookupError from None
            return version
        return blob.generation
