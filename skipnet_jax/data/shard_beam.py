"""Makes shards in an Apache Beam pipeline: in several processes, or on the machines of Dataflow, Flink or Spark.

The program that starts the pipeline lists the images (some 70 bytes of memory each) and writes a list of the images of
each shard into the folder `parts`. A worker takes one such list at a time, so its memory does not grow with the data
set. It makes the shard with `shard_writer`, so the bytes are the same. A shard appears whole or not at all, and is the
same if it is made twice. So Beam may repeat the work of a worker that has died, or that seems to have.
"""

import functools
import io
import json
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from skipnet_jax import libraries
from skipnet_jax.data import shard_writer, walk
from skipnet_jax.data.archives import Listing
from skipnet_jax.data.shard_plan import ShardPlan
from skipnet_jax.data.shard_writer import ShardTask
from skipnet_jax.data.tfrecords import Index
from skipnet_jax.errors import DataError, UserError

_LISTS, _REFUSED = "parts/{}.npz", "parts/{}.refused"


def make(out: str, plan: ShardPlan, *, flags: Sequence[str], advance: Callable[[int], None]) -> Index:
    """Writes the missing shards, and the index, as `shard_writer.make` does.

    Args:
      out: folder for the data set, local or gs://, that all workers can see.
      flags: Beam's own, such as --runner=DirectRunner.
      advance: called with the number of images that the pipeline has read.

    Returns:
      The index, as written.

    Raises:
      DataError: an image cannot be decoded, and on_corrupt is "error".
      UserError: Beam is not installed or refuses the flags, or `out` holds something else.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        got, mend = f"no Apache Beam ({error})", 'Run: pip install -e ".[beam]"'
        raise UserError("beam", got, "the package apache-beam", mend) from None
    if finished := shard_writer.prepare(out, plan):
        return finished
    names = {
        split: [_write_list(task_of(number)) for number in range(plan.num_shards[split])]
        for split in plan.listings
        for task_of in [shard_writer.tasks(out, plan, split)]
    }
    waiting = [name for of_split in names.values() for name in of_split if not shard_writer.read_note(out, name)]
    try:
        options = PipelineOptions(list(flags))
    except SystemExit:  # from Beam's own parser, which has said why
        raise UserError("beam", " ".join(flags), "flags that Beam knows", "Correct them.") from None
    pipeline = beam.Pipeline(options=options)
    # Without the reshuffle one worker would make all shards.
    shards = pipeline | beam.Create(waiting) | beam.Reshuffle()
    _ = shards | "make" >> beam.Map(functools.partial(_make, out))
    result = _run(pipeline, out)
    _require_none_refused(out, waiting)
    counters = result.metrics().query()["counters"]
    advance(sum(counter.result for counter in counters if counter.key.metric.name == "images"))
    notes = {split: [shard_writer.read_note(out, name) for name in of_split] for split, of_split in names.items()}
    whole = {split: [note for note in of_split if note is not None] for split, of_split in notes.items()}
    if missing := [name for split in names for name, note in zip(names[split], notes[split], strict=True) if not note]:
        got = f"{len(missing)} shards that the pipeline has not made, such as {missing[0]}"
        raise DataError(out, got, "all", "Run the same command again; give a folder that all workers see.")
    return shard_writer.finish(out, plan, whole)


def _run(pipeline: Any, out: str) -> Any:
    """Runs a pipeline to its end, and returns its result."""
    try:
        result = pipeline.run()
        result.wait_until_finish()
    except RuntimeError as error:  # Beam has given up
        lines = [line for line in str(error).splitlines() if line.strip()]
        got, mend = f"a pipeline that has failed ({lines[-1] if lines else error!r})", "Run the same command again."
        raise DataError(out, got, "all shards", mend) from error
    return result


def _make(out: str, name: str) -> int:
    """Makes a shard on a worker, and returns how many images it has left out."""
    from apache_beam.metrics import Metrics

    libraries.quieten_tensorflow(level=3)
    images, refused = Metrics.counter("shards", "images"), Metrics.counter("shards", "refused")
    try:
        note = shard_writer.make_shard(_read_list(out, name), threading.Event(), images.inc, lambda line: refused.inc())
    except DataError as error:  # if raised, Beam would try again and again
        told = [error.field, error.got, error.expected, error.mend]
        (epath.Path(out) / _REFUSED.format(name)).write_text(json.dumps(told))
        return 0
    return len(note["skipped"])


def _require_none_refused(out: str, names: Sequence[str]) -> None:
    """Raises the first error of a worker."""
    places = [epath.Path(out) / _REFUSED.format(name) for name in names]
    told = [(place, place.read_text()) for place in places if place.exists()]
    for place, _ in told:
        place.unlink()
    if told:
        raise DataError(*json.loads(told[0][1]))


def _write_list(task: ShardTask) -> str:
    """Writes the list of a shard's images where the workers find it, and returns the shard's name."""
    images = task.images
    content = io.BytesIO()
    np.savez(
        content,
        path=np.frombuffer(os.fsencode(images.path), np.uint8),
        names=np.frombuffer(images.names, np.uint8),
        name_ends=images.name_ends,
        offsets=images.offsets,
        sizes=images.sizes,
        labels=task.labels,
        flags=np.array([images.is_archive, task.skip]),
    )
    (epath.Path(task.out) / _LISTS.format(task.name)).write_bytes(content.getvalue())
    return task.name


def _read_list(out: str, name: str) -> ShardTask:
    with np.load(io.BytesIO((epath.Path(out) / _LISTS.format(name)).read_bytes()), allow_pickle=False) as content:
        is_archive, skip = map(bool, content["flags"])
        images = Listing(
            path=os.fsdecode(content["path"].tobytes()),
            class_names=(),
            official=False,
            labels=content["labels"].astype(np.int32),
            offsets=content["offsets"],
            sizes=content["sizes"],
            names=content["names"].tobytes(),
            name_ends=content["name_ends"],
            left_out=walk.LeftOut(),
            is_archive=is_archive,
        )
        return ShardTask(out, name, images, content["labels"], skip)
