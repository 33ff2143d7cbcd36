"""Shuffled shards from images: in parallel, in little memory, and as if never interrupted.

Which image goes where is a pure function of the seed and the listing. A shard is written under another name, moved to
its place when it is whole, and then noted in the folder `parts`; a run that was killed leaves no broken shard, and the
next one makes those that are not noted. The index comes last, and `parts` goes.

Each thread holds one image at a time.
"""

import concurrent.futures
import json
import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64

from skipnet_jax.data import tfrecords
from skipnet_jax.data.shard_checker import why_undecodable
from skipnet_jax.data.shard_plan import Plan
from skipnet_jax.data.storage import hash_file, is_bucket, join, publish, read_bytes, require_bucket, write_text
from skipnet_jax.data.tfrecords import Index, Shard
from skipnet_jax.errors import DataError, UserError

_PARTS = "parts"
_PLAN = "plan.json"


def make(out: str, plan: Plan, *, threads: int, advance: Callable[[int], None], say: Callable[[str], None]) -> Index:
    """Writes the shards that are not there yet, and the index.

    Args:
      out: folder for the data set, local or gs://; new, empty, or that of an interrupted run of the same plan.
      plan: what to make.
      threads: shards written at a time.
      advance: called with a number of images as they are done.
      say: called with a line about each image that is left out.

    Returns:
      The index, as written.

    Raises:
      DataError: an image cannot be decoded, and on_corrupt is "error".
      ValueError: `out` holds something else.
    """
    import tensorflow as tf

    made_with = plan.describe()
    if _is_finished(out, made_with):
        advance(sum(map(len, plan.listings.values())))
        return tfrecords.read_index(out)
    stop = threading.Event()
    splits, skipped = {}, {}
    # Split by split, for at most one order in memory; the last shards of one do not wait for each other for long.
    for split in plan.listings:
        writer = _Writer(out, plan, split, stop, advance, say)
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            parts = [pool.submit(writer.part, number) for number in range(plan.num_shards[split])]
            try:
                for part in concurrent.futures.as_completed(parts):
                    part.result()
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        results = [part.result() for part in parts]
        splits[split] = tuple(
            Shard(join(out, part["name"]), part["examples"], part["bytes"], part["sha256"]) for part in results
        )
        skipped[split] = [name for part in results for name in part["skipped"]]
        if not sum(shard.examples for shard in splits[split]):
            raise DataError(plan.listings[split].path, "not one image that can be decoded", "some")
    index = Index(plan.name, plan.class_names, 0, splits)
    tfrecords.write_index(out, index, made_with={**made_with, "skipped": skipped})
    tf.io.gfile.rmtree(join(out, _PARTS))
    return index


class _Writer:
    """Makes the shards of one split, from several threads."""

    def __init__(
        self,
        out: str,
        plan: Plan,
        split: str,
        stop: threading.Event,
        advance: Callable[[int], None],
        say: Callable[[str], None],
    ) -> None:
        self._out, self._split, self._stop, self._advance, self._say = out, split, stop, advance, say
        self._skip = plan.on_corrupt == "skip"
        self._listing = plan.listings[split]
        self._num_shards = plan.num_shards[split]
        numbers = np.array([plan.class_names.index(name) for name in self._listing.class_names])
        self._labels = numbers[self._listing.labels]
        self._order = plan.order(split)

    def part(self, number: int) -> dict[str, Any]:
        """Makes a shard, unless it is there; what is noted of it."""
        name = f"{self._split}-{number:05d}-of-{self._num_shards:05d}"
        note = join(join(self._out, _PARTS), f"{name}.json")
        part = self._noted(note, join(self._out, name))
        if part is None:
            first, last = (len(self._listing) * i // self._num_shards for i in (number, number + 1))
            part = self._write(name, self._order[first:last])
            write_text(note, json.dumps(part))
            return part
        if part["skipped"] and not self._skip:
            raise _undecodable(self._listing.path, part["skipped"][0])
        self._advance(part["examples"] + len(part["skipped"]))
        return part

    def _noted(self, note: str, path: str) -> dict[str, Any] | None:
        """What an earlier run noted, if its shard is still whole."""
        import tensorflow as tf

        try:
            part = json.loads(read_bytes(note))
            return part if tf.io.gfile.stat(path).length == part["bytes"] else None
        except (FileNotFoundError, tf.errors.NotFoundError, json.JSONDecodeError):
            return None

    def _write(self, name: str, indexes: Int64[np.ndarray, "examples"]) -> dict[str, Any]:
        import tensorflow as tf

        skipped: list[str] = []
        with tempfile.TemporaryDirectory() as scratch:
            # The number of the process: another one, started by mistake, may be at the same shard.
            path = join(scratch if is_bucket(self._out) else join(self._out, _PARTS), f"{name}.{os.getpid()}")
            with tf.io.TFRecordWriter(path) as writer:
                for index in map(int, indexes):
                    if self._stop.is_set():
                        raise concurrent.futures.CancelledError
                    encoded = self._listing.read(index)
                    if reason := why_undecodable(encoded):
                        self._refuse(f"{self._listing.name(index)} ({reason})")
                        skipped.append(self._listing.name(index))
                    else:
                        label = int(self._labels[index])
                        writer.write(tfrecords.serialize(encoded, label, self._listing.name(index)))
                    self._advance(1)
            size, sha256 = hash_file(path)
            publish(path, join(self._out, name))
        examples = len(indexes) - len(skipped)
        return {"name": name, "examples": examples, "bytes": size, "sha256": sha256, "skipped": skipped}

    def _refuse(self, image: str) -> None:
        if not self._skip:
            raise _undecodable(self._listing.path, image)
        self._say(f"left out, cannot be decoded: {image}")


def _undecodable(path: str, image: str) -> DataError:
    return DataError(
        path, image, "an image that can be decoded", "Mend it, or leave such images out by `corrupt`=skip."
    )


def _is_finished(out: str, made_with: Mapping[str, Any]) -> bool:
    """Whether the data set is done; else `out` is made ready for it.

    Raises:
      ValueError: it holds something else.
    """
    import tensorflow as tf

    require_bucket(out)
    plan = join(join(out, _PARTS), _PLAN)
    try:
        index = json.loads(read_bytes(join(out, tfrecords.INDEX)))
    except FileNotFoundError:
        index = None
    if index is not None:
        _require_same(out, {name: index.get("made_with", {}).get(name) for name in made_with}, made_with)
        if tf.io.gfile.exists(join(out, _PARTS)):
            tf.io.gfile.rmtree(join(out, _PARTS))
        return True
    try:
        _require_same(out, json.loads(read_bytes(plan)), made_with)
    except FileNotFoundError:
        if tf.io.gfile.isdir(out) and [name for name in tf.io.gfile.listdir(out) if name.rstrip("/") != _PARTS]:
            raise UserError(
                "out", f"{out}, which holds other files", "a new or empty folder", "Choose another `out`."
            ) from None
        tf.io.gfile.makedirs(join(out, _PARTS))
        write_text(plan, json.dumps(made_with))
    return False


def _require_same(out: str, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    different = [name for name in wanted if wanted[name] != stored.get(name)]
    if different:
        raise UserError(
            "out",
            f"{out}, whose shards were begun with {', '.join(f'{name}={stored.get(name)}' for name in different)}",
            f"{', '.join(f'{name}={wanted[name]}' for name in different)}",
            "Give the old values to go on with them, or choose another `out`.",
        )
