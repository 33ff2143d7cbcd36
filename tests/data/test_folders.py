"""A folder of class folders: which images and classes are found, and what is said when something is wrong."""

import dataclasses
import logging
import pathlib

import numpy as np
import pytest

from skipnet_jax.data import folders, pipeline, sources
from skipnet_jax.errors import DataError
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
    for other in ("cat/notes.txt", "cat/.hidden.jpg", "loose.jpg"):
        (train / other).write_bytes(b"")
    (train / ".cache").mkdir()
    with caplog.at_level(logging.WARNING):
        split = sources.load(spec, "train")
    assert split.num_examples == 10 and split.class_names == ("ant", "cat", "dog")
    assert split.class_names[split.labels[split.paths.index(str(train / "cat/tabby/x.PNG"))]] == "cat"
    assert "2 other files are left out: cat/notes.txt, loose.jpg" in caplog.text


def test_classes_that_differ_between_the_splits_are_named(spec: DataSpec) -> None:
    (pathlib.Path(spec.dir) / "val" / "cat").rename(pathlib.Path(spec.dir) / "val" / "cats")
    for split in ("train", "test"):
        with pytest.raises(DataError, match=r"(only in \w+: cats?.*){2}same folders in both"):
            sources.load(spec, split)


def test_empty_folders_are_errors(spec: DataSpec, tmp_path: pathlib.Path) -> None:
    for image in (pathlib.Path(spec.dir) / "train" / "ant").iterdir():
        image.unlink()
    with pytest.raises(DataError, match="got 1 classes without images: ant"):
        sources.load(spec, "train")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"empty: got no folder for the test images, expected DIR/train/CLASS"):
        sources.load(dataclasses.replace(spec, dir=str(empty)), "train")
    (empty / "train").mkdir()
    (empty / "test").mkdir()
    with pytest.raises(DataError, match=r"train: got no images in 0 folders"):
        sources.load(dataclasses.replace(spec, dir=str(empty)), "train")


def test_two_folders_for_evaluation_are_refused(spec: DataSpec) -> None:
    (pathlib.Path(spec.dir) / "test").mkdir()
    with pytest.raises(DataError, match="got test and val, either of which may be meant"):
        sources.load(spec, "test")


def test_classes_can_be_chosen(spec: DataSpec) -> None:
    split = sources.load(dataclasses.replace(spec, classes=(2, 0)), "train")
    assert split.class_names == ("dog", "ant")
    np.testing.assert_array_equal(split.labels, [1, 1, 0, 0, 0, 0])
    assert all("/cat/" not in path for path in split.paths)


def test_a_link_to_a_folder_is_followed(spec: DataSpec) -> None:
    train = pathlib.Path(spec.dir) / "train"
    (train / "dog").rename(train.parent / "dogs")
    (train / "dog").symlink_to(train.parent / "dogs", target_is_directory=True)
    assert sources.load(spec, "train").num_examples == 9
    assert folders.find_split(spec.dir, "test").endswith("/val")
