"""The order over shards: every example once, the same for any number of hosts and after any interruption."""

import numpy as np
import pytest

from skipnet_jax.data import streams
from skipnet_jax.data.splits import BatchRequest
from skipnet_jax.data.streams import Streams
from skipnet_jax.errors import UserError

COUNTS = (17, 23, 5, 40, 0, 16)  # 101 examples
BEGINS = np.cumsum([0, *COUNTS])


def order_of(batch_size: int, seed: int, counts: tuple[int, ...] = COUNTS) -> Streams:
    return Streams(counts, BatchRequest(batch_size=batch_size, seed=seed))


def indexes(order: Streams, epoch: int, stream: int, start: int = 0) -> np.ndarray:
    """What the stream hands out: its windows put together as the reader does."""
    pieces, places = order.read(epoch, stream, start)
    found = np.concatenate([np.arange(first, first + count) + BEGINS[shard] for shard, first, count in pieces])
    assert len(found) == len(places)
    out = []
    for begin in range(0, len(found), order.window):
        window = found[begin : begin + order.window]
        out.extend(window[places[begin : begin + order.window]])
    return np.array(out[start % order.window :], int)


def test_the_number_of_streams_depends_on_the_batch_size_alone() -> None:
    expected = {1: 1, 7: 7, 8: 8, 131: 1, 256: 128, 1024: 128, 1000: 125, 96: 96}
    assert {size: streams.num_streams(size) for size in expected} == expected


@pytest.mark.parametrize("batch_size", [1, 6, 8, 101])
def test_each_example_comes_at_most_once_an_epoch(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_WINDOW_RECORDS", 40)
    order = order_of(batch_size, seed=3)
    left_over = set()
    for epoch in range(20):
        found = np.concatenate([indexes(order, epoch, stream) for stream in range(order.number)])
        assert len(found) == len(set(found)) == 101 // batch_size * batch_size
        left_over |= set(range(101)) - set(found)
    assert batch_size in (1, 101) or len(left_over) > 101 % batch_size  # not always the same ones


def test_orders_of_epochs_streams_and_seeds_differ() -> None:
    order = order_of(4, seed=3)
    assert order.window > order.length  # one window: all records of a stream are shuffled together
    assert len({tuple(indexes(order, epoch, 0)) for epoch in (0, 1, 256, 512)}) == 4
    assert not np.array_equal(order.read(0, 0, 0)[1], order.read(0, 1, 0)[1])
    assert not np.array_equal(indexes(order, 0, 0), indexes(order_of(4, seed=4), 0, 0))
    np.testing.assert_array_equal(indexes(order, 5, 2), indexes(order_of(4, seed=3), 5, 2))


def test_records_stay_within_their_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_WINDOW_RECORDS", 20)
    order = order_of(4, seed=0, counts=(100,))
    assert order.window == 5
    found = indexes(order, 0, 1)
    np.testing.assert_array_equal(found // 5, np.repeat(np.arange(5, 10), 5))  # its quarter, window by window
    assert (found != np.arange(25, 50)).sum() > 10


@pytest.mark.parametrize("window_records", [1, 12, 40, 10**6])
def test_a_stream_resumes_anywhere(window_records: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_WINDOW_RECORDS", window_records)
    order = order_of(4, seed=1)
    for stream in range(4):
        whole = indexes(order, 2, stream)
        for start in range(order.length):
            np.testing.assert_array_equal(indexes(order, 2, stream, start), whole[start:])
            pieces, _ = order.read(2, stream, start)
            assert pieces[:, 2].sum() <= order.length - start + order.window - 1  # at most a window is read again


def test_segments_cut_the_shards_at_the_positions() -> None:
    found = streams.segments((3, 4, 0, 5), np.array([3, 0, 2, 1]), 2, 9)  # laid out: 33333 000 1111
    np.testing.assert_array_equal(found, [[3, 2, 3], [0, 0, 3], [1, 0, 1]])
    assert streams.segments((3, 4), np.arange(2), 7, 7).shape == (0, 3)


def test_hosts_that_cannot_share_the_streams_are_refused() -> None:
    streams.require_streams(1024, 64)
    message = r"^batch_size: got 1000.*125 streams.*8 hosts.*batch_size to one of 960, 1024, 1040, 1048\."
    with pytest.raises(UserError, match=message):
        streams.require_streams(1000, 8)
    with pytest.raises(UserError, match="expected at most 128"):
        streams.require_streams(1024, 256)
