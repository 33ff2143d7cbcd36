"""One split of a data set, in one of three forms: decoded in memory, image files, or shards of records."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from skipnet_jax.data.statistics import IMAGENET
from skipnet_jax.data.tfrecords import Shard
from skipnet_jax.specs import Statistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Split:
    """What the forms have in common.

    Args:
      name: of the data set.
      class_names: in the order of the labels.
      statistics: what its pixels are normalised with.
      classes: the classes that a prediction is to be chosen from; None = all.
    """

    name: str
    class_names: tuple[str, ...]
    statistics: Statistics = IMAGENET
    classes: tuple[int, ...] | None = None

    @property
    def num_examples(self) -> int:
        """How many images the split has."""
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        """How many classes the data set has, whether or not each occurs in the split."""
        return len(self.class_names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InMemory(_Split):
    """Images that fit into memory, decoded.

    Args:
      images: at the size that the network sees, 0..255.
      labels: 0..number of classes - 1.
    """

    images: UInt8[np.ndarray, "n h w 3"]
    labels: Int32[np.ndarray, "n"]

    @property
    def num_examples(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files(_Split):
    """An image file per example, local or gs://.

    Args:
      paths: of the files.
      labels: 0..number of classes - 1.
    """

    paths: tuple[str, ...]
    labels: Int32[np.ndarray, "n"]

    @property
    def num_examples(self) -> int:
        return len(self.paths)

    def describe(self, index: int) -> str:
        """Names an example in a message."""
        return self.paths[index]

    @property
    def how_to_check(self) -> str:
        """What tells the user which files are damaged."""
        return "Replace or remove the file"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shards(_Split):
    """TFRecord files, which can only be read from their beginning on.

    Args:
      shards: in the order that numbers the examples.
      parse: TensorFlow operations that take a record apart: serialized -> image file (string scalar), label (int32
        scalar, or [label_width] where an image has several right ones, padded with -1).
      label_width: 0 = one label per image.
      how_to_check: what tells the user which records are damaged.
    """

    shards: tuple[Shard, ...]
    parse: Callable[[Any], tuple[Any, Any]]
    label_width: int = 0
    how_to_check: str

    @property
    def num_examples(self) -> int:
        return sum(shard.examples for shard in self.shards)

    def locate(self, index: int) -> tuple[Shard, int]:
        """The shard of an example, and the number of its record in there."""
        for shard in self.shards:
            if index < shard.examples:
                return shard, index
            index -= shard.examples
        raise IndexError(index)

    def describe(self, index: int) -> str:
        """Names an example in a message."""
        shard, record = self.locate(index)
        return f"record {record} of {shard.path}"


Source = InMemory | Files | Shards
