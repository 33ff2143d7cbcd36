"""Which examples a host reads, in which order: datasets of (epoch, index, record).

The index is the example's number in its source, the record its bytes in a shard. Files are not read yet: their record
is the word "file".
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from skipnet_jax.data import keys
from skipnet_jax.data.splits import Files, Shards
from skipnet_jax.data.streams import Streams, segments

# Shards read at once, by several threads; and bytes per read, which is a request where they lie in a bucket.
_PARALLEL_SHARDS = 16
_READ_BYTES = 1 << 20


def of_files(source: Files, batch_size: int, seed: int, start_step: int, process_index: int, process_count: int) -> Any:
    """(epoch, index, "file") of every example of this host, from a step on."""
    import tensorflow as tf

    steps, host_batch = source.num_examples // batch_size, batch_size // process_count

    def epoch_of(epoch: Any) -> Any:
        order = keys.permutation(seed, epoch, source.num_examples)
        first = tf.maximum(start_step - epoch * steps, 0)

        def step_of(step: Any) -> Any:
            indexes = tf.slice(order, [step * batch_size + process_index * host_batch], [host_batch])
            return tf.data.Dataset.from_tensor_slices(indexes)

        return tf.data.Dataset.range(first, steps).flat_map(step_of).map(lambda index: (epoch, index, "file"))

    return tf.data.Dataset.range(start_step // steps, np.iinfo(np.int64).max).flat_map(
        tf.autograph.experimental.do_not_convert(epoch_of)
    )


def of_streams(source: Shards, streams: Streams, start_step: int, process_index: int, process_count: int) -> Any:
    """(epoch, index, record) of every example of this host, from a step on: its streams in turn."""
    import tensorflow as tf

    steps = streams.length // streams.per_step
    first_epoch, first_step = divmod(start_step, steps)
    number = streams.number // process_count
    read_segment = _segment_reader(source)

    def plan(epoch: np.int64, stream: np.int64, start: np.int64) -> tuple[np.ndarray, np.ndarray]:
        return streams.read(int(epoch), int(stream), int(start))

    def mixed(window: tuple[Any, Any], order: Any) -> Any:
        indexes, records = window
        return tf.data.Dataset.from_tensor_slices((tf.gather(indexes, order), tf.gather(records, order)))

    def stream_of(stream: Any) -> Any:
        def epoch_of(epoch: Any) -> Any:
            start = tf.where(epoch == first_epoch, tf.constant(first_step * streams.per_step, tf.int64), 0)
            pieces, order = tf.numpy_function(plan, [epoch, stream, start], [tf.int64, tf.int64], stateful=False)
            pieces, order = tf.ensure_shape(pieces, [None, 3]), tf.ensure_shape(order, [None])
            windows = tf.data.Dataset.from_tensor_slices(pieces).flat_map(read_segment).batch(streams.window)
            orders = tf.data.Dataset.from_tensor_slices(order).batch(streams.window)
            # The next window is read while this one is handed out.
            mixed_records = tf.data.Dataset.zip((windows, orders)).prefetch(1).flat_map(mixed)
            return mixed_records.skip(start % streams.window).map(lambda index, record: (epoch, index, record))

        return tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max).flat_map(epoch_of)

    return tf.data.Dataset.range(process_index * number, (process_index + 1) * number).interleave(
        tf.autograph.experimental.do_not_convert(stream_of),
        cycle_length=number,
        block_length=streams.per_step,
        num_parallel_calls=min(number, _PARALLEL_SHARDS),
        deterministic=True,
    )


def in_range(source: Files | Shards, start: int, stop: int) -> Any:
    """(epoch 0, index, record) of the examples start..stop - 1; files in order, shards several at a time."""
    import tensorflow as tf

    if isinstance(source, Files):
        return tf.data.Dataset.range(start, stop).map(lambda index: (tf.zeros([], tf.int64), index, "file"))
    counts = tuple(shard.examples for shard in source.shards)
    pieces = tf.data.Dataset.from_tensor_slices(segments(counts, np.arange(len(counts)), start, stop))
    found = pieces.interleave(
        tf.autograph.experimental.do_not_convert(_segment_reader(source)),
        cycle_length=_PARALLEL_SHARDS,
        num_parallel_calls=_PARALLEL_SHARDS,
        deterministic=True,
    )
    return found.map(lambda index, record: (tf.zeros([], tf.int64), index, record))


def _segment_reader(source: Shards) -> Callable[[Any], Any]:
    """Returns the function from (shard, first record, records) to a dataset of (index, record).

    It always has that many elements: records that cannot be read, because the shard is damaged, too short or gone, are
    empty.
    """
    import tensorflow as tf

    paths = tf.constant([shard.path for shard in source.shards])
    begins = tf.constant(np.cumsum([0, *(shard.examples for shard in source.shards)])[:-1], tf.int64)

    def open_shard(path: Any) -> tuple[Any, Any]:
        return path, tf.data.TFRecordDataset(path).take(1).get_single_element()

    def read(piece: Any) -> Any:
        shard, first, count = tf.unstack(piece, 3)
        # Its first record is read beforehand: a file that cannot be opened would fail again and again, without end,
        # in a TFRecordDataset whose errors are ignored, but only once in a map.
        path = tf.data.Dataset.from_tensors(paths[shard]).map(open_shard).ignore_errors(log_warning=False)
        records = path.flat_map(
            lambda path, _: tf.data.TFRecordDataset(path, buffer_size=_READ_BYTES).skip(first).take(count)
        )
        whole = records.ignore_errors(log_warning=False).concatenate(tf.data.Dataset.from_tensors("").repeat())
        index = begins[shard] + first
        return tf.data.Dataset.zip((tf.data.Dataset.range(index, index + count), whole))

    return read
