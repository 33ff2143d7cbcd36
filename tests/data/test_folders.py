"""A folder of class folders: which images and classes are found, and what is said when something is wrong."""

import dataclasses
import itertools
import logging
import os
import pathlib
import shutil
import unicodedata

import numpy as np
import pytest

from skipnet_jax.data import pipeline, sources
from skipnet_jax.errors import DataError, UserError
from skipnet_jax.specs import DataSpec
from tests.data import made_images

CLASSES = {"cat": 3, "ant": 2, "dog": 4}


@pytest.fixture
def spec(tmp_path: pathlib.Path) -> DataSpec:
    made_images.write_folders(tmp_path / "pets" / "train", CLASSES)
    made_images.write_folders(tmp_path / "pets" / "val", dict.fromkeys(CLASSES, 1))
    return DataSpec(name="folder", dir=str(tmp_path / "pets"), image_size=8)


def test_images_are_numbered_by_the_names_of_their_folders(spec: DataSpec) -> None:
    train, test = sources.load(spec, "train"), sources.load(spec, "test")
    assert train.name == "pets" and train.class_names == test.class_names == ("ant", "cat", "dog")
    assert list(train.labels) == [0, 0, 1, 1, 1, 2, 2, 2, 2] and list(test.labels) == [0, 1, 2]
    assert all(
        f"/train/{train.class_names[label]}/" in path for path, label in zip(train.paths, train.labels, strict=True)
    )
    assert train.statistics.mean == (0.485, 0.456, 0.406)
    batches = list(pipeline.eval_batches(test, spec, batch_size=2))
    assert [list(batch["label"][batch["mask"]]) for batch in batches] == [[0, 1], [2]]
    batch = next(pipeline.train_batches(train, spec, batch_size=9, seed=0, start_step=0))
    assert sorted(batch["label"]) == sorted(train.labels)


def test_deeper_folders_count_and_other_files_are_reported(spec: DataSpec, caplog: pytest.LogCaptureFixture) -> None:
    train = pathlib.Path(spec.dir) / "train"
    (train / "cat" / "tabby").mkdir()
    (train / "cat" / "tabby" / "x.PNG").write_bytes(made_images.encode(1, kind="PNG"))
    for other in ("cat/notes.txt", "cat/.hidden.jpg", "cat/Thumbs.db", "cat/zero.jpg"):
        (train / other).write_bytes(b"")
    (train / "loose.jpg").write_bytes(made_images.encode(2))
    (train / "cat" / "gone.jpg").symlink_to("/nowhere/x.jpg")
    for other in (".cache", "__MACOSX/cat", "cat/@eaDir", ".ipynb_checkpoints"):
        (train / other).mkdir(parents=True)
        (train / other / "x.jpg").write_bytes(made_images.encode(3))
    (train / "dog" / "dog.jpg").mkdir()
    with caplog.at_level(logging.WARNING):
        split = sources.load(spec, "train")
    assert split.num_examples == 10 and split.class_names == ("ant", "cat", "dog")
    assert split.class_names[split.labels[split.paths.index(str(train / "cat/tabby/x.PNG"))]] == "cat"
    for told in (
        "files and folders of the system (6): .cache",
        "other files (1): cat/notes.txt",
        "empty files (1): cat/zero.jpg",
        "broken links (1): cat/gone.jpg",
        "images in no class folder (1): loose.jpg",
        "count as that class's: cat/tabby",
    ):
        assert told in caplog.text


@pytest.mark.parametrize("train, test", [("Train", "TEST"), ("training", "testing"), ("train", "valid")])
def test_the_folders_of_the_splits_have_many_names(spec: DataSpec, train: str, test: str) -> None:
    root = pathlib.Path(spec.dir)
    (root / "train").rename(root / "t")
    (root / "val").rename(root / test)
    (root / "t").rename(root / train)
    found = {split: sources.load(spec, split) for split in ("train", "test")}
    assert (found["train"].place, found["test"].place) == (f"{train}/", f"{test}/")
    assert (found["train"].num_examples, found["test"].num_examples) == (9, 3)
    assert sources.load_holdout(spec) is None


def test_train_val_and_test_are_all_used(spec: DataSpec) -> None:
    made_images.write_folders(pathlib.Path(spec.dir) / "test", dict.fromkeys(CLASSES, 2))
    kept = sources.load_holdout(spec)
    assert kept is not None and kept.place == "val/" and kept.num_examples == 3
    assert sources.load(spec, "test").num_examples == 6 and sources.load(spec, "train").num_examples == 9
    assert sources.load_holdout(dataclasses.replace(spec, holdout="none")) is None
    with pytest.raises(UserError, match=r"^data\.holdout: got 'dev', expected val or test, which"):
        sources.load_holdout(dataclasses.replace(spec, holdout="dev"))


def test_class_folders_alone_are_split_by_the_hold_out(tmp_path: pathlib.Path) -> None:
    made_images.write_folders(tmp_path, {"cat": 20, "dog": 10})
    spec = DataSpec(name="folder", dir=str(tmp_path), image_size=8)
    message = r"got 2 folders, cat, dog, and no folder for the test images.*data\.holdout=0\.1"
    with pytest.raises(DataError, match=message):
        sources.require_available(spec)
    spec = dataclasses.replace(spec, holdout="0.1")
    train, kept = sources.load(spec, "train"), sources.load_holdout(spec)
    assert list(np.bincount(train.labels)) == [18, 9] and list(np.bincount(kept.labels)) == [2, 1]
    assert not set(train.paths) & set(kept.paths) and sources.load(spec, "test").paths == kept.paths


def test_training_images_alone_need_a_hold_out(spec: DataSpec) -> None:
    shutil.rmtree(pathlib.Path(spec.dir) / "val")
    with pytest.raises(DataError, match=r"got train/ alone and no folder for the test images"):
        sources.load(spec, "train")
    assert sources.load(dataclasses.replace(spec, holdout="3"), "test").num_examples == 3
    with pytest.raises(UserError, match=r"got 'val', expected a fraction: .* has one folder only"):
        sources.load(dataclasses.replace(spec, holdout="val"), "test")


def test_an_archives_folder_around_the_splits_is_opened(spec: DataSpec, tmp_path: pathlib.Path) -> None:
    (tmp_path / "outer").mkdir()
    pathlib.Path(spec.dir).rename(tmp_path / "outer" / "pets")
    train = sources.load(dataclasses.replace(spec, dir=str(tmp_path / "outer")), "train")
    assert train.num_examples == 9 and train.place == "pets/train/"


def test_home_and_variables_are_replaced(spec: DataSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(pathlib.Path(spec.dir).parent))
    monkeypatch.setenv("PETS", "pets")
    assert sources.load(dataclasses.replace(spec, dir="~/$PETS"), "train").num_examples == 9
    with pytest.raises(UserError, match=r"^data\.dir: got '~/\$NO_PETS', expected variables that are set, but NO_PETS"):
        sources.load(dataclasses.replace(spec, dir="~/$NO_PETS"), "train")


def test_classes_that_differ_between_the_splits_are_named(spec: DataSpec) -> None:
    (pathlib.Path(spec.dir) / "val" / "cat").rename(pathlib.Path(spec.dir) / "val" / "cat ")
    with pytest.raises(DataError, match=r"only in train/: cat; only in val/: 'cat ', expected the same classes"):
        sources.load(spec, "test")


@pytest.mark.parametrize("emptied", [True, False])
def test_a_class_without_test_images_is_named_or_allowed(spec: DataSpec, emptied: bool) -> None:
    folder = pathlib.Path(spec.dir) / "val" / "cat"
    shutil.rmtree(folder)
    if emptied:
        folder.mkdir()
    with pytest.raises(DataError, match=r"only in train/: cat, expected the same.*data\.absent_classes=allow"):
        sources.load(spec, "test")
    test = sources.load(dataclasses.replace(spec, absent_classes="allow"), "test")
    assert test.class_names == ("ant", "cat", "dog") and list(test.labels) == [0, 2]


def test_two_spellings_in_unicode_are_one_class(spec: DataSpec) -> None:
    for split, form in (("train", "NFC"), ("val", "NFD")):
        folder = pathlib.Path(spec.dir) / split
        (folder / "cat").rename(folder / unicodedata.normalize(form, "cafés"))
    train, test = sources.load(spec, "train"), sources.load(spec, "test")
    assert train.class_names == test.class_names == ("ant", "cafés", "dog")
    assert len(train.class_names[1]) == 5 and list(test.labels) == [0, 1, 2]


def test_names_in_latin_1_are_read(spec: DataSpec) -> None:
    for split in ("train", "val"):
        folder = os.fsencode(f"{spec.dir}/{split}")
        os.rename(folder + b"/cat", folder + b"/b\xe4r")
        os.rename(folder + b"/b\xe4r/0.jpg", folder + b"/b\xe4r/\xfc.jpg")
    train = sources.load(spec, "train")
    assert train.class_names == ("ant", "bär", "dog")
    labels = next(pipeline.train_batches(train, spec, batch_size=9, seed=0, start_step=0))["label"]
    assert sorted(labels) == sorted(train.labels)
    assert r"'" in train.describe(2) and r"\udc" in train.describe(2)  # can be printed


def test_empty_folders_are_errors(spec: DataSpec, tmp_path: pathlib.Path) -> None:
    for image in (pathlib.Path(spec.dir) / "train" / "ant").iterdir():
        image.unlink()
    with pytest.raises(DataError, match="got classes without images: ant"):
        sources.load(spec, "train")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"empty: got no folders, expected DIR/train/CLASS"):
        sources.load(dataclasses.replace(spec, dir=str(empty)), "train")
    (empty / "train").mkdir()
    (empty / "test").mkdir()
    with pytest.raises(DataError, match=r"train: got no images in 0 folders"):
        sources.load(dataclasses.replace(spec, dir=str(empty)), "train")
    (empty / "test" / "x.jpg").write_bytes(made_images.encode(0))
    with pytest.raises(DataError, match=r"test: got 1 images, which lie in no class folder"):
        sources.load(dataclasses.replace(spec, dir=str(empty)), "test")


def test_a_single_class_is_refused(spec: DataSpec) -> None:
    for name in ("cat", "dog"):
        shutil.rmtree(pathlib.Path(spec.dir) / "train" / name)
    with pytest.raises(DataError, match=r"train/: got one class, 'ant', expected images of two classes"):
        sources.load(spec, "train")


def test_two_folders_for_one_split_are_refused(spec: DataSpec) -> None:
    (pathlib.Path(spec.dir) / "validation").mkdir()
    with pytest.raises(DataError, match="got val and validation, either of which may be meant"):
        sources.load(spec, "test")


def test_classes_can_be_chosen(spec: DataSpec) -> None:
    split = sources.load(dataclasses.replace(spec, classes=(2, 0)), "train")
    assert split.class_names == ("dog", "ant")
    np.testing.assert_array_equal(split.labels, [1, 1, 0, 0, 0, 0])
    assert all("/cat/" not in path for path in split.paths)


def test_a_link_to_a_folder_is_followed(spec: DataSpec) -> None:
    train = pathlib.Path(spec.dir) / "train"
    (train / "dog").rename(train.parent.parent / "dogs")
    (train / "dog").symlink_to(train.parent.parent / "dogs", target_is_directory=True)
    assert sources.load(spec, "train").num_examples == 9


@pytest.mark.parametrize("place", ["cat/all", "all", "cat/other", "cat/out"])
def test_no_image_is_read_twice_by_way_of_a_link(spec: DataSpec, caplog: pytest.LogCaptureFixture, place: str) -> None:
    train = pathlib.Path(spec.dir) / "train"
    targets = {"cat/all": "..", "all": "..", "cat/other": "../dog", "cat/out": "../../.."}
    (train / place).symlink_to(targets[place])
    with caplog.at_level(logging.WARNING):
        split = sources.load(spec, "train")
    assert split.num_examples == 9 and split.class_names == ("ant", "cat", "dog")
    assert list(np.bincount(split.labels)) == [2, 3, 4]
    assert f"lie above (1): {place}" in caplog.text


def test_links_that_lead_to_each_other_end(spec: DataSpec, tmp_path: pathlib.Path) -> None:
    for name, other in itertools.permutations(("one", "two")):
        made_images.write_folders(tmp_path / "pool", {name: 1})
        (tmp_path / "pool" / name / "next").symlink_to(f"../{other}")
    (pathlib.Path(spec.dir) / "train" / "cat" / "more").symlink_to(tmp_path / "pool" / "one")
    assert sources.load(spec, "train").num_examples == 11


def test_a_folder_that_cannot_be_read_is_named(spec: DataSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def vanished(path: str):
        if path.endswith("dog"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", vanished)
    with pytest.raises(DataError, match=r"train/dog: got No such file or directory, expected a folder that can"):
        sources.load(spec, "train")
