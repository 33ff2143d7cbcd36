"""Makes shuffled shards from images: in parallel, in little memory, and resumable.

The place of each image is a pure function of the seed and the listing. Each shard is written under a temporary name,
moved to its place when it is whole, and then noted in the folder `parts`. So a killed run leaves no broken shard, and
the next run makes only the shards that are not noted yet. The last steps write the files of TensorFlow Datasets and the
index, and remove `parts`.

Each thread holds one image at a time.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import tempfile
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int64

from skipnet_jax import files
from skipnet_jax.data import storage, tfds_metadata, tfrecords
from skipnet_jax.data.archives import Listing
from skipnet_jax.data.shard_plan import ShardPlan
from skipnet_jax.data.tfrecords import Index, Shard
from skipnet_jax.errors import DataError, UserError

_PARTS = "parts"
_PLAN = "plan.json"
_NOTE = {"name": str, "examples": int, "bytes": int, "sha256": str, "skipped": list[str]}

Note = dict[str, Any]  # about a finished shard: the fields of _NOTE


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """Everything needed to make a shard.

    Args:
      out: folder of the data set.
      images: of the shard, in the order of its records.
      labels: the classes of the images, numbered as in the data set.
      skip: leave out images that cannot be decoded.
    """

    out: str
    name: str
    images: Listing
    labels: Int64[np.ndarray, "n"]
    skip: bool


def make(
    out: str, plan: ShardPlan, *, threads: int, advance: Callable[[int], None], say: Callable[[str], None]
) -> Index:
    """Writes the missing shards, and the index.

    Args:
      out: folder for the data set, local or gs://: new, empty, or left by an interrupted run of the same plan.
      threads: shards written at a time.
      advance: called with the number of images just done.
      say: called with a line about each image that is left out.

    Returns:
      The index, as written.

    Raises:
      DataError: an image cannot be decoded, and on_corrupt is "error".
      UserError: `out` holds something else.
    """
    if finished := prepare(out, plan):
        advance(sum(map(len, plan.listings.values())))
        return finished
    stop = threading.Event()
    notes: dict[str, list[Note]] = {}
    # One split after the other, so that only one order is in memory.
    for split in plan.listings:
        task_of = tasks(out, plan, split)

        def make_one(number: int, task_of: Callable[[int], ShardTask] = task_of) -> Note:
            return make_shard(task_of(number), stop, advance, say)

        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            parts = [pool.submit(make_one, number) for number in range(plan.num_shards[split])]
            try:
                for part in concurrent.futures.as_completed(parts):
                    part.result()
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        notes[split] = [part.result() for part in parts]
    return finish(out, plan, notes)


def prepare(out: str, plan: ShardPlan) -> Index | None:
    """Makes a folder ready for the shards of a plan; returns the index if they are all there.

    Raises:
      UserError: the folder holds something else.
    """
    return tfrecords.read_index(out) if _is_finished(epath.Path(out), plan.describe()) else None


def tasks(out: str, plan: ShardPlan, split: str) -> Callable[[int], ShardTask]:
    """Returns the function from the number of a shard to its task."""
    listing, num_shards, order = plan.listings[split], plan.num_shards[split], plan.order(split)
    labels = np.array([plan.class_names.index(name) for name in listing.class_names])[listing.labels]

    def task_of(number: int) -> ShardTask:
        first, last = (len(listing) * i // num_shards for i in (number, number + 1))
        indexes = order[first:last]
        name = f"{split}-{number:05d}-of-{num_shards:05d}"
        return ShardTask(out, name, listing.take(indexes), labels[indexes], plan.on_corrupt == "skip")

    return task_of


def finish(out: str, plan: ShardPlan, notes: Mapping[str, Sequence[Note]]) -> Index:
    """Writes the index, once all shards are made.

    Args:
      out: folder of the data set.
      notes: of each split's shards, in their order.
    """
    folder = epath.Path(out)
    splits, skipped = {}, {}
    for split, of_split in notes.items():
        splits[split] = tuple(
            Shard(os.fspath(folder / note["name"]), note["examples"], note["bytes"], note["sha256"])
            for note in of_split
        )
        skipped[split] = [name for note in of_split for name in note["skipped"]]
        if not sum(shard.examples for shard in splits[split]):
            raise DataError(plan.listings[split].path, "no image that can be decoded", "at least one")
    index = Index(plan.name, plan.class_names, 0, splits)
    tfds_metadata.write(out, index)
    tfrecords.write_index(out, index, made_with={**plan.describe(), "skipped": skipped})
    (folder / _PARTS).rmtree()
    return index


def make_shard(
    task: ShardTask, stop: threading.Event, advance: Callable[[int], None], say: Callable[[str], None]
) -> Note:
    """Makes a shard, unless an earlier run did, and returns its note. A shard made twice has the same bytes.

    Args:
      stop: if set, the thread gives up.
      advance, say: as for `make`.

    Raises:
      DataError: an image cannot be decoded, and none may be left out.
    """
    note = read_note(task.out, task.name)
    if note is None:
        note = _write(task, stop, advance, say)
        files.write_text(epath.Path(task.out) / _PARTS / f"{task.name}.json", json.dumps(note))
        return note
    for image in note["skipped"]:
        _require_skip(task, image)
    advance(note["examples"] + len(note["skipped"]))
    return note


def read_note(out: str, name: str) -> Note | None:
    """Returns the note of a shard that is made and still whole, otherwise None."""
    import tensorflow as tf

    folder = epath.Path(out)
    try:
        note = files.read_record(folder / _PARTS / f"{name}.json", _NOTE)
        return note if tf.io.gfile.stat(os.fspath(folder / name)).length == note["bytes"] else None
    except (FileNotFoundError, tf.errors.NotFoundError, UserError):
        return None


def _write(task: ShardTask, stop: threading.Event, advance: Callable[[int], None], say: Callable[[str], None]) -> Note:
    import tensorflow as tf

    from skipnet_jax.data import decoding

    skipped: list[str] = []
    out, local = epath.Path(task.out), files.is_local(task.out)
    with tempfile.TemporaryDirectory() as scratch:
        # The random name keeps two processes apart, if one was started by mistake or in place of a worker that seems to
        # be lost.
        path = os.path.join(out / _PARTS if local else scratch, f"{task.name}.{uuid.uuid4().hex}")
        try:
            with tf.io.TFRecordWriter(path) as writer:
                for index in range(len(task.images)):
                    if stop.is_set():
                        raise concurrent.futures.CancelledError
                    encoded, image = task.images.read(index), task.images.name(index)
                    if reason := decoding.why_undecodable(encoded):
                        _require_skip(task, f"{image} ({reason})")
                        say(f"left out, cannot be decoded: {storage.show(image)} ({reason})")
                        skipped.append(image)
                    else:
                        writer.write(tfrecords.serialize(decoding.portable(encoded), int(task.labels[index]), image))
                    advance(1)
            size, sha256 = storage.hash_file(path)
            if local:
                files.put_in_place(path, out / task.name)
            else:
                epath.Path(path).copy(out / task.name, overwrite=True)  # an upload appears all at once
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(path)  # the disk may be full
            raise
    examples = len(task.images) - len(skipped)
    return {"name": task.name, "examples": examples, "bytes": size, "sha256": sha256, "skipped": skipped}


def _require_skip(task: ShardTask, image: str) -> None:
    if not task.skip:
        mend = "Mend it, or leave such images out with `corrupt`=skip."
        raise DataError(task.images.path, image, "an image that can be decoded", mend)


def _is_finished(out: epath.Path, made_with: Mapping[str, Any]) -> bool:
    """Whether the data set is done; if not, makes `out` ready for it.

    Raises:
      UserError: `out` holds something else.
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
