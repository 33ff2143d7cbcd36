"""Fetches a file once into the user's cache: resumes after an interruption, and checks the result."""

import hashlib
import os
import pathlib
import sys
import time

from skipnet_jax import files, libraries
from skipnet_jax.errors import UserError

CACHE_VARIABLE = "SKIPNET_CACHE"
TRIES = 3  # within one call; each resumes where the last broke off
PAUSE = 1.0  # seconds between them
TIMEOUT = (5, 30)  # seconds to connect, and to wait for the next byte
_CHUNK = 2**16  # bytes; an interruption loses an incomplete chunk


def cache_folder() -> pathlib.Path:
    """Where downloads are kept: $SKIPNET_CACHE, or skipnet_jax in the user's cache folder."""
    if given := os.environ.get(CACHE_VARIABLE):
        return pathlib.Path(given).expanduser()
    return pathlib.Path(libraries.cache_folder())


def fetch(address: str, sha256: str) -> pathlib.Path:
    """Returns the file's place in the cache, and downloads it first if it is not there.

    Args:
      sha256: the beginning of its SHA-256, in hexadecimal digits.

    Raises:
      UserError: it cannot be downloaded, or is another file; the message says how to fetch it by hand.
    """
    place = cache_folder() / address.rpartition("/")[2]
    if place.is_file():
        _require_hash(place, sha256, address)
        return place
    part = place.with_name(f"{place.name}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with files.alone(place.parent):
            if not place.is_file():  # another process may have fetched it meanwhile
                _download(address, part, place)
                _require_hash(part, sha256, address)
                files.put_in_place(part, place)
    except OSError as error:
        raise files.unwritable(CACHE_VARIABLE, place.parent, error) from error
    return place


def _download(address: str, part: pathlib.Path, place: pathlib.Path) -> None:
    """Downloads into `part`, after the bytes of an earlier, interrupted download.

    Raises:
      UserError: the server cannot be reached, refuses, or breaks off again and again.
    """
    import requests

    for attempt in range(TRIES):
        try:
            _request(address, part, place)
            return
        except requests.ConnectionError as error:
            if attempt and part.exists():
                time.sleep(PAUSE)
                continue
            if not part.exists() or isinstance(error, requests.exceptions.ConnectTimeout):
                break  # offline: trying again would only take longer
        except requests.RequestException:
            time.sleep(PAUSE)
    got = (
        "no answer from the server" if not part.exists() else f"{part.stat().st_size:,} bytes, then a broken connection"
    )
    again = "Run the same command again to resume, or" if part.exists() else "If this machine is offline,"
    raise UserError(address, got, "the whole file", f"{again} {_by_hand(address, place)}")


def _request(address: str, part: pathlib.Path, place: pathlib.Path) -> None:
    """Asks for the missing end of the file, and appends it.

    Raises:
      UserError: the server refuses.
      requests.RequestException: the connection broke.
    """
    import requests
    import tqdm

    done = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with requests.get(address, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if done and answer.status_code == requests.codes.requested_range_not_satisfiable:
            if answer.headers.get("Content-Range", "").rpartition("/")[2] == str(done):
                return  # all of it is there
            part.unlink()
            raise requests.ConnectionError("the part does not fit the file")
        if not answer.ok:
            mend = _by_hand(address, place)
            raise UserError(address, f"HTTP status {answer.status_code}", "the file", f"{mend[0].upper()}{mend[1:]}")
        if answer.status_code != requests.codes.partial_content:
            done = 0
        total = done + int(answer.headers["Content-Length"]) if "Content-Length" in answer.headers else None
        with (
            part.open("ab" if done else "wb") as stream,
            tqdm.tqdm(
                total=total, initial=done, unit="B", unit_scale=True, desc=place.name, disable=not sys.stderr.isatty()
            ) as bar,
        ):
            for chunk in answer.iter_content(_CHUNK):
                stream.write(chunk)
                bar.update(len(chunk))
    if total is not None and part.stat().st_size < total:
        raise requests.ConnectionError(f"{part.stat().st_size} of {total} bytes")


def _require_hash(path: pathlib.Path, sha256: str, address: str) -> None:
    """Checks a file, and removes a wrong download so that the next try starts anew.

    Raises:
      UserError: it is another file.
    """
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found.startswith(sha256):
        return
    if path.name.endswith(".part"):
        path.unlink()
    mend = f"Remove {path}, and fetch {address} again."
    raise UserError(f"{path}", f"a file whose SHA-256 begins with {found[:8]}", f"one that begins with {sha256}", mend)


def _by_hand(address: str, place: pathlib.Path) -> str:
    return f"fetch {address} elsewhere, and put it at {place}"
