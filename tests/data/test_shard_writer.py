"""Writing shards: complete, reproducible, resumable, and honest about damaged images."""

import dataclasses
import hashlib
import json
import os
import pathlib

import pytest
import tensorflow as tf

from skipnet_jax.data import archives, shard_writer, tfrecords
from skipnet_jax.data.shard_plan import ShardPlan, class_names_of
from skipnet_jax.errors import DataError, UserError
from tests.data import made_images


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
    return list(tf.data.TFRecordDataset(paths).map(tfrecords.parse).as_numpy_iterator())


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
    assert sorted(os.listdir(tmp_path / "out")) == ["dataset.json", *(f"train-0000{i}-of-00004" for i in range(4))]
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


def test_a_data_set_without_any_good_image_is_an_error(tmp_path):
    folder = made_images.write_folders(tmp_path / "pets", {"cat": 4})
    for path in (folder / "cat").iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="not one image"):
        make(tmp_path / "out", plan_of(folder, on_corrupt="skip"))
    assert not (tmp_path / "out" / "dataset.json").exists()
