"""Writing shards: complete, reproducible, resumable, and honest about damaged images."""

import dataclasses
import hashlib
import io
import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from skipnet_jax.data import archives, decoding, shard_checker, shard_writer, storage, tfrecords
from skipnet_jax.data.shard_plan import ShardPlan, class_names_of
from skipnet_jax.errors import DataError, UserError
from tests.data import made_images

TFDS = ["dataset_info.json", "features.json", "label.labels.txt"]


@pytest.fixture
def source(tmp_path) -> pathlib.Path:
    return made_images.write_train_tar(tmp_path / "train.tar", 7)


def plan_of(source: pathlib.Path, **changes: object) -> ShardPlan:
    listings = {"train": archives.find_images(str(source), lambda: None)}
    return dataclasses.replace(ShardPlan("pets", class_names_of(listings), listings, {"train": 4}), **changes)


def make(out: pathlib.Path, plan: ShardPlan, *, threads: int = 2, advance=lambda images: None, say=lambda line: None):
    return shard_writer.make(str(out), plan, threads=threads, advance=advance, say=say)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def records(index: tfrecords.Index) -> list[tuple[bytes, int]]:
    paths = [shard.path for shard in index.splits["train"]]
    return list(tf.data.TFRecordDataset(paths).map(tfrecords.OWN.parser(())).as_numpy_iterator())


def test_every_image_comes_once_unchanged_with_its_label(tmp_path, source):
    plan = plan_of(source)
    done = []
    index = make(tmp_path / "out", plan, advance=done.append)
    listing = plan.listings["train"]
    wanted = [(listing.read(i), listing.labels[i]) for i in map(int, plan.order("train"))]
    assert records(index) == wanted
    assert [pair[1] for pair in wanted] != sorted(pair[1] for pair in wanted)
    assert sum(done) == 21
    assert tfrecords.read_index(str(tmp_path / "out")) == index
    assert [shard.examples for shard in index.splits["train"]] == [5, 5, 5, 6]
    shards = [f"train-0000{i}-of-00004" for i in range(4)]
    assert sorted(set(os.listdir(tmp_path / "out")) - set(TFDS)) == ["dataset.json", *shards]
    for shard in index.splits["train"]:
        content = pathlib.Path(shard.path).read_bytes()
        assert (shard.size, shard.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_classes_are_numbered_as_in_the_whole_data_set(tmp_path, source):
    listings = {
        "train": archives.find_images(str(source), lambda: None),
        "test": archives.find_images(str(made_images.write_val_tar(tmp_path / "val.tar", 2)), lambda: None),
    }
    plan = ShardPlan("imagenet", class_names_of(listings), listings, {"train": 4, "test": 1})
    assert {label for _, label in records(make(tmp_path / "out", plan))} == {0, 1, 65}
    index = make(tmp_path / "other", plan_of(source, class_names=("none", *reversed(made_images.SYNSETS))))
    listing = plan.listings["train"]
    wanted = [3 - listing.labels[i] for i in map(int, plan.order("train"))]
    assert [label for _, label in records(index)] == wanted


def test_bytes_depend_on_the_seed_and_not_on_the_threads(tmp_path, source):
    make(tmp_path / "one", plan_of(source), threads=1)
    make(tmp_path / "three", plan_of(source), threads=3)
    make(tmp_path / "seed", plan_of(source, seed=1))
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert contents(tmp_path / "one")["train-00000-of-00004"] != contents(tmp_path / "seed")["train-00000-of-00004"]


@pytest.mark.parametrize("images", [1, 7, 19])
def test_an_interrupted_and_resumed_run_writes_the_same_bytes(tmp_path, source, images):
    make(tmp_path / "whole", plan_of(source))
    left = [images]

    def interrupt(count: int) -> None:
        left[0] -= count
        if left[0] <= 0:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        make(out, plan_of(source), threads=1, advance=interrupt)
    assert not (out / "dataset.json").exists()
    assert all(path.suffix == ".json" for path in (out / "parts").iterdir())  # nothing unfinished fills the disk
    done = [name for name in os.listdir(out) if name != "parts"]
    stamps = {name: (out / name).stat().st_mtime_ns for name in done}
    assert len(done) == (images - 1) // 5
    # What is in its place is whole.
    assert all((out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in done)
    total = []
    make(out, plan_of(source), advance=total.append)
    assert sum(total) == 21
    assert contents(out) == contents(tmp_path / "whole")
    assert {name: (out / name).stat().st_mtime_ns for name in done} == stamps  # not made again


def test_a_noted_shard_that_is_gone_or_cut_off_is_made_again(tmp_path, source):
    make(tmp_path / "whole", plan_of(source))
    out = tmp_path / "out"
    seen = []

    def interrupt(count: int) -> None:
        seen.append(count)
        if len(seen) == 18:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(out, plan_of(source), threads=1, advance=interrupt)
    (out / "train-00000-of-00004").unlink()
    (out / "train-00001-of-00004").write_bytes(b"half")
    (out / "parts" / "train-00002-of-00004.json").write_text("{")
    make(out, plan_of(source))
    assert contents(out) == contents(tmp_path / "whole")


def test_a_finished_data_set_is_left_alone(tmp_path, source):
    out = tmp_path / "out"
    index = make(out, plan_of(source))
    (out / "parts").mkdir()  # killed just before it was removed
    before = contents(out)
    done = []
    assert make(out, plan_of(source), advance=done.append) == index
    assert contents(out) == before
    assert done == [21]
    assert not (out / "parts").exists()


@pytest.mark.parametrize("finished", [True, False])
def test_other_arguments_are_refused(tmp_path, source, finished):
    out = tmp_path / "out"

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    if finished:
        make(out, plan_of(source))
    else:
        with pytest.raises(KeyboardInterrupt):
            make(out, plan_of(source), advance=stop)
    with pytest.raises(UserError, match="shards were made with seed 0, expected seed 5"):
        make(out, plan_of(source, seed=5))
    with pytest.raises(UserError, match="'shards': 2"):
        make(out, plan_of(source, num_shards={"train": 2}))
    made_images.write_train_tar(source, 8)
    with pytest.raises(UserError, match="'images': 24"):
        make(out, plan_of(source))


def test_a_folder_with_other_files_is_refused(tmp_path, source):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="holds something else"):
        make(tmp_path / "out", plan_of(source))
    assert os.listdir(tmp_path / "out") == ["thesis.txt"]


@pytest.fixture
def damaged(tmp_path) -> pathlib.Path:
    folder = made_images.write_folders(tmp_path / "pets", {"cat": 6, "dog": 3})
    (folder / "cat" / "2.jpg").write_bytes(made_images.encode(0)[:-40])
    (folder / "dog" / "1.jpg").write_bytes(b"<!DOCTYPE html>")
    return folder


def test_a_damaged_image_stops_the_run_and_is_named(tmp_path, damaged):
    with pytest.raises(DataError, match=r"pets: got (cat/2|dog/1)\.jpg \(.+\), expected.*corrupt=skip"):
        make(tmp_path / "out", plan_of(damaged))
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_damaged_images_are_left_out_named_and_counted(tmp_path, damaged):
    with pytest.raises(DataError):
        make(tmp_path / "out", plan_of(damaged))
    lines, done = [], []
    index = make(tmp_path / "out", plan_of(damaged, on_corrupt="skip"), advance=done.append, say=lines.append)
    assert sum(done) == 9
    assert len(records(index)) == 7 == sum(shard.examples for shard in index.splits["train"])
    assert sorted(line.split()[5] for line in lines) == ["cat/2.jpg", "dog/1.jpg"]
    made_with = json.loads((tmp_path / "out" / "dataset.json").read_text())["made_with"]
    assert sorted(made_with["skipped"]["train"]) == ["cat/2.jpg", "dog/1.jpg"]


def test_what_is_said_of_a_damaged_image_can_be_printed(tmp_path):
    """Its name is Latin-1."""
    folder = made_images.write_folders(tmp_path / "pets", {"cat": 2, "dog": 2})
    (folder / "cat" / os.fsdecode(b"b\xe4r.jpg")).write_bytes(b"nothing")
    lines = []
    make(tmp_path / "out", plan_of(folder, on_corrupt="skip"), say=lines.append)
    assert len(lines) == 1 and "b\\udce4r.jpg" in lines[0] and lines[0].encode()


def test_a_data_set_without_any_good_image_is_an_error(tmp_path):
    folder = made_images.write_folders(tmp_path / "pets", {"cat": 4})
    for path in (folder / "cat").iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="no image that can be decoded, expected at least one"):
        make(tmp_path / "out", plan_of(folder, on_corrupt="skip"))
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_tensorflow_datasets_reads_what_is_written(tmp_path, source):
    plan = plan_of(source)
    index = make(tmp_path / "out", plan)
    builder = tfds.builder_from_directory(str(tmp_path / "out"))
    assert builder.info.features["label"].names == list(made_images.SYNSETS)
    assert builder.info.splits["train"].num_examples == 21 and builder.info.name == "pets"
    examples = builder.as_dataset(split="train", as_supervised=True, shuffle_files=False).as_numpy_iterator()
    for (image, label), (encoded, wanted) in zip(examples, records(index), strict=True):
        np.testing.assert_array_equal(image, tf.io.decode_jpeg(encoded).numpy())
        assert label == wanted
    assert len(builder.as_dataset(split="train[50%:]")) in (10, 11)


def test_what_tensorflow_shows_otherwise_than_a_viewer_becomes_a_png(tmp_path):
    """Turned by the camera, CMYK, WebP with transparency: whoever reads the shards sees what a viewer shows."""
    folder = tmp_path / "pets"
    (folder / "cat").mkdir(parents=True)
    photo = Image.open(io.BytesIO(made_images.encode(1, side=24))).resize((24, 16))
    turned = Image.Exif()
    turned[0x0112] = 6
    photo.save(folder / "cat" / "turned.jpg", exif=turned)
    photo.convert("CMYK").save(folder / "cat" / "cmyk.jpg")
    photo.save(folder / "cat" / "photo.webp", lossless=True)
    clear = photo.convert("RGBA")
    clear.putalpha(100)
    clear.save(folder / "cat" / "clear.webp", lossless=True)
    clear.save(folder / "cat" / "clear.png")
    photo.save(folder / "cat" / "plain.jpg")
    index = make(tmp_path / "out", plan_of(folder, num_shards={"train": 1}))
    parse = index.records.parser(())
    kept = 0
    for record in tf.data.TFRecordDataset(index.splits["train"][0].path):
        name = index.records.fields(record)["file_name"].numpy().decode()
        original, (stored, _) = (folder / name).read_bytes(), parse(record)
        kept += original == stored.numpy()
        shown = tf.io.decode_image(stored, channels=4 if "clear" in name else 3, expand_animations=False)
        if "clear" in name:
            np.testing.assert_array_equal(shown, np.asarray(Image.open(folder / name).convert("RGBA")))
        else:
            np.testing.assert_array_equal(decoding.decode(stored), decoding.decode(tf.constant(original)))
            assert name == "cat/plain.jpg" or np.array_equal(shown, decoding.decode(tf.constant(original)))
        for background in ((255, 255, 255), (0, 9, 90)):
            wanted = decoding.decode(tf.constant(original), background)
            np.testing.assert_array_equal(decoding.decode(stored, background), wanted)
    assert kept == 2  # plain.jpg and clear.png


def test_shards_of_an_earlier_version_are_read_and_left_alone(tmp_path, source):
    """Their keys were tf-slim's, and no index said so."""
    out = tmp_path / "out"
    plan = plan_of(source)
    index = make(out, plan)
    wanted = records(index)
    for name in TFDS:
        (out / name).unlink()
    for shard in index.splits["train"]:
        old = [record.numpy() for record in tf.data.TFRecordDataset(shard.path)]
        with tf.io.TFRecordWriter(shard.path) as writer:
            for record in old:
                features = tf.train.Example.FromString(record).features.feature
                keys = {"image/encoded": "image", "image/class/label": "label", "image/filename": "file_name"}
                renamed = {new: features[key] for new, key in keys.items()}
                example = tf.train.Example(features=tf.train.Features(feature=renamed))
                writer.write(example.SerializeToString(deterministic=True))
    content = json.loads((out / "dataset.json").read_text())
    content["format"] = 1
    del content["records"], content["made_with"]["records"]
    for shard in content["splits"]["train"]["shards"]:
        shard["bytes"], shard["sha256"] = storage.hash_file(str(out / shard["name"]))
    (out / "dataset.json").write_text(json.dumps(content))
    before = contents(out)
    read = make(out, plan)  # the same command again
    assert contents(out) == before
    paths = [shard.path for shard in read.splits["train"]]
    assert list(tf.data.TFRecordDataset(paths).map(read.records.parser(())).as_numpy_iterator()) == wanted
    assert shard_checker.check(str(out), threads=1, advance=lambda images: None)[1] == []
