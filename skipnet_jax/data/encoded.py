"""Batches of images that are read as files, alone or in shards, and decoded on the way.

An image that cannot be decoded ends the whole input, with an error of TensorFlow's that does not name it. Where asked
to be careful, nothing here raises for a bad image: it becomes a black one whose "status" says what was wrong. It costs
a millisecond per image, so `checked.py` asks for it only after such an error.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from skipnet_jax.data import augment, keys, records
from skipnet_jax.data.splits import Files, Shards
from skipnet_jax.data.streams import Streams
from skipnet_jax.specs import DataSpec

# What became of an image: read and decoded; not decoded; not even there, since its shard ends or is damaged before it.
GOOD, UNDECODABLE, MISSING = 0, 1, 2

# Images in the making at once: more than the cores, since some wait for a file.
_PARALLEL = max(2 * (os.cpu_count() or 1), 16)
# Batches made ahead.
_PREFETCH = 2


def train_batches(
    source: Files | Shards,
    spec: DataSpec,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    process_index: int,
    process_count: int,
    careful: bool,
) -> Any:
    """A tf.data.Dataset of this host's training batches, without end.

    Files come in the order of a permutation of all; shards in that of `streams.py`.

    Returns:
      Of {"image", "label", "index", "status"} and, where spec.lighting is on, "lighting".
    """
    host_batch = batch_size // process_count
    where = (start_step, process_index, process_count)
    if isinstance(source, Shards):
        streams = Streams(tuple(shard.examples for shard in source.shards), batch_size, seed)
        found = records.of_streams(source, streams, *where)
    else:
        found = records.of_files(source, batch_size, seed, *where)
    fetch = _fetch(source)

    def load(epoch: Any, index: Any, record: Any) -> dict[str, Any]:
        encoded, label = fetch(index, record)
        key = keys.example_key(seed, epoch, index)
        light = {"lighting": augment.lighting(key, spec)} if spec.lighting else {}
        return {"image": augment.train_image(encoded, key, spec), "label": label, **light}

    examples = _load_each(found, load, source, spec, careful)
    return examples.batch(host_batch, drop_remainder=True).prefetch(_PREFETCH).with_options(_options())


def eval_batches(
    source: Files | Shards,
    spec: DataSpec,
    *,
    batch_size: int,
    start_batch: int,
    process_index: int,
    process_count: int,
    careful: bool,
) -> Any:
    """A tf.data.Dataset of the batches of this host's range of the examples; the last may be smaller, or none be there.

    Files come in order, shards several at a time.

    Returns:
      Of {"image", "label", "index", "status"}.
    """
    import tensorflow as tf

    from skipnet_jax.data import image_ops

    share = -(-source.num_examples // process_count)
    start, stop = (min(host * share, source.num_examples) for host in (process_index, process_index + 1))
    host_batch = batch_size // process_count
    found = records.in_range(source, start, stop).skip(start_batch * host_batch)
    fetch = _fetch(source)

    def load(epoch: Any, index: Any, record: Any) -> dict[str, Any]:
        encoded, label = fetch(index, record)
        image = image_ops.eval_crop(image_ops.decode(encoded), spec.image_size)
        return {"image": tf.ensure_shape(image, [spec.image_size, spec.image_size, 3]), "label": label}

    examples = _load_each(found, load, source, dataclasses.replace(spec, lighting=0.0), careful)
    return examples.batch(host_batch).prefetch(_PREFETCH).with_options(_options())


def _fetch(source: Files | Shards) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Returns the function from an example's (index, record) to its image file and label."""
    import tensorflow as tf

    if isinstance(source, Shards):
        return lambda index, record: source.parse(record)
    paths, labels = tf.constant(source.paths), tf.constant(source.labels)
    return lambda index, record: (tf.io.read_file(paths[index]), labels[index])


def _load_each(
    found: Any, load: Callable[..., dict[str, Any]], source: Files | Shards, spec: DataSpec, careful: bool
) -> Any:
    """Applies `load` to each (epoch, index, record), many at once and in order, and adds "index" and "status".

    Being careful, each goes through a dataset of its own, in which errors can be ignored: it is then empty, and what
    was appended as a replacement comes first.
    """
    import tensorflow as tf

    shape = [source.label_width] if isinstance(source, Shards) and source.label_width else []

    def loaded(epoch: Any, index: Any, record: Any) -> dict[str, Any]:
        example = load(epoch, index, record)
        label = tf.ensure_shape(tf.cast(example["label"], tf.int32), shape)
        return example | {"label": label, "index": index, "status": tf.constant(GOOD)}

    def loaded_or_replaced(epoch: Any, index: Any, record: Any) -> Any:
        status = tf.where(tf.strings.length(record) > 0, UNDECODABLE, MISSING)
        replacement = {
            "image": tf.zeros([spec.image_size, spec.image_size, 3], tf.uint8),
            "label": -tf.ones(shape, tf.int32),
            "index": index,
            "status": status,
        }
        if spec.lighting:
            replacement["lighting"] = tf.zeros([3])
        good = tf.data.Dataset.from_tensors((epoch, index, record)).map(loaded).ignore_errors(log_warning=False)
        return good.concatenate(tf.data.Dataset.from_tensors(replacement)).take(1)

    as_it_is = tf.autograph.experimental.do_not_convert  # nothing here needs AutoGraph, which takes seconds
    if not careful:
        return found.map(as_it_is(loaded), num_parallel_calls=_PARALLEL, deterministic=True)
    return found.interleave(
        as_it_is(loaded_or_replaced), cycle_length=_PARALLEL, num_parallel_calls=_PARALLEL, deterministic=True
    )


def _options() -> Any:
    import tensorflow as tf

    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = os.cpu_count() or 1
    return options
