"""The order of training over shards, which can only be read from the beginning. Pure arithmetic.

Each epoch lays the shards end to end, in an order of its own, and so numbers its examples. They are cut into S equal
streams of consecutive examples, and every step takes the same share from each stream. Each host reads some of the
streams. So a batch does not depend on the number of hosts, and all hosts have the same number of batches.

A stream is shuffled within windows, which separates neighbours in a shard. To resume in the middle of a stream, one
window has to be read again.
"""

import dataclasses

import numpy as np
from jaxtyping import Int64

from skipnet_jax.data.splits import BatchRequest
from skipnet_jax.errors import UserError

# Each stream costs the host open files and buffers, and examples from 128 places are mixed well enough.
MAX_STREAMS = 128
# Records in the windows of all streams together. Each stream holds the window that it hands out and the next one:
# about 2 GB of ImageNet's JPEGs (110 kB each) over all hosts.
_WINDOW_RECORDS = 8192

# Part of the random numbers' key, so that shards and records are ordered independently.
_SHARDS, _RECORDS = 0, 1


def num_streams(batch_size: int) -> int:
    """Number of streams that a batch is taken from: the largest divisor of its size up to 128."""
    return max(divisor for divisor in range(1, MAX_STREAMS + 1) if batch_size % divisor == 0)


def require_streams(batch_size: int, process_count: int) -> None:
    """Raises a UserError unless every host can read the same number of streams."""
    if num_streams(batch_size) % process_count == 0:
        return
    fitting = [size for size in range(1, 4 * MAX_STREAMS + 2 * batch_size) if num_streams(size) % process_count == 0]
    if not fitting:
        raise UserError(
            "num_processes", f"{process_count}", f"at most {MAX_STREAMS} hosts to read shards", "Use fewer."
        )
    nearest = sorted(sorted(fitting, key=lambda size: abs(size - batch_size))[:4])
    raise UserError(
        "batch_size",
        f"{batch_size}, whose examples come from {num_streams(batch_size)} streams",
        f"a number of streams that {process_count} hosts share equally",
        f"Set `batch_size` to one of {', '.join(map(str, nearest))}.",
    )


@dataclasses.dataclass(frozen=True)
class Streams:
    """The order of a run.

    Args:
      counts: records of each shard, in the order that numbers the examples.
      request: says the batch size and the seed.
    """

    counts: tuple[int, ...]
    request: BatchRequest

    @property
    def number(self) -> int:
        """Number of streams."""
        return num_streams(self.request.batch_size)

    @property
    def per_step(self) -> int:
        """Records that a step takes from each stream."""
        return self.request.batch_size // self.number

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.request.steps_per_epoch(sum(self.counts))

    @property
    def length(self) -> int:
        """Records of a stream in an epoch."""
        return self.steps * self.per_step

    @property
    def window(self) -> int:
        """Number of consecutive records that are shuffled together."""
        return max(_WINDOW_RECORDS // self.number, 1)

    def read(self, epoch: int, stream: int, start: int) -> tuple[Int64[np.ndarray, "k 3"], Int64[np.ndarray, "m"]]:
        """Says what a stream reads in an epoch, from a position on.

        Args:
          epoch: from 0 on.
          stream: 0..number - 1.
          start: records of the epoch that the stream has handed out already.

        Returns:
          Segments (shard, first record, number of records) from the beginning of the window that holds the position;
          and for each place in these windows, which record of the window comes there. The first start % window places
          are already handed out.
        """
        # Sorts raw random numbers: NumPy guarantees those for all versions, but not its permutations.
        seed = self.request.seed
        shuffled = np.argsort(_draw((seed, _SHARDS, epoch), len(self.counts)), kind="stable")
        begin = start // self.window * self.window
        windows = np.arange(self.length) // self.window
        order = np.lexsort((_draw((seed, _RECORDS, epoch, stream), self.length), windows))
        order = order - windows * self.window
        first = stream * self.length
        return segments(self.counts, shuffled, first + begin, first + self.length), order[begin:].astype(np.int64)


def segments(counts: tuple[int, ...], order: Int64[np.ndarray, "n"], start: int, stop: int) -> Int64[np.ndarray, "k 3"]:
    """Finds the pieces of shards at the positions start..stop - 1 of the shards laid end to end.

    Args:
      counts: records of each shard.
      order: in which the shards are laid.
      start: first position.
      stop: position after the last.

    Returns:
      (shard, first record, number of records) of each piece.
    """
    ends = np.cumsum(np.asarray(counts, np.int64)[order])
    begins = np.concatenate([[0], ends[:-1]])
    first, last = np.maximum(begins, start), np.minimum(ends, stop)
    inside = first < last
    return np.stack([order, first - begins, last - first], axis=1)[inside].astype(np.int64)


def _draw(key: tuple[int, ...], count: int) -> np.ndarray:
    """Random 64-bit numbers, a pure function of the key."""
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
