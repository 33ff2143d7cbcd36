"""The order of training, its resumption and its hosts; every example of evaluation."""

import dataclasses
import itertools
import pathlib

import numpy as np
import pytest

from skipnet_jax.data import pipeline
from skipnet_jax.data.splits import Files, InMemory, Shards, Source
from skipnet_jax.specs import DataSpec
from tests.data import made_images, made_shards

_PLAIN = DataSpec(name="digits", image_size=8, pad_crop=0, flip=False)
_AUGMENTED = DataSpec(name="digits", image_size=8, pad_crop=3, flip=True)

Batch = dict[str, np.ndarray]


def _source(count: int) -> InMemory:
    """Images of noise whose label is their index."""
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    names = tuple(str(index) for index in range(count))
    return InMemory(name="noise", class_names=names, images=images, labels=np.arange(count, dtype=np.int32))


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


# Of files and shards: the same properties, on images that are decoded on the way.

_ENCODED = DataSpec(name="tfrecords", image_size=8, pad_crop=0, crop_min_area=0.3, lighting=0.1)
_STEPS = 101 // 8  # of an epoch of `made_shards`


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return made_shards.write(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def uninterrupted(shards: Shards) -> list[Batch]:
    return _take(shards, _ENCODED, 30, batch_size=8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    path = tmp_path_factory.mktemp("files")
    for index in range(53):
        (path / f"{index}.jpg").write_bytes(made_images.encode(index))
    names = tuple(str(index) for index in range(53))
    paths = tuple(str(path / f"{index}.jpg") for index in range(53))
    return Files(name="own", class_names=names, paths=paths, labels=np.arange(53, dtype=np.int32))


def _joined(parts: list[list[Batch]]) -> list[Batch]:
    """The global batches from those of each host."""
    return [{key: np.concatenate([p[key] for p in ps]) for key in ps[0]} for ps in zip(*parts, strict=True)]


def test_shards_give_every_example_once_an_epoch(uninterrupted: list[Batch]) -> None:
    first, second = _labels(uninterrupted[:_STEPS]), _labels(uninterrupted[_STEPS : 2 * _STEPS])
    assert len(set(first)) == len(set(second)) == 8 * _STEPS
    assert (first != second).mean() > 0.9 and set(first) != set(second)
    for batch in uninterrupted:
        assert batch["image"].dtype == np.uint8 and batch["image"].shape == (8, 8, 8, 3)
        assert batch["label"].dtype == np.int32 and batch["lighting"].dtype == np.float32
        assert batch.keys() == {"image", "label", "lighting"} and batch["lighting"].any(axis=1).all()


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_global_batches_of_shards(shards: Shards, uninterrupted: list[Batch], hosts: int) -> None:
    parts = [
        _take(shards, _ENCODED, 14, batch_size=8, process_index=host, process_count=hosts) for host in range(hosts)
    ]
    _assert_equal(uninterrupted[:14], _joined(parts))


@pytest.mark.parametrize("start_step", [1, 7, _STEPS - 1, _STEPS, _STEPS + 3])
def test_shards_resume_with_the_very_next_batch(shards: Shards, uninterrupted: list[Batch], start_step: int) -> None:
    resumed = _take(shards, _ENCODED, 8, batch_size=8, start_step=start_step)
    _assert_equal(uninterrupted[start_step : start_step + 8], resumed)


def test_shards_resume_with_another_number_of_hosts(shards: Shards, uninterrupted: list[Batch]) -> None:
    parts = [_take(shards, _ENCODED, 10, batch_size=8, start_step=5, process_index=h, process_count=2) for h in (0, 1)]
    _assert_equal(uninterrupted[5:15], _joined(parts))


def test_what_was_consumed_is_not_decoded_again(tmp_path: pathlib.Path, uninterrupted: list[Batch]) -> None:
    consumed = _labels(uninterrupted[:6])
    damaged = made_shards.write(tmp_path, bad=dict.fromkeys(map(int, consumed), b"no image"))
    resumed = _take(damaged, _ENCODED, _STEPS - 6, batch_size=8, start_step=6)
    _assert_equal(uninterrupted[6:_STEPS], resumed)


def test_augmentation_of_shards_depends_on_epoch_and_example_not_on_the_batch(
    shards: Shards, uninterrupted: list[Batch]
) -> None:
    steps = 101 // 16
    larger = _take(shards, _ENCODED, steps, batch_size=16, start_step=steps)
    image = {int(k): i for batch in larger for k, i in zip(batch["label"], batch["image"], strict=True)}
    same = [
        np.array_equal(image[int(label)], pixels)
        for batch in uninterrupted[_STEPS : 2 * _STEPS]
        for label, pixels in zip(batch["label"], batch["image"], strict=True)
        if int(label) in image
    ]
    assert len(same) > 80 and all(same)
    first = {int(k): i for batch in uninterrupted[:_STEPS] for k, i in zip(batch["label"], batch["image"], strict=True)}
    assert not any(np.array_equal(first[k], image[k]) for k in first.keys() & image.keys())


def test_files_come_in_the_same_order_as_images_in_memory(files: Files) -> None:
    whole = _take(files, _ENCODED, 12)
    np.testing.assert_array_equal(_labels(whole), _labels(_take(_source(53), _PLAIN, 12)))
    parts = [_take(files, _ENCODED, 8, start_step=4, process_index=host, process_count=2) for host in (0, 1)]
    _assert_equal(whole[4:], _joined(parts))


@pytest.mark.parametrize("batch_size, hosts", [(1, 1), (7, 2), (7, 3), (64, 1), (64, 3)])
@pytest.mark.parametrize("kind", ["shards", "files"])
def test_evaluation_of_files_and_shards_counts_every_example_once(
    request: pytest.FixtureRequest, kind: str, batch_size: int, hosts: int
) -> None:
    source: Source = request.getfixturevalue(kind)
    per_host = [
        list(
            pipeline.eval_batches(
                source, _ENCODED, batch_size=batch_size * hosts, process_index=host, process_count=hosts
            )
        )
        for host in range(hosts)
    ]
    share = -(-source.num_examples // hosts)
    assert {len(batches) for batches in per_host} == {-(-share // batch_size)}
    seen = []
    for batch in itertools.chain.from_iterable(per_host):
        mask, label = batch["mask"], batch["label"]
        assert batch["image"].shape == (batch_size, 8, 8, 3) and mask.shape == label.shape == (batch_size,)
        assert not label[~mask].any() and not batch["image"][~mask].any()
        seen.extend(label[mask])
    assert sorted(seen) == list(range(source.num_examples))


def test_a_host_without_examples_still_has_its_batches(tmp_path: pathlib.Path) -> None:
    source = made_shards.write(tmp_path, counts=(2, 2))
    batches = list(pipeline.eval_batches(source, _ENCODED, batch_size=6, process_index=2, process_count=3))
    assert [list(batch["mask"]) for batch in batches] == [[False, False]]


def test_hosts_that_cannot_share_shards_are_told_at_the_call(shards: Shards) -> None:
    with pytest.raises(ValueError, match=r"batch_size: got 62.*62 streams.*4 hosts|multiple of 4"):
        pipeline.train_batches(shards, _ENCODED, batch_size=62, seed=0, start_step=0, process_count=4)


@pytest.mark.parametrize(
    "fields",
    [
        {"auto_augment": "cifar10", "pad_crop": 3},
        {"rand_augment_ops": 2, "pad_crop": 0, "crop_min_area": 0.3},
        {"color_jitter": 0.4, "lighting": 0.1, "pad_crop": 3},
    ],
    ids=["auto", "rand", "colour"],
)
def test_policies_in_memory_are_keyed_by_epoch_and_example(fields: dict[str, float]) -> None:
    source, spec = _source(24), dataclasses.replace(_PLAIN, **fields)
    whole = _take(source, spec, 6, batch_size=8)
    assert (whole[0]["image"] != source.images[whole[0]["label"]]).any(axis=(1, 2, 3)).sum() >= 5
    second_host = _take(source, spec, 4, batch_size=8, start_step=2, process_index=1, process_count=2)
    _assert_equal([{key: batch[key][4:] for key in batch} for batch in whole[2:]], second_host)
    assert ("lighting" in whole[0]) == bool(spec.lighting)
