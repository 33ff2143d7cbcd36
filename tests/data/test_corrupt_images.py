"""Bad images, labels and shards: named, or counted; never a hang, never silence, never TensorFlow's own error."""

import dataclasses
import itertools
import logging
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from skipnet_jax.data import encoded, pipeline
from skipnet_jax.errors import DataError
from skipnet_jax.data.splits import Files, Shards
from skipnet_jax.specs import DataSpec
from tests.data import made_images, made_shards

SPEC = DataSpec(name="tfrecords", image_size=8, pad_crop=0, flip=False)
SKIP = dataclasses.replace(SPEC, on_corrupt="skip", crop_min_area=0.5, lighting=0.1)
TRUNCATED = made_images.encode(50)[:200]
GARBAGE = b"no image at all"


def train(source: Shards | Files, spec: DataSpec = SPEC, steps: int = 12, start_step: int = 0) -> list[dict]:
    batches = pipeline.train_batches(source, spec, batch_size=8, seed=0, start_step=start_step)
    return list(itertools.islice(batches, steps))


def evaluate(source: Shards | Files) -> list[dict]:
    return list(pipeline.eval_batches(source, SPEC, batch_size=8))


@pytest.mark.parametrize("bad", [GARBAGE, TRUNCATED], ids=["garbage", "truncated"])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path: pathlib.Path, bad: bytes) -> None:
    source = made_shards.write(tmp_path, bad={50: bad})
    message = r"record 5 of .*train-00003-of-00005: got an image.*Check them.*--config\.data\.on_corrupt=skip"
    for read in (train, evaluate):
        with pytest.raises(DataError, match=message) as caught:
            read(source)
        assert caught.value.__cause__ is None and "node" not in str(caught.value)


def test_skipped_images_are_black_counted_and_leave_the_rest_alone(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train(made_shards.write(tmp_path / "whole"), SKIP)
    source = made_shards.write(tmp_path / "bad", bad={50: GARBAGE, 3: TRUNCATED})
    with caplog.at_level(logging.WARNING):
        batches = train(source, SKIP)
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
    monkeypatch.setattr(checked, "_TOLERATED_OF", 100)
    source = made_shards.write(tmp_path, bad=dict.fromkeys(range(0, 101, 10), GARBAGE))
    with pytest.raises(DataError, match=r"got [23] images of \d+ that cannot be decoded.*at most 1%"):
        train(source, SKIP)


@pytest.mark.parametrize("label", [-1, 101, 2**31])
def test_a_label_out_of_range_is_named(tmp_path: pathlib.Path, label: int) -> None:
    source = made_shards.write(tmp_path, counts=(16,))

    def parse(serialized):
        encoded, number = made_shards.parse(serialized)
        return encoded, tf.where(number == 9, tf.cast(tf.constant(label, tf.int64), tf.int32), number)

    wrong = dataclasses.replace(source, parse=parse, class_names=tuple(str(k) for k in range(101)))
    for read in (train, evaluate):
        with pytest.raises(DataError, match=r"record 9 of .*: got label -?\d+, expected 0\.\.100\. Check them"):
            read(wrong)
    with pytest.raises(DataError, match="got label"):  # which is no image that could be skipped
        train(wrong, SKIP)


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
        (flip_a_bit, r"(19|20) records and then .corrupted record at"),
        (drop_last, r"39 records and then .no more., expected 40 records"),
        (pathlib.Path.unlink, r"0 records and then .*No such file"),
        (become_folder, r"0 records and then .*[Ii]s a directory"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path: pathlib.Path, damage, words: str) -> None:
    source = made_shards.write(tmp_path)
    damage(pathlib.Path(source.shards[3].path))
    for read in (train, evaluate):
        with pytest.raises(DataError, match=rf"train-00003-of-00005: got {words}") as caught:
            read(source, SKIP) if read is train else read(source)
        assert str(caught.value).endswith("Copy or make the shard again. Check them.")


def test_a_record_of_something_else_is_named(tmp_path: pathlib.Path) -> None:
    source = made_shards.write(tmp_path)
    records = [record.numpy() for record in tf.data.TFRecordDataset(source.shards[1].path)]
    with tf.io.TFRecordWriter(source.shards[1].path) as writer:
        for record in [*records[:7], b"something else", *records[8:]]:
            writer.write(record)
    with pytest.raises(DataError, match=r"record 7 of .*train-00001-of-00005: got an image that cannot be decoded"):
        train(source)


@pytest.mark.parametrize("kind, mode", [("JPEG", "CMYK"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "RGBA")])
def test_unusual_images_are_read(tmp_path: pathlib.Path, kind: str, mode: str) -> None:
    source = made_shards.write(tmp_path, counts=(16,), bad={5: made_images.encode(5, kind=kind, mode=mode)})
    for spec in (SPEC, dataclasses.replace(SPEC, crop_min_area=0.5)):
        labels = np.concatenate([batch["label"] for batch in train(source, spec, steps=2)])
        assert sorted(labels) == list(range(16))


def test_a_file_that_went_away_is_named(tmp_path: pathlib.Path) -> None:
    paths = tuple(str(tmp_path / f"{k}.jpg") for k in range(16))
    for k, path in enumerate(paths):
        pathlib.Path(path).write_bytes(made_images.encode(k))
    names = tuple(str(k) for k in range(16))
    source = Files(name="own", class_names=names, paths=paths, labels=np.arange(16, dtype=np.int32))
    pathlib.Path(paths[11]).unlink()
    with pytest.raises(DataError, match=r"/11\.jpg: got an image that cannot be decoded.*Replace or remove the file"):
        train(source)


@pytest.mark.parametrize("name", ["train_batches", "eval_batches"])
def test_a_passing_trouble_is_survived(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    source = made_shards.write(tmp_path)
    read = train if name == "train_batches" else evaluate
    whole = read(source)
    shard = pathlib.Path(source.shards[3].path)
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    original = {"train_batches": encoded.train_batches, "eval_batches": encoded.eval_batches}[name]

    def mended_when_opened_again(*args, careful, **keys):
        if careful:
            shard.write_bytes(content)
        return original(*args, careful=careful, **keys)

    monkeypatch.setattr(encoded, name, mended_when_opened_again)
    for batch, expected in zip(read(source), whole, strict=True):
        np.testing.assert_array_equal(batch["image"], expected["image"])
