"""Data sets prepared by TensorFlow Datasets: CIFAR in memory, ImageNet and its test sets in shards."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from scripts import fashion_mnist
from skipnet_jax.data import pipeline, sources, tfds_builders
from skipnet_jax.data.shards import Shards
from skipnet_jax.errors import DataError, UserError
from skipnet_jax.specs import DataSpec
from tests.data import made_images

_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SYNSETS = [f"n{number:08d}" for number in range(1000)]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfds_builders, "_why_unreachable", lambda url: pytest.fail("asked the network"))


def _cifar(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), np.arange(count) % 10


def _store(path: pathlib.Path, name: str, splits: Mapping[str, Sequence[int | list[int]]], version: str = "") -> None:
    """Prepares a data set like ImageNet, whose k-th image has the k-th label."""
    several = name == "imagenet2012_real"
    label = tfds.features.ClassLabel(names=_SYNSETS)
    features = {"image": tfds.features.Image(encoding_format="jpeg"), "file_name": tfds.features.Text()}
    features |= {"real_label": tfds.features.Sequence(label)} if several else {"label": label}

    def dataset(labels: Sequence[int | list[int]]) -> tf.data.Dataset:
        images = {
            "image": [made_images.encode(k) for k in range(len(labels))],
            "file_name": [f"{k}.JPEG" for k in range(len(labels))],
        }
        if several:
            return tf.data.Dataset.from_tensor_slices(images | {"real_label": tf.ragged.constant(labels, tf.int64)})
        return tf.data.Dataset.from_tensor_slices(images | {"label": np.asarray(labels, np.int64)})

    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version=version or str(tfds.builder(name, data_dir=path).version),
        data_dir=path,
        features=tfds.features.FeaturesDict(features),
        split_datasets={split: dataset(labels) for split, labels in splits.items()},
    )


def test_prepared_cifar_is_read_in_order(tmp_path: pathlib.Path) -> None:
    splits = {"train": _cifar(2300, seed=0), "test": _cifar(30, seed=1)}
    features = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(names=_CLASSES),
        }
    )
    tfds.dataset_builders.store_as_tfds_dataset(
        name="cifar10",
        version=str(tfds.builder("cifar10", data_dir=tmp_path).version),
        data_dir=tmp_path,
        features=features,
        split_datasets={
            split: tf.data.Dataset.from_tensor_slices(
                {"id": [str(i) for i in range(len(labels))], "image": images, "label": labels}
            )
            for split, (images, labels) in splits.items()
        },
    )
    spec = DataSpec(name="cifar10", dir=str(tmp_path))
    for split, (images, labels) in splits.items():
        source = sources.load(spec, split)
        # TFDS shuffles when it writes (never when we read), so images are matched by content.
        index = {image.tobytes(): k for k, image in enumerate(images)}
        found = [index[image.tobytes()] for image in source.images]
        assert sorted(found) == list(range(len(images)))
        np.testing.assert_array_equal(source.labels, labels[found])
        np.testing.assert_array_equal(sources.load(spec, split).images, source.images)
    assert source.class_names == _CLASSES and source.labels.dtype == np.int32
    assert sources.load_holdout(spec) is None  # the test images choose the best checkpoint
    assert source.statistics.mean == (0.4914, 0.4822, 0.4465) and source.statistics.std == (0.2470, 0.2435, 0.2616)
    small = sources.load(DataSpec(name="cifar10", dir=str(tmp_path), image_size=16), "test")
    assert small.images.shape == (30, 16, 16, 3)


def test_grey_images_get_three_equal_channels(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    splits = {
        split: (rng.integers(0, 256, (count, 28, 28, 1), dtype=np.uint8), np.arange(count) % 10)
        for split, count in (("train", 40), ("test", 20))
    }
    fashion_mnist.write(splits, str(tmp_path))
    source = sources.load(DataSpec(name="fashion_mnist", dir=str(tmp_path), image_size=28), "test")
    expected = {np.repeat(image, 3, axis=2).tobytes(): label for image, label in zip(*splits["test"], strict=True)}
    found = {image.tobytes(): label for image, label in zip(source.images, source.labels, strict=True)}
    assert found == expected and source.class_names[9] == "Ankle boot"


def test_prepared_imagenet_trains_and_is_evaluated_on_its_validation_images(tmp_path: pathlib.Path) -> None:
    # An older version than the newest that TFDS knows, as it lies in many a bucket.
    _store(tmp_path, "imagenet2012", {"train": list(range(40)), "validation": [999, 3, 3]}, version="5.0.0")
    spec = DataSpec(name="imagenet2012", dir=str(tmp_path), image_size=8, pad_crop=0, crop_min_area=0.08)
    train, test = sources.load(spec, "train"), sources.load(spec, "test")
    assert isinstance(train, Shards) and train.name == "imagenet2012" and train.classes is None
    assert (train.num_examples, test.num_examples, train.num_classes) == (40, 3, 1000)
    assert train.class_names[7] == "n00000007" and train.statistics.mean == (0.485, 0.456, 0.406)
    batch = next(pipeline.train_batches(train, spec, batch_size=40, seed=0, start_step=0))
    assert sorted(batch["label"]) == list(range(40)) and batch["image"].any(axis=(1, 2, 3)).all()
    (batch,) = pipeline.eval_batches(test, spec, batch_size=4)
    assert sorted(batch["label"][batch["mask"]]) == [3, 3, 999]


def test_a_missing_shard_is_named_before_the_first_batch(tmp_path: pathlib.Path) -> None:
    _store(tmp_path, "imagenet_sketch", {"test": [1, 2]})
    spec = DataSpec(name="imagenet_sketch", dir=str(tmp_path), image_size=8)
    (shard,) = sources.load(spec, "test").shards
    pathlib.Path(shard.path).unlink()
    with pytest.raises(DataError, match=rf"got 0 of 1 shards.*{shard.name}.*Delete .* and prepare or copy"):
        sources.load(spec, "test")


def test_real_labels_may_be_several_or_none(tmp_path: pathlib.Path) -> None:
    _store(tmp_path, "imagenet2012_real", {"validation": [[3], [], [5, 999, 0]]})
    spec = DataSpec(name="imagenet2012_real", dir=str(tmp_path), image_size=8)
    source = sources.load(spec, "test")
    (batch,) = pipeline.eval_batches(source, spec, batch_size=4)
    assert batch["label"].shape == (4, source.label_width) and batch["label"].dtype == np.int32
    rows = sorted(tuple(row[row >= 0]) for row in batch["label"][batch["mask"]])
    assert rows == [(3,), (5, 999, 0)]  # the image without a right answer is masked


def test_own_classes_are_those_that_occur(tmp_path: pathlib.Path) -> None:
    own = list(range(0, 1000, 5))
    _store(tmp_path, "imagenet_a", {"test": [*own, 0, 995]})
    spec = DataSpec(name="imagenet_a", dir=str(tmp_path), image_size=8)
    assert sources.load(spec, "test").classes is None
    source = sources.load(DataSpec(name="imagenet_a", dir=str(tmp_path), eval_classes="own"), "test")
    assert source.classes == tuple(own) and source.num_classes == 1000
    with pytest.raises(UserError, match=r"got imagenet_a for training.*evaluation alone"):
        sources.load(spec, "train")


def test_one_own_class_is_an_error(tmp_path: pathlib.Path) -> None:
    _store(tmp_path, "imagenet_r", {"test": [2, 2]})
    with pytest.raises(UserError, match=r"^data\.eval_classes: got 'own' for images of 1 class"):
        sources.load(DataSpec(name="imagenet_r", dir=str(tmp_path), eval_classes="own"), "test")


def test_a_variant_of_imagenet_v2_goes_by_its_full_name(tmp_path: pathlib.Path) -> None:
    _store(tmp_path, "imagenet_v2", {"test": [4]}, version="3.0.0")
    base = tmp_path / "imagenet_v2"
    (base / "topimages").mkdir()
    (base / "3.0.0").rename(base / "topimages" / "3.0.0")
    spec = DataSpec(name="imagenet_v2/topimages", dir=str(tmp_path), image_size=8)
    source = sources.load(spec, "test")
    assert source.name == "imagenet_v2/topimages" and source.num_examples == 1
