"""Checking shards to the last byte, and describing shards that were made elsewhere."""

import pathlib

import pytest
import tensorflow as tf

from skipnet_jax.data import decoding, shard_checker, tfrecords
from skipnet_jax.data.decoding import why_undecodable
from skipnet_jax.data.storage import hash_file
from skipnet_jax.errors import DataError, UserError
from tests.data import made_images


def write(path: pathlib.Path, records: list[bytes]) -> tfrecords.Shard:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return tfrecords.Shard(str(path), len(records), *hash_file(str(path)))


def record(number: int, *, label: int = 0, encoded: bytes | None = None) -> bytes:
    encoded = made_images.encode(number) if encoded is None else encoded
    return tfrecords.serialize(encoded, label, f"{number}.jpg")


def check(folder: pathlib.Path, *shards: tfrecords.Shard, label_offset: int = 0) -> list[str]:
    index = tfrecords.Index("pets", ("cat", "dog"), label_offset, {"train": shards})
    tfrecords.write_index(str(folder), index, made_with={})
    read, problems = shard_checker.check(str(folder), threads=2, advance=lambda records: None)
    assert read == index
    return problems


def test_good_shards_have_no_problems(tmp_path):
    kinds = [made_images.encode(i, mode=mode) for i, mode in enumerate(("RGB", "L", "CMYK"))]
    kinds.append(made_images.encode(3, kind="PNG"))  # ImageNet has one, named .JPEG
    shards = [
        write(tmp_path / "train-0", [record(i, label=1 + i % 2, encoded=kind) for i, kind in enumerate(kinds)]),
        write(tmp_path / "train-1", [record(9, label=2)]),
    ]
    assert check(tmp_path, *shards, label_offset=1) == []


def test_wrong_records_are_named_by_file_and_number(tmp_path):
    other = tf.train.Example(features=tf.train.Features(feature={"audio": tf.train.Feature()})).SerializeToString()
    cut = made_images.encode(2)[:-30]
    shard = write(tmp_path / "train-0", [record(0), record(1, label=2), record(2, encoded=cut), other, b"junk"])
    problems = check(tmp_path, shard)
    assert problems[0] == "train-0: record 1 (1.jpg): label 2, expected 0 to 1"
    assert problems[1].startswith("train-0: record 2 (2.jpg): cannot be decoded: ")
    assert problems[2] == "train-0: record 3: no tf.Example with image and label"
    assert problems[3].startswith("train-0: record 4: no tf.Example")
    assert len(problems) == 4


def test_a_file_that_differs_from_the_index_is_named(tmp_path):
    shards = [write(tmp_path / f"train-{i}", [record(i), record(5)]) for i in range(5)]
    (tmp_path / "train-0").unlink()
    half = (tmp_path / "train-1").read_bytes()[:-100]
    (tmp_path / "train-1").write_bytes(half)
    flipped = bytearray((tmp_path / "train-2").read_bytes())
    flipped[200] ^= 1
    (tmp_path / "train-2").write_bytes(flipped)
    write(tmp_path / "train-3", [record(5), record(3)])  # another order, the same size
    write(tmp_path / "train-4", [record(4)])
    problems = check(tmp_path, *shards)
    assert [problem.split(":")[0] for problem in problems] == [f"train-{i}" for i in (0, 1, 1, 2, 2, 3, 4, 4)]
    assert "cannot be read" in problems[0]
    assert "bytes, expected" in problems[1]
    assert "record 1: damaged" in problems[2]
    assert "checksum" in problems[3]
    assert "record 0: damaged" in problems[4]
    assert "checksum" in problems[5]
    assert "1 records, expected 2" in problems[7]


def test_the_problems_of_one_shard_are_cut_off(tmp_path):
    problems = check(tmp_path, write(tmp_path / "train-0", [record(0, label=7)] * 30))
    assert len(problems) == 21
    assert problems[-1] == "train-0: and 10 more"


def describe(folder: pathlib.Path, *, label_offset: int = 0, class_names: tuple[str, ...] = (), train: str = "train-*"):
    return shard_checker.describe(
        str(folder),
        {"train": train, "test": "validation-*"},
        name="pets",
        label_offset=label_offset,
        class_names=class_names,
        threads=2,
        advance=lambda records: None,
    )


@pytest.fixture
def elsewhere(tmp_path) -> pathlib.Path:
    """As tf-slim makes them: labels from 1."""
    for i in range(3):
        write(tmp_path / f"train-0000{i}-of-00003", [record(j, label=1 + j % 4) for j in range(i + 2)])
    write(tmp_path / "validation-00000-of-00001", [record(9, label=4)])
    return tmp_path


def test_shards_made_elsewhere_get_an_index(elsewhere):
    index = describe(elsewhere, label_offset=1)
    assert tfrecords.read_index(str(elsewhere)) == index
    assert [shard.examples for shard in index.splits["train"]] == [2, 3, 4]
    assert [shard.name for shard in index.splits["test"]] == ["validation-00000-of-00001"]
    assert (index.class_names, index.label_offset) == (("0", "1", "2", "3"), 1)
    assert shard_checker.check(str(elsewhere), threads=1, advance=lambda records: None)[1] == []
    with pytest.raises(UserError, match="Remove it first"):
        describe(elsewhere, label_offset=1)


def test_a_split_without_a_record_gets_no_index(elsewhere):
    write(elsewhere / "validation-00000-of-00001", [])
    with pytest.raises(DataError, match=r"^test: got no record in validation-00000-of-00001, expected at least one"):
        describe(elsewhere, label_offset=1)
    assert not (elsewhere / "dataset.json").exists()


def test_labels_that_do_not_fit_are_refused(elsewhere):
    with pytest.raises(DataError, match=r"expected some of class 0.*label_offset=1"):
        describe(elsewhere)
    with pytest.raises(DataError, match="labels from 1 to 4, expected 2 on"):
        describe(elsewhere, label_offset=2)
    with pytest.raises(DataError, match="labels from 1 to 4, expected 1 to 3"):
        describe(elsewhere, label_offset=1, class_names=("a", "b", "c"))
    assert describe(elsewhere, class_names=("none", "a", "b", "c", "d")).label_offset == 0


def test_files_that_are_no_shards_are_refused(elsewhere):
    with pytest.raises(DataError, match=r"^train: got 'nothing-\*'"):
        describe(elsewhere, train="nothing-*")
    (elsewhere / "train-text").write_text("this is not a file of records")
    with pytest.raises(DataError, match=r"train-text, record 0: got damage"):
        describe(elsewhere, label_offset=1)
    write(elsewhere / "train-text", [b"junk"])
    with pytest.raises(DataError, match=r"train-text, record 0: got no tf\.Example"):
        describe(elsewhere, label_offset=1)
    with pytest.raises(DataError, match="no folder of this name"):
        describe(elsewhere / "nothing")


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("RGB", "WEBP")]
)
def test_the_check_refuses_just_the_images_that_the_input_cannot_decode(mode, kind):
    whole = made_images.encode(1, side=64, mode=mode, kind=kind)
    for kept in range(0, len(whole) + 1, max(1, len(whole) // 40)):
        try:
            decoding.decode(tf.constant(whole[:kept]))
            good = True
        except (tf.errors.InvalidArgumentError, ValueError):
            good = False
        assert (why_undecodable(whole[:kept]) == "") == good
    assert why_undecodable(whole) == ""
    assert "function_node" not in why_undecodable(whole[:-20])


def test_a_shard_of_two_splits_is_refused(elsewhere):
    """Otherwise training would see the test images."""
    with pytest.raises(UserError, match=r"^test: got 'validation-\*', which matches .*validation-00000-of-00001 too"):
        describe(elsewhere, label_offset=1, train="*")
