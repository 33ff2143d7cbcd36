"""The data sets by name: digits, shards and folders of your own; the rest is in test_tfds_sources.py."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from skipnet_jax.data import pipeline, sources, tfrecords
from skipnet_jax.data.shards import Shards
from skipnet_jax.errors import DataError, UserError
from skipnet_jax.specs import DataSpec
from tests.data import made_shards


def test_digits_are_1797_real_images_split_once_and_for_all() -> None:
    spec = DataSpec(name="digits", image_size=16)
    train, test = sources.load(spec, "train"), sources.load(spec, "test")
    assert (train.num_examples, test.num_examples, train.num_classes) == (1437, 360, 10)
    assert train.images.shape == (1437, 16, 16, 3) and train.images.dtype == np.uint8
    assert train.labels.dtype == np.int32
    np.testing.assert_array_equal(train.images[..., 0], train.images[..., 2])
    # Stratified: each class has a fifth of its images in the test split.
    both = np.bincount(train.labels) + np.bincount(test.labels)
    np.testing.assert_allclose(np.bincount(test.labels), both / 5, atol=1)
    # No image is in both, and the split is the same wherever it is made.
    assert not {image.tobytes() for image in train.images} & {image.tobytes() for image in test.images}
    assert list(test.labels[:12]) == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3, 2, 6]
    np.testing.assert_array_equal(sources.load(spec, "test").images, test.images)


def test_digits_keep_their_pixels_and_their_statistics() -> None:
    native = sources.load(DataSpec(name="digits", image_size=8), "train")
    assert set(np.unique(native.images)) == {round(k * 255 / 16) for k in range(17)}
    train = sources.load(DataSpec(name="digits", image_size=32), "train")
    np.testing.assert_allclose(train.statistics.mean, (train.images / 255).mean(axis=(0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(train.statistics.std, (train.images / 255).std(axis=(0, 1, 2)), atol=1e-4)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match=r"^data\.name: got 'cifar', expected one of cifar10.*Change data\.name"):
        sources.load(DataSpec(name="cifar"), "train")
    for name in ("folders", "digits/8x8", "huggingface:mnist", "", "Foo Bar", "a/b/c/d", "../x"):
        with pytest.raises(
            UserError, match=r"^data\.name: got .*, expected .*digits, folder, tfrecords, webdataset, tfds"
        ):
            sources.require_available(DataSpec(name=name))


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        sources.load(DataSpec(name="digits"), "train")


@pytest.fixture
def written(tmp_path: pathlib.Path) -> DataSpec:
    """A data set of tfrecords."""
    made = made_shards.write(tmp_path, counts=(5, 3, 8))
    shards = tuple(dataclasses.replace(s, size=pathlib.Path(s.path).stat().st_size) for s in made.shards)
    names = tuple(f"class {k}" for k in range(16))
    tfrecords.write_index(str(tmp_path), tfrecords.Index("pets", names, 0, {"train": shards}), made_with={})
    return DataSpec(name="tfrecords", dir=str(tmp_path), image_size=8, pad_crop=0)


def test_tfrecords_are_opened_by_their_index(written: DataSpec) -> None:
    split = sources.load(written, "train")
    assert isinstance(split, Shards) and split.name == "pets" and split.class_names[3] == "class 3"
    assert [shard.examples for shard in split.shards] == [5, 3, 8] and split.num_examples == 16
    assert split.statistics.std == (0.229, 0.224, 0.225)
    (batch,) = pipeline.eval_batches(split, written, batch_size=16)
    assert sorted(batch["label"]) == list(range(16))
    with pytest.raises(DataError, match=r"got only a split train, expected a split test"):
        sources.load(written, "test")


def test_labels_count_from_the_offset(written: DataSpec) -> None:
    path = pathlib.Path(written.dir) / tfrecords.INDEX
    content = json.loads(path.read_text())
    content["label_offset"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"record 0 of .*train-00000.*got label -1, expected 0\.\.15.*--check="):
        next(pipeline.eval_batches(sources.load(written, "train"), written, batch_size=16))


def test_a_pattern_chooses_shards(written: DataSpec) -> None:
    chosen = sources.load(dataclasses.replace(written, pattern="*-0000[02]-*"), "train")
    assert [shard.examples for shard in chosen.shards] == [5, 8]
    with pytest.raises(DataError, match=r"^data\.pattern: got 'valid\*'.*such as train-00000-of-00003"):
        sources.load(dataclasses.replace(written, pattern="valid*"), "train")
    with pytest.raises(UserError, match=r"^data\.pattern: got 'train\*' for digits"):
        sources.load(DataSpec(name="digits", pattern="train*"), "train")


def test_missing_and_half_written_shards_are_reported_together(written: DataSpec) -> None:
    first, second, _ = (pathlib.Path(shard.path) for shard in sources.load(written, "train").shards)
    first.unlink()
    second.write_bytes(second.read_bytes()[:100])
    with pytest.raises(DataError, match=r"1 missing: train-00000-of-00003; 1 of the wrong size: train-00001.*--check="):
        sources.load(written, "train")


@pytest.mark.parametrize("name", ["tfrecords", "folder"])
def test_places_that_do_not_exist_are_reported(tmp_path: pathlib.Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"^data\.dir: got nothing, expected the folder that holds the {name}"):
        sources.require_available(DataSpec(name=name))
    with pytest.raises(DataError, match="nowhere"):
        sources.require_available(DataSpec(name=name, dir=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("name", ["tfrecords", "folder", "imagenet2012"])
def test_a_bucket_that_denies_access_is_an_error_of_the_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    def deny(*args: object) -> None:
        raise tf.errors.PermissionDeniedError(None, None, "403 Forbidden")

    monkeypatch.setattr(tf.io.gfile, "listdir", deny)
    monkeypatch.setattr(sources.tfrecords, "read_index", deny)
    monkeypatch.setattr(sources.tfds_names, "find_builder", deny)
    with pytest.raises(DataError, match=r"gs://closed/data: got 403 Forbidden.*gcloud auth"):
        sources.load(DataSpec(name=name, dir="gs://closed/data"), "train")


def test_classes_are_chosen_and_renumbered() -> None:
    spec = DataSpec(name="digits", image_size=8)
    whole, chosen = sources.load(spec, "train"), sources.load(dataclasses.replace(spec, classes=(7, 0, 3)), "train")
    assert chosen.class_names == ("7", "0", "3") and chosen.num_classes == 3
    for new, old in enumerate((7, 0, 3)):
        np.testing.assert_array_equal(chosen.images[chosen.labels == new], whole.images[whole.labels == old])
    with pytest.raises(UserError, match=r"^data\.classes: got \[10, 12\], expected numbers 0\.\.9 of digits"):
        sources.load(dataclasses.replace(spec, classes=(1, 10, 12)), "train")


def test_classes_of_shards_cannot_be_chosen(written: DataSpec) -> None:
    with pytest.raises(UserError, match=r"^data\.classes: got \(1,\) for pets.*in memory or in files"):
        sources.load(dataclasses.replace(written, classes=(1,)), "train")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("eval_classes", "own"),
        ("train_split", "train[:9]"),
        ("test_split", "test"),
        ("label_key", "y"),
        ("image_key", "x"),
    ],
)
def test_fields_of_tensorflow_datasets_are_for_these_alone(field: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"^data\.{field}: got '.*' for digits, expected a data set of TensorFlow"):
        sources.load(DataSpec(name="digits", **{field: value}), "test")


def test_a_hold_out_is_taken_from_the_training_images_alone(written: DataSpec) -> None:
    spec = DataSpec(name="digits", image_size=8, holdout="0.2")
    train, kept, test = sources.load(spec, "train"), sources.load_holdout(spec), sources.load(spec, "test")
    assert (train.num_examples, kept.num_examples, test.num_examples) == (1150, 287, 360)
    both = np.bincount(train.labels) + np.bincount(kept.labels)
    np.testing.assert_allclose(np.bincount(kept.labels), both / 5, atol=1)
    whole = sources.load(DataSpec(name="digits", image_size=8), "train")
    assert sorted(image.tobytes() for image in whole.images) == sorted(
        image.tobytes() for part in (train, kept) for image in part.images
    )
    assert sources.load_holdout(dataclasses.replace(spec, holdout="")) is None
    with pytest.raises(UserError, match=r"^data\.holdout: got '', which holds no images out"):
        sources.load(dataclasses.replace(spec, holdout=""), "holdout")
    with pytest.raises(UserError, match=r"^data\.holdout: got 'val', expected a fraction or a number"):
        sources.load_holdout(dataclasses.replace(spec, holdout="val"))


def test_shards_hold_out_their_last_records(written: DataSpec) -> None:
    spec = dataclasses.replace(written, holdout="0.25")
    splits = {"train": sources.load(spec, "train"), "holdout": sources.load_holdout(spec)}
    assert sources.load(spec, "test").counts == splits["holdout"].counts  # there are no test shards
    labels = {}
    for name, split in splits.items():
        (batch,) = pipeline.eval_batches(split, spec, batch_size=16)
        labels[name] = sorted(batch["label"][batch["mask"]])
    assert labels["holdout"] == [4, 7, 14, 15] and sorted([*labels["train"], *labels["holdout"]]) == list(range(16))
    assert splits["holdout"].describe(0).startswith("record 4 of ")
    batch = next(pipeline.train_batches(splits["train"], spec, batch_size=12, seed=0, start_step=0))
    assert sorted(batch["label"]) == labels["train"]
