"""The order of training, its resumption and its hosts; every example of evaluation."""

import dataclasses
import itertools

import numpy as np
import pytest

from skipnet_jax.data import pipeline
from skipnet_jax.data.sources import Source
from skipnet_jax.specs import DataSpec

_PLAIN = DataSpec(name="digits", image_size=8, pad_crop=0, flip=False)
_AUGMENTED = DataSpec(name="digits", image_size=8, pad_crop=3, flip=True)

Batch = dict[str, np.ndarray]


def _source(count: int) -> Source:
    """Images of noise whose label is their index."""
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    names = tuple(str(index) for index in range(count))
    return Source("noise", images, np.arange(count, dtype=np.int32), names, (0.5,) * 3, (0.25,) * 3)


def _take(source: Source, spec: DataSpec, count: int, *, batch_size: int = 10, **keys: int) -> list[Batch]:
    keys = {"seed": 0, "start_step": 0} | keys
    return list(itertools.islice(pipeline.train_batches(source, spec, batch_size=batch_size, **keys), count))


def _labels(batches: list[Batch]) -> np.ndarray:
    return np.concatenate([batch["label"] for batch in batches])


def _assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_batches_are_uint8_images_with_their_labels() -> None:
    source = _source(53)
    for batch in _take(source, _PLAIN, 12):
        assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32
        np.testing.assert_array_equal(batch["image"], source.images[batch["label"]])


def test_every_example_at_most_once_an_epoch_and_orders_differ() -> None:
    epochs = _labels(_take(_source(53), _PLAIN, 5 * 40)).reshape(40, 50)
    assert all(len(set(epoch)) == 50 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 40
    assert set(epochs.ravel()) == set(range(53))  # what is left over is not always the same
    assert len(set(epochs[:, 0])) > 15  # nor is the first


def test_all_examples_in_every_epoch_where_the_batch_divides() -> None:
    epochs = _labels(_take(_source(50), _PLAIN, 5 * 3)).reshape(3, 50)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(50))


def test_orders_do_not_repeat_after_256_epochs() -> None:
    source = _source(64)  # a generator that reads 8 bits of the epoch would begin again
    first, later = (_labels(_take(source, _PLAIN, 1, batch_size=64, start_step=epoch)) for epoch in (0, 256))
    assert (first != later).mean() > 0.8


@pytest.mark.parametrize("seed", [1, 2**40])
def test_seeds_differ_in_order_and_augmentation(seed: int) -> None:
    source = _source(50)
    zero, other = (_take(source, _AUGMENTED, 5, seed=value) for value in (0, seed))
    assert (_labels(zero) != _labels(other)).mean() > 0.8
    images = [np.concatenate([batch["image"] for batch in run])[np.argsort(_labels(run))] for run in (zero, other)]
    assert (images[0] != images[1]).any(axis=(1, 2, 3)).sum() > 40


@pytest.mark.parametrize("start_step", [1, 5, 13])
def test_resuming_continues_with_the_next_batch(start_step: int) -> None:
    source = _source(53)
    whole = _take(source, _AUGMENTED, 20)
    resumed = _take(source, _AUGMENTED, 20 - start_step, start_step=start_step)
    _assert_equal(whole[start_step:], resumed)


def test_resuming_far_into_a_run_reads_nothing_before() -> None:
    source, epochs = _source(50), 10**12
    batches = _take(source, _AUGMENTED, 8, start_step=5 * epochs + 2)  # would never end if it replayed
    assert len(set(_labels(batches[:3]))) == 30 and len(set(_labels(batches[3:]))) == 50


def test_augmentation_depends_on_epoch_and_example_not_on_the_batch() -> None:
    source = _source(60)

    def images_of_epoch(epoch: int, batch_size: int) -> np.ndarray:
        steps = 60 // batch_size
        batches = _take(source, _AUGMENTED, steps, batch_size=batch_size, start_step=epoch * steps)
        return np.concatenate([batch["image"] for batch in batches])[np.argsort(_labels(batches))]

    third = images_of_epoch(3, batch_size=10)
    np.testing.assert_array_equal(third, images_of_epoch(3, batch_size=60))
    fourth = images_of_epoch(4, batch_size=10)
    assert (third != fourth).any(axis=(1, 2, 3)).sum() > 50
    assert (third != source.images).any(axis=(1, 2, 3)).sum() > 50


def test_flip_mirrors_half_of_the_examples() -> None:
    source = _source(2000)
    (batch,) = _take(source, dataclasses.replace(_PLAIN, flip=True), 1, batch_size=2000)
    originals = source.images[batch["label"]]
    same = (batch["image"] == originals).all(axis=(1, 2, 3))
    mirrored = (batch["image"] == originals[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert 900 < mirrored.sum() < 1100  # 4.5 standard deviations


def test_crop_offsets_are_uniform() -> None:
    source = _source(4900)
    (batch,) = _take(source, dataclasses.replace(_PLAIN, pad_crop=3), 1, batch_size=4900)
    padded = np.pad(source.images[batch["label"]], ((0, 0), (3, 3), (3, 3), (0, 0)), mode="reflect")
    windows = itertools.product(range(7), range(7))
    counts = [(batch["image"] == padded[:, y : y + 8, x : x + 8]).all(axis=(1, 2, 3)).sum() for y, x in windows]
    assert sum(counts) == 4900
    assert min(counts) > 55 and max(counts) < 150  # expected 100, standard deviation 10


@pytest.mark.parametrize("hosts", [2, 5])
def test_hosts_share_the_global_batch(hosts: int) -> None:
    source = _source(53)
    whole = _take(source, _AUGMENTED, 7, start_step=3)
    parts = [
        _take(source, _AUGMENTED, 7, start_step=3, process_index=host, process_count=hosts) for host in range(hosts)
    ]
    assert parts[0][0]["label"].shape == (10 // hosts,)
    joined = [{key: np.concatenate([p[key] for p in ps]) for key in ps[0]} for ps in zip(*parts, strict=True)]
    _assert_equal(whole, joined)


def test_bad_batch_sizes_are_refused_at_the_call() -> None:
    source = _source(53)
    with pytest.raises(ValueError, match=r"batch_size: got 54, expected at most 53.*--config\.batch_size"):
        pipeline.train_batches(source, _PLAIN, batch_size=54, seed=0, start_step=0)
    with pytest.raises(ValueError, match=r"batch_size: got 10, expected a multiple of 3.*--config\.batch_size"):
        pipeline.train_batches(source, _PLAIN, batch_size=10, seed=0, start_step=0, process_count=3)
    with pytest.raises(ValueError, match=r"eval_batch_size: got 10.*--config\.eval_batch_size"):
        pipeline.eval_batches(source, _PLAIN, batch_size=10, process_count=3)


@pytest.mark.parametrize("hosts", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 256])
def test_evaluation_counts_every_example_once(batch_size: int, hosts: int) -> None:
    source = _source(101)
    batch_size *= hosts  # has to divide
    per_host = [
        list(pipeline.eval_batches(source, _AUGMENTED, batch_size=batch_size, process_index=host, process_count=hosts))
        for host in range(hosts)
    ]
    assert {len(batches) for batches in per_host} == {-(-101 // batch_size)}
    seen = []
    for batch in (batch for batches in zip(*per_host, strict=True) for batch in batches):
        mask, label = batch["mask"], batch["label"]
        assert mask.dtype == bool and mask.shape == label.shape == (batch_size // hosts,)
        np.testing.assert_array_equal(batch["image"][mask], source.images[label[mask]])
        assert not label[~mask].any() and not batch["image"][~mask].any()
        seen.extend(label[mask])
    assert seen == list(range(101))
