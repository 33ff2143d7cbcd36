"""Prepared data sets of TensorFlow Datasets, small ones: of real builders, and of one's own."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds


def prepare(path: pathlib.Path, name: str, sizes: Mapping[str, int]) -> None:
    """Prepares examples that TFDS's mock makes up, with the features, variant and version of the real builder.

    Args:
      path: folder of the data sets.
      name: of a data set with code, as NAME[/CONFIG].
      sizes: split -> number of examples.
    """
    builder = tfds.builder(name, data_dir=path)
    with tfds.testing.mock_data(num_examples=sum(sizes.values())):
        made = list(tfds.as_numpy(tfds.builder(name, data_dir=path).as_dataset(split="train")))
    splits, start = {}, 0
    for split, count in sizes.items():
        splits[split] = made[start : start + count]
        start += count
    store(path, builder.name, builder.info.features, splits, version=str(builder.version))
    if builder.builder_config is not None:
        plain = path / builder.name / str(builder.version)
        place = path / builder.name / builder.builder_config.name / str(builder.version)
        place.parent.mkdir()
        plain.rename(place)


def store(
    path: pathlib.Path,
    name: str,
    features: Mapping[str, Any],
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    version: str = "1.0.0",
    num_shards: int | None = None,
    shuffled: bool = True,
) -> None:
    """Prepares a data set of these examples."""
    config = tfds.download.DownloadConfig(num_shards=num_shards) if num_shards else None
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version=version,
        data_dir=path,
        features=tfds.features.FeaturesDict({**features}),
        split_datasets={split: list(enumerate(examples)) for split, examples in splits.items()},
        download_config=config,
        disable_shuffling=not shuffled,
    )


def own(path: pathlib.Path, name: str = "own", *, num_shards: int | None = None, shuffled: bool = True) -> None:
    """Prepares 60 training and 20 validation images of 8x8, whose labels come in many forms.

    The first pixel of image k is k (training) or 100 + k. Its "digit" is k % 3 + 1, "word" is "a" to "c" alike, "odd"
    in "facts" is k % 2 == 1, "one" is a ClassLabel without names, "two" another one, "raw" the same image as numbers.
    """

    def example(first: int, k: int) -> dict[str, Any]:
        image = np.full((8, 8, 1), k, np.uint8)
        image[0, 0] = first + k
        label = {"digit": k % 3 + 1, "word": "abc"[k % 3], "one": k % 3, "two": k % 2, "facts": {"odd": k % 2 == 1}}
        return {"photo": image, "raw": np.repeat(image, 3, axis=2), "number": first + k, **label}

    features = {
        "photo": tfds.features.Image(shape=(8, 8, 1)),
        "raw": tfds.features.Tensor(shape=(8, 8, 3), dtype=np.uint8),
        "digit": tfds.features.Scalar(np.int64),
        "number": tfds.features.Scalar(np.int64),
        "word": tfds.features.Text(),
        "one": tfds.features.ClassLabel(num_classes=3),
        "two": tfds.features.ClassLabel(names=["even", "odd"]),
        "facts": {"odd": np.bool_},
    }
    splits = {"train": [example(0, k) for k in range(60)], "validation": [example(100, k) for k in range(20)]}
    store(path, name, features, splits, num_shards=num_shards, shuffled=shuffled)
