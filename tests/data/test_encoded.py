"""Bad images, labels and shards: named, or skipped and counted; never a hang, silence, or TensorFlow's own error."""

import dataclasses
import itertools
import logging
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from skipnet_jax.data import encoded, pipeline
from skipnet_jax.data.folders import Files
from skipnet_jax.data.shards import Shards
from skipnet_jax.errors import DataError
from skipnet_jax.specs import DataSpec
from tests.data import made_images, made_shards

SPEC = DataSpec(name="tfrecords", image_size=8, pad_crop=0, flip=False)
SKIP = dataclasses.replace(SPEC, on_corrupt="skip", crop_min_area=0.5, lighting=0.1)
TRUNCATED = made_images.encode(50)[:200]
GARBAGE = b"no image at all"


def train(split: Shards | Files, spec: DataSpec = SPEC, steps: int = 12) -> list[dict]:
    return list(itertools.islice(pipeline.train_batches(split, spec, batch_size=8, seed=0, start_step=0), steps))


def evaluate(split: Shards | Files) -> list[dict]:
    return list(pipeline.eval_batches(split, SPEC, batch_size=8))


@pytest.mark.parametrize("read, bad", [(train, GARBAGE), (evaluate, TRUNCATED)])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path: pathlib.Path, read, bad: bytes) -> None:
    split = made_shards.write(tmp_path, bad={50: bad})
    message = r"record 5 of .*train-00003-of-00005: got an image.*Check them\. .*data\.on_corrupt=skip"
    with pytest.raises(DataError, match=message) as caught:
        read(split)
    assert caught.value.__cause__ is None and "node" not in str(caught.value)


def test_skipped_images_are_black_and_counted_and_leave_the_rest_alone(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train(made_shards.write(tmp_path / "whole"), SKIP)
    split = made_shards.write(tmp_path / "bad", bad={50: GARBAGE, 3: TRUNCATED})
    with caplog.at_level(logging.WARNING):
        batches = train(split, SKIP)
    warned = [text for record in caplog.records if (text := record.getMessage()).startswith("Skipped")]
    marked = 0
    for batch, expected in zip(batches, whole, strict=True):
        assert batch.keys() == {"image", "label", "lighting"}
        bad = batch["label"] == -1
        assert set(expected["label"][bad]) <= {3, 50}
        assert not batch["image"][bad].any()
        for key in batch:
            np.testing.assert_array_equal(batch[key][~bad], expected[key][~bad])
        marked += bad.sum()
    assert marked == len(warned) >= 1
    assert all("record 5 of" in message or "record 3 of" in message for message in warned)


def test_too_many_unreadable_images_end_the_run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "_TOLERATED_OF", 100)
    split = made_shards.write(tmp_path, bad=dict.fromkeys(range(0, 101, 10), GARBAGE))
    with pytest.raises(DataError, match=r"noise: got [23] of \d+ images that cannot be decoded.*at most 1%"):
        train(split, SKIP)


@pytest.mark.parametrize(
    "read, label", [(evaluate, -1), (evaluate, 101), pytest.param(train, 2**31, marks=pytest.mark.slow)]
)
def test_a_label_out_of_range_is_named(tmp_path: pathlib.Path, read, label: int) -> None:
    split = made_shards.write(tmp_path, counts=(16,))

    def parse(serialized):
        encoded, number = made_shards.parse(serialized)
        return encoded, tf.where(number == 9, tf.cast(tf.constant(label, tf.int64), tf.int32), number)

    wrong = dataclasses.replace(split, parse=parse, class_names=tuple(str(k) for k in range(101)))
    with pytest.raises(DataError, match=r"record 9 of .*: got label -?\d+, expected 0\.\.100\. Check them"):
        read(wrong)


def truncate(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def flip_a_bit(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def drop_last(path: pathlib.Path) -> None:
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records[:-1]:
            writer.write(record)


def become_folder(path: pathlib.Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage, words",
    [
        (truncate, r"39 records and then .truncated record at"),
        pytest.param(flip_a_bit, r"(19|20) records and then .corrupted record at", marks=pytest.mark.slow),
        (drop_last, r"39 records and then .no more., expected 40 records"),
        (pathlib.Path.unlink, r"0 records and then .*No such file"),
        pytest.param(become_folder, r"0 records and then .*[Ii]s a directory", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_shard_is_named(tmp_path: pathlib.Path, damage, words: str) -> None:
    split = made_shards.write(tmp_path)
    damage(pathlib.Path(split.shards[3].path))
    with pytest.raises(DataError, match=rf"train-00003-of-00005: got {words}") as caught:
        evaluate(split)
    assert str(caught.value).endswith("Copy or make the shard again. Check them.")


def test_a_damaged_shard_cannot_be_skipped(tmp_path: pathlib.Path) -> None:
    split = made_shards.write(tmp_path)
    truncate(pathlib.Path(split.shards[3].path))
    with pytest.raises(DataError, match=r"train-00003-of-00005: got 39 records"):
        train(split, SKIP)


def test_a_record_without_an_image_is_named(tmp_path: pathlib.Path) -> None:
    split = made_shards.write(tmp_path)
    records = [record.numpy() for record in tf.data.TFRecordDataset(split.shards[1].path)]
    with tf.io.TFRecordWriter(split.shards[1].path) as writer:
        for record in [*records[:7], b"something else", *records[8:]]:
            writer.write(record)
    with pytest.raises(DataError, match=r"record 7 of .*train-00001-of-00005: got an image that cannot be decoded"):
        evaluate(split)


def test_unusual_images_are_read(tmp_path: pathlib.Path) -> None:
    kinds = [("JPEG", "CMYK"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "RGBA")]
    unusual = {5 + k: made_images.encode(k, kind=kind, mode=mode) for k, (kind, mode) in enumerate(kinds)}
    split = made_shards.write(tmp_path, counts=(16,), bad=unusual)
    labels = np.concatenate([batch["label"] for batch in train(split, steps=2)])
    assert sorted(labels) == list(range(16))


def test_a_file_that_went_away_is_named(tmp_path: pathlib.Path) -> None:
    paths = [tmp_path / f"{k}.jpg" for k in range(16)]
    for k, path in enumerate(paths):
        if k != 11:
            path.write_bytes(made_images.encode(k))
    names, labels = tuple(str(k) for k in range(16)), np.arange(16, dtype=np.int32)
    split = Files(name="own", class_names=names, paths=tuple(map(str, paths)), labels=labels)
    with pytest.raises(DataError, match=r"/11\.jpg: got an image that cannot be decoded.*Replace or remove the file"):
        train(split)


@pytest.mark.parametrize("read", [pytest.param(train, marks=pytest.mark.slow), evaluate])
def test_a_passing_trouble_is_survived(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, read) -> None:
    split = made_shards.write(tmp_path)
    whole = read(split)
    shard = pathlib.Path(split.shards[3].path)
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    original = Shards._load_each

    def mended_when_opened_again(self, records, load, spec, blank, careful):
        if careful:
            shard.write_bytes(content)
        return original(self, records, load, spec, blank, careful)

    monkeypatch.setattr(Shards, "_load_each", mended_when_opened_again)
    for batch, expected in zip(read(split), whole, strict=True):
        np.testing.assert_array_equal(batch["image"], expected["image"])
