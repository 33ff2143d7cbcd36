"""One result file from many hosts: each writes its part, and host 0 joins the parts in the order of the input."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO

import jax
from etils import epath
from jax._src import distributed  # JAX has no public name for the key-value store that its hosts share

from skipnet_jax import files
from skipnet_jax.data import storage
from skipnet_jax.errors import UserError
from skipnet_jax.runs import workdir as workdirs

# How long the others wait for a slower host. If a host is gone, they end within seconds.
_WAIT_HOURS = 24 * 7
_COPIED_BYTES = 1 << 20


def share(total: int) -> range:
    """This host's share of the numbers 0..total - 1: consecutive ones, so that the joined parts are in order."""
    count, index = jax.process_count(), jax.process_index()
    return range(total * index // count, total * (index + 1) // count)


def require_output(output: str) -> str:
    """Checks that a file can be written, before hours go into its content.

    Args:
      output: as the user gave it; it may be relative to the current directory or to ~.

    Returns:
      Its absolute path.

    Raises:
      UserError: it cannot, or there is a folder at its place.
    """
    storage.require_bucket(output)
    if output.endswith("/") or (files.is_local(output) and workdirs.locate(output).is_dir()):
        mend = "Add the name of a file, as in found.jsonl."
        raise UserError("output", f"{output}, which is a folder", "a file, new or to be replaced", mend)
    output = str(workdirs.locate(output))  # no shell replaces the ~ of --output=~/found.jsonl
    path = epath.Path(_part(output, jax.process_index()))
    try:
        if files.is_local(output):
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        path.unlink()
    except OSError as error:
        raise files.unwritable("output", output, error) from error
    return output


@contextmanager
def writing(output: str) -> Iterator[IO[str]]:
    """Opens this host's part to write text. The part appears in its place once it is whole."""
    with (
        _appearing_whole(_part(output, jax.process_index())) as path,
        open(path, "w", encoding="utf-8", errors="surrogateescape") as file,
    ):
        yield file


def join(output: str, unreadable: int) -> int:
    """Joins the parts once all hosts have written theirs. All hosts call this, and return once the file is there.

    Args:
      output: the file, local or gs://, which all hosts see.
      unreadable: how many images this host could not read.

    Returns:
      How many images the hosts could not read, all together.

    Raises:
      UserError: on host 0, if it does not see the parts of the others.
    """
    count, index, store = jax.process_count(), jax.process_index(), distributed.global_state.client
    total = unreadable
    if count > 1:
        assert store is not None  # since there are several hosts
        wait = _WAIT_HOURS * 3_600_000
        store.key_value_set(f"skipnet_jax/part/{index}", str(unreadable))
        if index:
            return int(store.blocking_key_value_get("skipnet_jax/parts", wait))
        total = sum(int(store.blocking_key_value_get(f"skipnet_jax/part/{i}", wait)) for i in range(count))
    parts = [epath.Path(_part(output, i)) for i in range(count)]
    if missing := [part.name for part in parts if not part.exists()]:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        got = f"{output}, where host 0 does not see {missing[0]}{more}"
        mend = "Give a file on a network file system or in a bucket (gs://...)."
        raise UserError("output", got, "a folder that all hosts share", mend)
    _concatenate(parts, output)
    for part in parts:
        part.unlink()
    if count > 1:
        assert store is not None
        store.key_value_set("skipnet_jax/parts", str(total))
    return total


def _concatenate(parts: Iterable[epath.Path], output: str) -> None:
    with _appearing_whole(output) as path, open(path, "wb") as file:
        for part in parts:
            with part.open("rb") as content:
                shutil.copyfileobj(content, file, _COPIED_BYTES)


@contextmanager
def _appearing_whole(target: str) -> Iterator[str]:
    """Yields a local path to write to; the file then moves to the target, or goes into the bucket.

    On a disk the path lies beside the target, where there is room. An upload to a bucket appears as a whole.
    """
    if files.is_local(target):
        yield f"{target}.new"
        files.put_in_place(f"{target}.new", target)
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "whole")
        yield path
        epath.Path(path).copy(target, overwrite=True)


def _part(output: str, index: int) -> str:
    return f"{output}.part-{index:05d}-of-{jax.process_count():05d}"
