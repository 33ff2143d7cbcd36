"""Splits in shards: TFRecord files, which can only be read from the beginning."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from skipnet_jax.data import holdout, storage
from skipnet_jax.data.encoded import EncodedSplit
from skipnet_jax.data.splits import Batch, BatchRequest
from skipnet_jax.data.streams import Streams, require_streams, segments
from skipnet_jax.data.tfrecords import Shard
from skipnet_jax.errors import DataError
from skipnet_jax.specs import DataSpec

_PARALLEL_SHARDS = 16  # shards read at once, each by a thread
_READ_BYTES = 1 << 20  # per read; in a bucket each read is a request


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shards(EncodedSplit):
    """Images in shards.

    Args:
      shards: in the order that numbers the examples.
      parse: TensorFlow operations that parse a record: serialized -> encoded image (string scalar), label (int32
        scalar, or [label_width]).
    """

    shards: tuple[Shard, ...]
    parse: Callable[[Any], tuple[Any, Any]]

    @property
    def num_examples(self) -> int:
        return sum(self.counts)

    @property
    def counts(self) -> tuple[int, ...]:
        """Records of each shard."""
        return tuple(shard.examples for shard in self.shards)

    def describe(self, index: int) -> str:
        shard, record = self._locate(index)
        return f"record {shard.skip + record} of {shard.path}"

    def divide(self, amount: holdout.Amount) -> "tuple[Shards, Shards]":
        tails = holdout.tails(self.counts, amount)
        rest, kept = [], []
        for shard, tail in zip(self.shards, tails, strict=True):
            rest.append(dataclasses.replace(shard, examples=shard.examples - tail))
            kept.append(dataclasses.replace(shard, examples=tail, skip=shard.skip + shard.examples - tail))
        first, second = (tuple(shard for shard in shards if shard.examples) for shards in (rest, kept))
        return dataclasses.replace(self, shards=first), dataclasses.replace(self, shards=second)

    def reader(self) -> Callable[[Any, Any], tuple[Any, Any]]:
        return lambda index, record: self.parse(record)

    def missing_record(self, index: int) -> DataError:
        """Reads the example's shard once more, for TensorFlow's own message."""
        import tensorflow as tf

        shard, _ = self._locate(index)
        count, trouble = 0, "no more"
        try:
            for record in tf.data.TFRecordDataset(shard.path, shard.compression):
                if not len(record.numpy()):
                    trouble = "an empty one"
                    break
                count += 1
        except tf.errors.OpError as error:
            trouble = storage.reason(error)
        return DataError(
            shard.path,
            f"{count} records and then {trouble!r}",
            f"{shard.skip + shard.examples} records",
            f"Copy or make the shard again. {self.mend}",
        )

    def train_batches(self, spec: DataSpec, request: BatchRequest) -> Iterator[Batch]:
        require_streams(request.batch_size, request.process_count)
        return super().train_batches(spec, request)

    def train_records(self, request: BatchRequest) -> Any:
        """This host's share of the streams, in turn; `streams.py` explains them."""
        import tensorflow as tf

        streams = Streams(self.counts, request)
        first_epoch, first_step = divmod(request.start_step, streams.steps)
        number = streams.number // request.process_count
        read_segment = self._segment_reader()

        def read_plan(epoch: np.int64, stream: np.int64, start: np.int64) -> tuple[np.ndarray, np.ndarray]:
            return streams.read(int(epoch), int(stream), int(start))

        def mixed(window: tuple[Any, Any], order: Any) -> Any:
            indexes, records = window
            return tf.data.Dataset.from_tensor_slices((tf.gather(indexes, order), tf.gather(records, order)))

        def stream_of(stream: Any) -> Any:
            def epoch_of(epoch: Any) -> Any:
                start = tf.where(epoch == first_epoch, tf.constant(first_step * streams.per_step, tf.int64), 0)
                given = [epoch, stream, start]
                pieces, order = tf.numpy_function(read_plan, given, [tf.int64, tf.int64], stateful=False)
                pieces, order = tf.ensure_shape(pieces, [None, 3]), tf.ensure_shape(order, [None])
                windows = tf.data.Dataset.from_tensor_slices(pieces).flat_map(read_segment).batch(streams.window)
                orders = tf.data.Dataset.from_tensor_slices(order).batch(streams.window)
                # The next window is read while this one is handed out.
                mixed_records = tf.data.Dataset.zip((windows, orders)).prefetch(1).flat_map(mixed)
                return mixed_records.skip(start % streams.window).map(lambda index, record: (epoch, index, record))

            return tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max).flat_map(epoch_of)

        first_stream = request.process_index * number
        return tf.data.Dataset.range(first_stream, first_stream + number).interleave(
            tf.autograph.experimental.do_not_convert(stream_of),
            cycle_length=number,
            block_length=streams.per_step,
            num_parallel_calls=min(number, _PARALLEL_SHARDS),
            deterministic=True,
        )

    def eval_records(self, start: int, stop: int) -> Any:
        """Reads several shards at a time."""
        import tensorflow as tf

        pieces = segments(self.counts, np.arange(len(self.counts)), start, stop)
        records = tf.data.Dataset.from_tensor_slices(pieces).interleave(
            tf.autograph.experimental.do_not_convert(self._segment_reader()),
            cycle_length=_PARALLEL_SHARDS,
            num_parallel_calls=_PARALLEL_SHARDS,
            deterministic=True,
        )
        return records.map(lambda index, record: (tf.zeros([], tf.int64), index, record))

    def _locate(self, index: int) -> tuple[Shard, int]:
        """The shard of an example, and the number of its record in that shard."""
        for shard in self.shards:
            if index < shard.examples:
                return shard, index
            index -= shard.examples
        raise IndexError(index)

    def _segment_reader(self) -> Callable[[Any], Any]:
        """Returns the function from (shard, first record, count) to a dataset of `count` elements (index, record).

        A record that cannot be read, because its shard is damaged, too short or gone, is empty.
        """
        import tensorflow as tf

        paths = tf.constant([shard.path for shard in self.shards])
        begins = tf.constant(np.cumsum([0, *self.counts])[:-1], tf.int64)
        skips = tf.constant([shard.skip for shard in self.shards], tf.int64)
        compressions = tf.constant([shard.compression for shard in self.shards])

        def open_shard(shard: Any) -> tuple[Any, Any]:
            first = tf.data.TFRecordDataset(paths[shard], compressions[shard]).take(1).get_single_element()
            return paths[shard], first

        def read(piece: Any) -> Any:
            shard, first, count = tf.unstack(piece, 3)
            # A map reads the first record beforehand, so a file that cannot be opened fails once. In a TFRecordDataset
            # whose errors are ignored, it would fail again and again, without end.
            path = tf.data.Dataset.from_tensors(shard).map(open_shard).ignore_errors(log_warning=False)
            records = path.flat_map(
                lambda path, _: (
                    tf.data.TFRecordDataset(path, compressions[shard], buffer_size=_READ_BYTES)
                    .skip(skips[shard] + first)
                    .take(count)
                )
            )
            whole = records.ignore_errors(log_warning=False).concatenate(tf.data.Dataset.from_tensors("").repeat())
            index = begins[shard] + first
            return tf.data.Dataset.zip((tf.data.Dataset.range(index, index + count), whole))

        return read
