"""The data format: the index and the records."""

import json

import pytest
import tensorflow as tf

from skipnet_jax.data import tfrecords
from skipnet_jax.data.tfrecords import Index, Shard
from skipnet_jax.errors import DataError


@pytest.fixture
def written(tmp_path) -> tuple[str, Index]:
    directory = str(tmp_path)
    train = tuple(Shard(f"{directory}/train-{i}", examples=i + 1, size=10 + i, sha256="ab") for i in range(3))
    index = Index("pets", ("cat", "dog"), 1, {"train": train, "test": (Shard(f"{directory}/test-0", 2, 5, "cd"),)})
    tfrecords.write_index(directory, index, made_with={"seed": 7})
    return directory, index


def change(directory: str, *path: str | int, value: object) -> None:
    file = f"{directory}/{tfrecords.INDEX}"
    with open(file) as stream:
        content = json.load(stream)
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with open(file, "w") as stream:
        json.dump(content, stream)


def test_the_index_is_read_as_it_was_written(written):
    directory, index = written
    assert tfrecords.read_index(directory) == index
    assert tfrecords.read_index(directory + "/") == index
    assert [shard.name for shard in index.splits["train"]] == ["train-0", "train-1", "train-2"]


def test_the_file_has_the_documented_format(written):
    directory, _ = written
    with open(f"{directory}/dataset.json") as stream:
        content = json.load(stream)
    assert content["splits"]["test"] == {
        "examples": 2,
        "shards": [{"name": "test-0", "examples": 2, "bytes": 5, "sha256": "cd"}],
    }
    assert (content["format"], content["label_offset"], content["made_with"]) == (2, 1, {"seed": 7})


def test_a_missing_index_is_an_error_that_says_how_to_get_one(tmp_path):
    with pytest.raises(DataError, match=r"no dataset\.json.*make_tfrecords\.py --index="):
        tfrecords.read_index(str(tmp_path))
    with pytest.raises(DataError, match=r"no dataset\.json"):
        tfrecords.read_index(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("format",), 3, "got format 3, expected format 1 or 2"),
        (("records", "kind"), "roman", "got labels of kind 'roman', expected one of number"),
        (("records", "label"), "image", "expected different keys"),
        (("splits", "train", "shards", 0, "compression"), "LZMA", "got compression 'LZMA', expected none or one of"),
        (("class_names",), ["cat", 3], r"expected class_names of type list\[str\]"),
        (("class_names",), [], "got 0 class_names"),
        (("class_names",), ["cat", "cat"], "got 2 class_names, 1 of them different"),
        (("splits", "train", "examples"), 7, "got 7 train examples, expected as many as its 3 shards: 6"),
        (("splits", "train", "shards", 0, "examples"), "many", "got examples='many', expected examples of type int"),
        (("splits", "train", "shards", 0), {"name": "train-0"}, "dataset.json, train: got no examples"),
        (("splits", "valid"), {}, "got a split 'valid', expected train or test"),
        (("splits",), {}, "got no splits"),
        (("splits",), 5, "got splits=5, expected splits of type dict"),
    ],
)
def test_a_wrong_index_is_an_error(written, path, value, words):
    directory, _ = written
    change(directory, *path, value=value)
    with pytest.raises(DataError, match=words):
        tfrecords.read_index(directory)


def test_an_index_that_is_no_json_is_an_error(tmp_path):
    (tmp_path / "dataset.json").write_bytes(b'{"format": \xff')
    with pytest.raises(DataError, match="no valid JSON"):
        tfrecords.read_index(str(tmp_path))


def test_missing_and_half_written_shards_are_named(written):
    directory, index = written
    shards = index.splits["train"]
    for shard in shards:
        with open(shard.path, "wb") as file:
            file.write(bytes(shard.size))
    tfrecords.require_shards(directory, shards)
    with open(shards[1].path, "wb") as file:
        file.write(bytes(4))
    with pytest.raises(DataError, match=r"1 of the wrong size: train-1 \(4 bytes of 11\)"):
        tfrecords.require_shards(directory, shards)
    tf.io.gfile.remove(shards[2].path)
    with pytest.raises(DataError, match=r"1 missing: train-2; 1 of the wrong size"):
        tfrecords.require_shards(directory, shards)
    tfrecords.require_shards(directory, shards[:1])  # other shards may be missing


def test_records_come_back_from_a_file(tmp_path):
    path = str(tmp_path / "train-0")
    records = [tfrecords.serialize(b"\xff\xd8 one", 3, "a.jpg"), tfrecords.serialize(b"", -2, "\udcff.jpg")]
    with tf.io.TFRecordWriter(path) as writer:
        for record in records:
            writer.write(record)
    parsed = [tuple(pair) for pair in tf.data.TFRecordDataset(path).map(tfrecords.OWN.parser(())).as_numpy_iterator()]
    assert parsed == [(b"\xff\xd8 one", 3), (b"", -2)]


def test_records_have_the_keys_of_tensorflow_datasets():
    features = tf.train.Example.FromString(tfrecords.serialize(b"x", 3, "a.jpg")).features.feature
    assert set(features) == {"image", "label", "file_name"}
    assert features["file_name"].bytes_list.value[0] == b"a.jpg"


def test_a_record_without_an_image_is_an_error():
    other = tf.train.Example(features=tf.train.Features(feature={"audio": tf.train.Feature()}))
    with pytest.raises(tf.errors.InvalidArgumentError):
        tfrecords.OWN.parser(())(tf.constant(other.SerializeToString()))
    with pytest.raises(tf.errors.InvalidArgumentError):
        tfrecords.OWN.parser(())(tf.constant(b"no message"))
