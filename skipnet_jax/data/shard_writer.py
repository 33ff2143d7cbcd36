"""Makes shuffled shards from images: in parallel, in little memory, and resumable.

Which image goes where is a pure function of the seed and the listing. Each shard is written under another name, moved
to its place when it is whole, and then noted in the folder `parts`. So a killed run leaves no broken shard, and the
next run makes only the shards that are not noted yet. At the end the files of TensorFlow Datasets and the index are
written, and `parts` is removed.

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
from etils import epath
from jaxtyping import Int64

from skipnet_jax import files
from skipnet_jax.data import storage, tfds_metadata, tfrecords
from skipnet_jax.data.shard_plan import ShardPlan
from skipnet_jax.data.tfrecords import Index, Shard
from skipnet_jax.errors import DataError, UserError

_PARTS = "parts"
_PLAN = "plan.json"
_NOTE = {"name": str, "examples": int, "bytes": int, "sha256": str, "skipped": list[str]}


def make(
    out: str, plan: ShardPlan, *, threads: int, advance: Callable[[int], None], say: Callable[[str], None]
) -> Index:
    """Writes the missing shards, and the index.

    Args:
      out: folder for the data set, local or gs://: new, empty, or left by an interrupted run of the same plan.
      plan: what to make.
      threads: shards written at a time.
      advance: called with a number of images as they are done.
      say: called with a line about each image that is left out.

    Returns:
      The index, as written.

    Raises:
      DataError: an image cannot be decoded, and on_corrupt is "error".
      UserError: `out` holds something else.
    """
    folder = epath.Path(out)
    made_with = plan.describe()
    if _is_finished(folder, made_with):
        advance(sum(map(len, plan.listings.values())))
        return tfrecords.read_index(out)
    stop = threading.Event()
    splits, skipped = {}, {}
    # One split after the other, so that only one order is in memory.
    for split in plan.listings:
        writer = _SplitWriter(folder, plan, split, stop, advance, say)
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            parts = [pool.submit(writer.make_shard, number) for number in range(plan.num_shards[split])]
            try:
                for part in concurrent.futures.as_completed(parts):
                    part.result()
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        notes = [part.result() for part in parts]
        splits[split] = tuple(
            Shard(os.fspath(folder / note["name"]), note["examples"], note["bytes"], note["sha256"]) for note in notes
        )
        skipped[split] = [name for note in notes for name in note["skipped"]]
        if not sum(shard.examples for shard in splits[split]):
            raise DataError(plan.listings[split].path, "not one image that can be decoded", "some")
    index = Index(plan.name, plan.class_names, 0, splits)
    tfds_metadata.write(out, index)
    tfrecords.write_index(out, index, made_with={**made_with, "skipped": skipped})
    (folder / _PARTS).rmtree()
    return index


class _SplitWriter:
    """Makes the shards of one split, from several threads."""

    def __init__(
        self,
        out: epath.Path,
        plan: ShardPlan,
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

    def make_shard(self, number: int) -> dict[str, Any]:
        """Makes a shard, unless an earlier run did, and returns its note."""
        name = f"{self._split}-{number:05d}-of-{self._num_shards:05d}"
        place = self._out / _PARTS / f"{name}.json"
        note = self._read_note(place, name)
        if note is None:
            first, last = (len(self._listing) * i // self._num_shards for i in (number, number + 1))
            note = self._write(name, self._order[first:last])
            files.write_text(place, json.dumps(note))
            return note
        for image in note["skipped"]:
            self._require_skip(image)
        self._advance(note["examples"] + len(note["skipped"]))
        return note

    def _read_note(self, place: epath.Path, name: str) -> dict[str, Any] | None:
        """Returns an earlier run's note, if its shard is still whole."""
        import tensorflow as tf

        try:
            note = files.read_record(place, _NOTE)
            return note if tf.io.gfile.stat(os.fspath(self._out / name)).length == note["bytes"] else None
        except (FileNotFoundError, tf.errors.NotFoundError, UserError):
            return None

    def _write(self, name: str, indexes: Int64[np.ndarray, "examples"]) -> dict[str, Any]:
        import tensorflow as tf

        from skipnet_jax.data import decoding

        skipped: list[str] = []
        local = files.is_local(self._out)
        with tempfile.TemporaryDirectory() as scratch:
            # The process number keeps apart from another process that was started by mistake.
            path = os.path.join(self._out / _PARTS if local else scratch, f"{name}.{os.getpid()}")
            with tf.io.TFRecordWriter(path) as writer:
                for index in map(int, indexes):
                    if self._stop.is_set():
                        raise concurrent.futures.CancelledError
                    encoded, image = self._listing.read(index), self._listing.name(index)
                    if reason := decoding.why_undecodable(encoded):
                        self._require_skip(f"{image} ({reason})")
                        self._say(f"left out, cannot be decoded: {image} ({reason})")
                        skipped.append(image)
                    else:
                        writer.write(tfrecords.serialize(decoding.portable(encoded), int(self._labels[index]), image))
                    self._advance(1)
            size, sha256 = storage.hash_file(path)
            if local:
                files.put_in_place(path, self._out / name)
            else:
                epath.Path(path).copy(self._out / name, overwrite=True)  # an upload appears all at once
        examples = len(indexes) - len(skipped)
        return {"name": name, "examples": examples, "bytes": size, "sha256": sha256, "skipped": skipped}

    def _require_skip(self, image: str) -> None:
        if not self._skip:
            mend = "Mend it, or leave such images out by `corrupt`=skip."
            raise DataError(self._listing.path, image, "an image that can be decoded", mend)


def _is_finished(out: epath.Path, made_with: Mapping[str, Any]) -> bool:
    """Whether the data set is done; if not, makes `out` ready for it.

    Raises:
      UserError: it holds something else.
    """
    storage.require_bucket(os.fspath(out))
    parts = out / _PARTS
    if (out / tfrecords.INDEX).exists():
        stored = files.read_record(out / tfrecords.INDEX, {"made_with": dict})["made_with"]
        _require_same(out, {"records": made_with["records"], **stored}, made_with)  # earlier versions had other keys
        parts.rmtree(missing_ok=True)
        return True
    if (parts / _PLAN).exists():
        _require_same(out, files.read_record(parts / _PLAN, {}), made_with)
        return False
    if out.exists() and (not out.is_dir() or any(path.name != _PARTS for path in out.iterdir())):
        raise UserError("out", f"{out}, which holds something else", "a new or empty folder", "Choose another `out`.")
    parts.mkdir(parents=True, exist_ok=True)
    files.write_text(parts / _PLAN, json.dumps(made_with))
    return False


def _require_same(out: epath.Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    different = [name for name in wanted if wanted[name] != stored.get(name)]
    if different:
        raise UserError(
            "out",
            f"{out}, whose shards were made with {', '.join(f'{name} {stored.get(name)}' for name in different)}",
            ", ".join(f"{name} {wanted[name]}" for name in different),
            "Give the old values to go on with these shards, or choose another `out`.",
        )
