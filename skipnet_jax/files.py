"""Files of text and JSON: written whole or not at all, and checked field by field when read.

Every path may be local or in a bucket (gs://...).
"""

import contextlib
import errno
import fcntl
import importlib.util
import json
import os
import reprlib
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from skipnet_jax.errors import UserError

Record = dict[str, Any]
Fields = Mapping[str, Any]  # name of a required field -> int, float, str, bool, list, dict, list[str], dict[str, float]


def unwritable(field: str, path: epath.PathLike, error: OSError | None = None) -> UserError:
    """Makes the error for a folder without write permission, or on a full or read-only disk."""
    reason = f" ({error.strerror or error})" if error else ""
    got = f"{path}, which cannot be written{reason}"
    return UserError(field, got, "a folder that can", f"Choose another `{field}`, or mend its permissions or its disk.")


def is_local(path: epath.PathLike) -> bool:
    """Whether a path is on a file system of this machine, and not in a bucket."""
    return "://" not in str(path)


def require_cloud_storage(path: epath.PathLike) -> None:
    """Raises a UserError if a path is in a bucket, and the package that writes there is missing."""
    if is_local(path):
        return
    with contextlib.suppress(ModuleNotFoundError):  # find_spec raises it if google.cloud is missing
        if importlib.util.find_spec("google.cloud.storage"):
            return
    raise UserError(
        f"{path}",
        "a bucket",
        "google-cloud-storage to be installed, since runs in buckets need it",
        'Run: pip install -e ".[gcs]"',
    )


def write_text(file: epath.PathLike, text: str) -> None:
    """Writes a file; if that is interrupted, the old file stays as it was."""
    file = epath.Path(file)
    new = file.parent / f".{file.name}.new"
    new.write_text(text)
    put_in_place(new, file)


def put_in_place(new: epath.PathLike, file: epath.PathLike) -> None:
    """Renames a finished file over an older one on the same disk or in the same bucket."""
    if is_local(file):
        with open(new, "rb") as stream:
            os.fsync(stream.fileno())  # otherwise a power failure may leave the new name on an empty file
    new, file = epath.Path(new), epath.Path(file)
    try:
        new.replace(file)
    except FileExistsError:  # some network file systems do not rename over an existing file
        file.rename(_old(file))
        new.rename(file)
        _old(file).unlink()


@contextlib.contextmanager
def alone(folder: epath.PathLike) -> Iterator[None]:
    """Lets one process at a time change a folder within a `with` block.

    In a bucket, and on a file system without locks, it waits for no other.
    """
    if not is_local(folder):
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def restore_interrupted(folder: epath.Path) -> None:
    """Completes what `put_in_place` left undone if it was killed on a file system that does not rename over files."""
    if not is_local(folder):
        return
    for old in folder.glob(".*.old"):
        file = folder / old.name[1 : -len(".old")]
        if file.exists():
            old.unlink()
        else:
            old.rename(file)


def _old(file: epath.Path) -> epath.Path:
    return file.parent / f".{file.name}.old"


def write_json(file: epath.PathLike, content: Any) -> None:
    """Writes JSON for people to read; if that is interrupted, the old file stays as it was."""
    write_text(file, json.dumps(content, indent=2) + "\n")


def write_lines(file: epath.PathLike, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes one line of JSON per record; if that is interrupted, the old file stays as it was."""
    write_text(file, "".join(json.dumps(record) + "\n" for record in records))


def append_lines(file: epath.PathLike, records: Iterable[Mapping[str, Any]], *, unwritten: bytes = b"") -> bytes:
    """Appends one line of JSON per record. A full disk is no error: a log must not stop a run.

    Args:
      unwritten: what the previous call returned.

    Returns:
      The bytes that did not fit on the disk, for the next call; they may start in the middle of a line.
    """
    data = unwritten + "".join(json.dumps(record) + "\n" for record in records).encode()
    if not is_local(file):  # a bucket never fills up
        with epath.Path(file).open("ab") as stream:
            stream.write(data)
        return b""
    try:
        with open(file, "ab", buffering=0) as stream:  # unbuffered writes tell how many bytes the disk took
            while data:
                data = data[stream.write(data) :]
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
    return data


def read_json(file: epath.PathLike, *, mend: str = "", kind_of_error: type[UserError] = UserError) -> Any:
    """Reads JSON of any form; `read_record` checks the form too.

    Raises:
      UserError: the file is not JSON.
    """
    return parse_json(epath.Path(file).read_bytes(), str(file), mend=mend, kind_of_error=kind_of_error)


def read_record(
    file: epath.PathLike, fields: Fields, *, mend: str = "", kind_of_error: type[UserError] = UserError
) -> Record:
    """Reads a JSON object and checks that it has the fields that the caller is going to use.

    Other fields may be there too. Check nested records by calling `require_fields` on each.

        record = read_record(folder / "data.json", {"class_names": list[str], "training_images": int})

    Args:
      fields: name -> type. A float may be written as a whole number; true and false are not numbers.
      mend: what the user should do about a damaged file, as a sentence.
      kind_of_error: what to raise, `UserError` or a subclass.

    Raises:
      UserError: the file holds no JSON object, lacks a field, or has one of another type.
    """
    content = read_json(file, mend=mend, kind_of_error=kind_of_error)
    return require_fields(content, fields, str(file), mend=mend, kind_of_error=kind_of_error)


def read_records(file: epath.PathLike, fields: Fields, *, mend: str = "") -> list[Record]:
    """Reads a JSON list of objects and checks each as `read_record` does; an empty list if there is no file."""
    content = read_json(file, mend=mend) if epath.Path(file).exists() else []
    if not isinstance(content, list):
        raise UserError(str(file), f"a {type(content).__name__}", "a list of records", mend)
    return [require_fields(record, fields, f"{file}, record {i}", mend=mend) for i, record in enumerate(content, 1)]


def read_lines(file: epath.PathLike, fields: Fields, *, mend: str = "") -> list[Record]:
    """Reads what `append_lines` wrote and checks each line as `read_record` does; an empty list if there is no file.

    A last line without a line break was torn when the program was killed, and is left out.
    """
    file = epath.Path(file)
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    places = {f"{file}, line {i}": line for i, line in enumerate(lines, 1) if line.endswith(b"\n")}
    return [
        require_fields(parse_json(line, place, mend=mend), fields, place, mend=mend) for place, line in places.items()
    ]


def require_fields(
    content: Any, fields: Fields, place: str, *, mend: str = "", kind_of_error: type[UserError] = UserError
) -> Record:
    """Checks parsed JSON as `read_record` does, and returns it.

    Args:
      fields, mend, kind_of_error: as for `read_record`.
      place: the file, and where in it, for the error.
    """
    if not isinstance(content, dict):
        raise kind_of_error(place, f"a {type(content).__name__}", f"an object with {', '.join(fields)}", mend)
    for name, kind in fields.items():
        if name not in content or not _is(content[name], kind):
            got = f"{name}={reprlib.repr(content[name])}" if name in content else f"no {name}"
            kind_name = kind.__name__ if type(kind) is type else str(kind)
            raise kind_of_error(place, got, f"{name} of type {kind_name}", mend)
    return content


def parse_json(text: str | bytes, place: str, *, mend: str = "", kind_of_error: type[UserError] = UserError) -> Any:
    """Parses JSON from anywhere.

    Raises:
      UserError: the text is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number with too many digits, nested too deep
        raise kind_of_error(place, f"no valid JSON ({error})", "a whole file", mend) from error


def _is(value: Any, kind: Any) -> bool:
    """Whether a JSON value has a type: float takes whole numbers too, and list[...] and dict[str, ...] check items."""
    if typing.get_origin(kind) is list:
        return isinstance(value, list) and all(_is(item, *typing.get_args(kind)) for item in value)
    if typing.get_origin(kind) is dict:
        return isinstance(value, dict) and all(_is(item, typing.get_args(kind)[1]) for item in value.values())
    if kind is float and type(value) is int:
        return abs(value) <= sys.float_info.max
    return type(value) is kind
