"""How files are written: as a whole or not at all, and as JSON or one line of JSON per record."""

import errno
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath


def write_text(file: epath.PathLike, text: str) -> None:
    """Writes a file anew; an interrupted write leaves the old one.

    Args:
      file: local, or in a bucket.
      text: all that it will hold.
    """
    file = epath.Path(file)
    new = file.parent / f".{file.name}.new"
    new.write_text(text)
    put_in_place(new, file)


def put_in_place(new: epath.PathLike, file: epath.PathLike) -> None:
    """Moves a finished file to its place, where an older one may be.

    Args:
      new: on the same disk, or in the same bucket.
      file: its place.
    """
    if "://" not in str(file):
        with open(new, "rb") as stream:
            os.fsync(stream.fileno())  # else a loss of power may leave the new name with nothing behind it
    epath.Path(new).replace(file)


def read_json(file: epath.Path) -> Any:
    """Reads a file that `write_json` wrote.

    Raises:
      ValueError: it holds something else by now.
    """
    return _parse(file.read_bytes(), str(file))


def write_json(file: epath.Path, content: Any) -> None:
    """Writes JSON for people to read; an interrupted write leaves the old file."""
    write_text(file, json.dumps(content, indent=2) + "\n")


def read_lines(file: epath.Path) -> list[dict[str, Any]]:
    """All lines of a file that `append_lines` wrote. A torn last line (kill -9) is left out."""
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    records = [_parse(line, f"{file}, line {i}") for i, line in enumerate(lines, 1) if line.endswith(b"\n")]
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise not_ours(f"{file}, line {number}", "no JSON object")
    return records


def write_lines(file: epath.Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file of such lines anew; an interrupted write leaves the old one."""
    write_text(file, "".join(json.dumps(record) + "\n" for record in records))


def append_lines(file: epath.Path, records: Iterable[Mapping[str, Any]], *, before: bytes = b"") -> bytes:
    """Adds lines of JSON to a file; what the disk has no room for is no reason to stop a run.

    Args:
      records: one per line.
      before: what an earlier call returned.

    Returns:
      What could not be written, to be given to the next call; it may begin in the middle of a line.
    """
    data = before + "".join(json.dumps(record) + "\n" for record in records).encode()
    if "://" in str(file):  # TensorFlow's files do not say how much they have taken
        with file.open("ab") as stream:
            stream.write(data)
        return b""
    try:
        with open(file, "ab", buffering=0) as stream:
            while data:  # without a buffer it is known how much went in before the disk was full
                data = data[stream.write(data) :]
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
    return data


def not_ours(where: str, got: str) -> ValueError:
    """The error for a file of a workdir that somebody has changed.

    Args:
      where: which file, and where in it.
      got: what is wrong with it.
    """
    return ValueError(f"{where}: got {got}, expected what training wrote. Mend it, or choose another --workdir.")


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number of too many digits, too deep
        raise not_ours(where, f"no valid JSON ({error})") from error
