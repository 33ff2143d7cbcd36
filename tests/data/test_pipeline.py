"""The order of training, how it resumes and is shared by hosts; evaluation counts every example once."""

import dataclasses
import itertools
import pathlib

import numpy as np
import pytest

from skipnet_jax.data import pipeline
from skipnet_jax.data.folders import Files
from skipnet_jax.data.in_memory import InMemory
from skipnet_jax.data.shards import Shards
from skipnet_jax.data.splits import Batch, DataSplit
from skipnet_jax.errors import DataError, UserError
from skipnet_jax.specs import DataSpec
from tests.data import made_images, made_shards

PLAIN = DataSpec(name="digits", image_size=8, pad_crop=0, flip=False)
AUGMENTED = DataSpec(name="digits", image_size=8, pad_crop=3, flip=True)


def noise(count: int) -> InMemory:
    """Images of noise whose label is their index."""
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    names = tuple(str(index) for index in range(count))
    return InMemory(name="noise", class_names=names, images=images, labels=np.arange(count, dtype=np.int32))


def take(split: DataSplit, spec: DataSpec, count: int, *, batch_size: int = 10, **changes: int) -> list[Batch]:
    changes = {"seed": 0, "start_step": 0} | changes
    return list(itertools.islice(pipeline.train_batches(split, spec, batch_size=batch_size, **changes), count))


def take_hosts(split: DataSplit, spec: DataSpec, count: int, hosts: int, **changes: int) -> list[Batch]:
    """The global batches, put together from the batches of each host."""
    parts = [take(split, spec, count, process_index=host, process_count=hosts, **changes) for host in range(hosts)]
    return [{key: np.concatenate([p[key] for p in ps]) for key in ps[0]} for ps in zip(*parts, strict=True)]


def labels_of(batches: list[Batch]) -> np.ndarray:
    return np.concatenate([batch["label"] for batch in batches])


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


# Images in memory.


def test_batches_are_uint8_images_with_their_labels() -> None:
    split = noise(53)
    for batch in take(split, PLAIN, 12):
        assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32
        np.testing.assert_array_equal(batch["image"], split.images[batch["label"]])


def test_each_example_comes_at_most_once_an_epoch_and_orders_differ() -> None:
    epochs = labels_of(take(noise(53), PLAIN, 5 * 40)).reshape(40, 50)
    assert all(len(set(epoch)) == 50 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 40
    assert set(epochs.ravel()) == set(range(53))  # the examples left over are not always the same
    assert len(set(epochs[:, 0])) > 15  # nor is the first


def test_orders_do_not_repeat_after_256_epochs() -> None:
    split = noise(64)  # a generator that reads 8 bits of the epoch would begin again
    first, later = (labels_of(take(split, PLAIN, 1, batch_size=64, start_step=epoch)) for epoch in (0, 256))
    assert sorted(first) == sorted(later) == list(range(64))
    assert (first != later).mean() > 0.8


@pytest.mark.parametrize("seed", [1, 2**40])
def test_seeds_differ_in_order_and_augmentation(seed: int) -> None:
    zero, other = (take(noise(50), AUGMENTED, 5, seed=value) for value in (0, seed))
    assert (labels_of(zero) != labels_of(other)).mean() > 0.8
    images = [np.concatenate([batch["image"] for batch in run])[np.argsort(labels_of(run))] for run in (zero, other)]
    assert (images[0] != images[1]).any(axis=(1, 2, 3)).sum() > 40


@pytest.mark.parametrize("start_step", [5, 13])  # epochs have 5 steps
def test_resuming_continues_with_the_next_batch_on_any_number_of_hosts(start_step: int) -> None:
    split = noise(53)
    rest = take(split, AUGMENTED, 20)[start_step:]
    assert_equal(rest, take(split, AUGMENTED, 20 - start_step, start_step=start_step))
    assert_equal(rest, take_hosts(split, AUGMENTED, 20 - start_step, hosts=2, start_step=start_step))


def test_resuming_far_into_a_run_reads_nothing_before() -> None:
    batches = take(noise(50), AUGMENTED, 8, start_step=5 * 10**12 + 2)  # would never end if it replayed
    assert len(set(labels_of(batches[:3]))) == 30 and len(set(labels_of(batches[3:]))) == 50


def test_augmentation_depends_on_epoch_and_example_not_on_the_batch() -> None:
    split = noise(60)

    def images_of_epoch(epoch: int, batch_size: int) -> np.ndarray:
        steps = 60 // batch_size
        batches = take(split, AUGMENTED, steps, batch_size=batch_size, start_step=epoch * steps)
        return np.concatenate([batch["image"] for batch in batches])[np.argsort(labels_of(batches))]

    third = images_of_epoch(3, batch_size=10)
    np.testing.assert_array_equal(third, images_of_epoch(3, batch_size=60))
    assert (third != images_of_epoch(4, batch_size=10)).any(axis=(1, 2, 3)).sum() > 50
    assert (third != split.images).any(axis=(1, 2, 3)).sum() > 50


def test_crops_are_uniform_and_half_of_the_images_are_mirrored() -> None:
    split = noise(4900)
    (batch,) = take(split, AUGMENTED, 1, batch_size=4900)
    padded = np.pad(split.images[batch["label"]], ((0, 0), (3, 3), (3, 3), (0, 0)), mode="reflect")
    counts = np.zeros((7, 7, 2), int)
    for y, x in itertools.product(range(7), range(7)):
        window = padded[:, y : y + 8, x : x + 8]
        for mirror, expected in enumerate((window, window[:, :, ::-1])):
            counts[y, x, mirror] = (batch["image"] == expected).all(axis=(1, 2, 3)).sum()
    assert counts.sum() == 4900
    assert counts.sum(axis=2).min() > 55 and counts.sum(axis=2).max() < 150  # expected 100, standard deviation 10
    assert 2250 < counts[..., 1].sum() < 2650  # expected 2450, standard deviation 35


def test_bad_batch_sizes_are_refused_at_the_call() -> None:
    split = noise(53)
    with pytest.raises(UserError, match=r"^batch_size: got 54, expected at most 53.*Lower batch_size"):
        pipeline.train_batches(split, PLAIN, batch_size=54, seed=0, start_step=0)
    with pytest.raises(UserError, match=r"^batch_size: got 10, expected a multiple of 3"):
        pipeline.train_batches(split, PLAIN, batch_size=10, seed=0, start_step=0, process_count=3)
    with pytest.raises(UserError, match=r"^eval_batch_size: got 10"):
        pipeline.eval_batches(split, PLAIN, batch_size=10, process_count=3)


@pytest.mark.parametrize("auto_augment", ["none", pytest.param("cifar10", marks=pytest.mark.slow)])
def test_operations_on_single_images_are_keyed_by_epoch_and_example(auto_augment: str) -> None:
    split = noise(24)
    spec = dataclasses.replace(PLAIN, auto_augment=auto_augment, pad_crop=3, color_jitter=0.4, lighting=0.1)
    whole = take(split, spec, 6, batch_size=8)
    assert (whole[0]["image"] != split.images[whole[0]["label"]]).any(axis=(1, 2, 3)).sum() >= 5
    assert whole[0]["lighting"].any()
    second_host = take(split, spec, 4, batch_size=8, start_step=2, process_index=1, process_count=2)
    assert_equal([{key: batch[key][4:] for key in batch} for batch in whole[2:]], second_host)


# The same properties of files and shards, whose images are decoded on the way.

ENCODED = DataSpec(name="tfrecords", image_size=8, pad_crop=0, crop_min_area=0.3, lighting=0.1)
STEPS = 101 // 8  # of an epoch of `made_shards`


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return made_shards.write(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def uninterrupted(shards: Shards) -> list[Batch]:
    return take(shards, ENCODED, 30, batch_size=8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    path = tmp_path_factory.mktemp("files")
    paths = [path / f"{index}.jpg" for index in range(53)]
    for index, file in enumerate(paths):
        file.write_bytes(made_images.encode(index))
    names, labels = tuple(str(index) for index in range(53)), np.arange(53, dtype=np.int32)
    return Files(name="own", class_names=names, paths=tuple(map(str, paths)), labels=labels)


def test_shards_give_every_example_once_an_epoch(uninterrupted: list[Batch]) -> None:
    first, second = labels_of(uninterrupted[:STEPS]), labels_of(uninterrupted[STEPS : 2 * STEPS])
    assert len(set(first)) == len(set(second)) == 8 * STEPS
    assert (first != second).mean() > 0.9 and set(first) != set(second)
    for batch in uninterrupted:
        assert batch["image"].dtype == np.uint8 and batch["image"].shape == (8, 8, 8, 3)
        assert batch["label"].dtype == np.int32 and batch["lighting"].dtype == np.float32
        assert batch.keys() == {"image", "label", "lighting"} and batch["lighting"].any(axis=1).all()


@pytest.mark.parametrize("hosts, start_step", [(1, 7), (2, STEPS + 3)])
def test_shards_resume_with_the_very_next_batch_on_any_number_of_hosts(
    shards: Shards, uninterrupted: list[Batch], hosts: int, start_step: int
) -> None:
    resumed = take_hosts(shards, ENCODED, 8, hosts, batch_size=8, start_step=start_step)
    assert_equal(uninterrupted[start_step : start_step + 8], resumed)


def test_resuming_does_not_decode_earlier_images(tmp_path: pathlib.Path, uninterrupted: list[Batch]) -> None:
    consumed = labels_of(uninterrupted[:6])
    damaged = made_shards.write(tmp_path, bad=dict.fromkeys(map(int, consumed), b"no image"))
    resumed = take(damaged, ENCODED, STEPS - 6, batch_size=8, start_step=6)
    assert_equal(uninterrupted[6:STEPS], resumed)


def test_augmentation_of_shards_depends_on_epoch_and_example_not_on_the_batch(
    shards: Shards, uninterrupted: list[Batch]
) -> None:
    def images_by_label(batches: list[Batch]) -> dict[int, bytes]:
        return {int(k): i.tobytes() for batch in batches for k, i in zip(batch["label"], batch["image"], strict=True)}

    first, second = images_by_label(uninterrupted[:STEPS]), images_by_label(uninterrupted[STEPS : 2 * STEPS])
    steps = 101 // 16
    larger = images_by_label(take(shards, ENCODED, steps, batch_size=16, start_step=steps))
    same = [second[label] == larger[label] for label in second.keys() & larger.keys()]
    assert len(same) > 80 and all(same)
    assert not any(first[label] == larger[label] for label in first.keys() & larger.keys())


def test_files_come_in_the_same_order_as_images_in_memory(files: Files) -> None:
    whole = take(files, ENCODED, 12)
    np.testing.assert_array_equal(labels_of(whole), labels_of(take(noise(53), PLAIN, 12)))
    assert_equal(whole[4:], take_hosts(files, ENCODED, 8, hosts=2, start_step=4))


@pytest.mark.parametrize("kind", ["memory", "shards", "files"])
@pytest.mark.parametrize("host_batch, hosts", [(1, 1), (7, 2), (64, 3)])
def test_evaluation_counts_every_example_once(
    request: pytest.FixtureRequest, kind: str, host_batch: int, hosts: int
) -> None:
    split: DataSplit = noise(101) if kind == "memory" else request.getfixturevalue(kind)
    batch_size = host_batch * hosts
    per_host = [
        list(pipeline.eval_batches(split, ENCODED, batch_size=batch_size, process_index=host, process_count=hosts))
        for host in range(hosts)
    ]
    share = -(-split.num_examples // hosts)
    assert {len(batches) for batches in per_host} == {-(-share // host_batch)}
    seen = []
    for batch in itertools.chain.from_iterable(per_host):
        mask, label = batch["mask"], batch["label"]
        assert batch["image"].shape == (host_batch, 8, 8, 3) and mask.shape == label.shape == (host_batch,)
        assert mask.dtype == bool and not label[~mask].any() and not batch["image"][~mask].any()
        if kind == "memory":
            np.testing.assert_array_equal(batch["image"][mask], split.images[label[mask]])
        seen.extend(label[mask])
    assert sorted(seen) == list(range(split.num_examples))


def test_a_host_without_examples_still_has_its_batches(tmp_path: pathlib.Path) -> None:
    split = made_shards.write(tmp_path, counts=(2, 2))
    batches = list(pipeline.eval_batches(split, ENCODED, batch_size=6, process_index=2, process_count=3))
    assert [list(batch["mask"]) for batch in batches] == [[False, False]]


def test_hosts_that_cannot_share_shards_are_refused_at_the_call(shards: Shards) -> None:
    large = dataclasses.replace(shards, shards=(dataclasses.replace(shards.shards[0], examples=500),))
    with pytest.raises(UserError, match=r"^batch_size: got 130, whose examples come from 65 streams.*2 hosts share"):
        pipeline.train_batches(large, ENCODED, batch_size=130, seed=0, start_step=0, process_count=2)


def test_no_flipped_bit_of_a_shard_reaches_training(tmp_path: pathlib.Path) -> None:
    """TensorFlow compares both checksums of every record that it reads: one of its length, one of its content."""
    split = made_shards.write(tmp_path, counts=(2, 2, 2))
    shard = pathlib.Path(split.shards[1].path)
    whole, spec = shard.read_bytes(), DataSpec(name="tfrecords", image_size=8, pad_crop=0, on_corrupt="skip")
    want = take(split, spec, 1, batch_size=6)
    last = len(whole) - 1
    for at in (0, 7, 8, 11, 12, 40, last // 2 - 4, last // 2 + 20, last - 40, last - 4, last):
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(DataError, match=f"{shard.name}: got [01] records and then 'corrupted record"):
            take(split, spec, 1, batch_size=6)
    shard.write_bytes(whole)
    assert_equal(take(split, spec, 1, batch_size=6), want)
