"""The interface of all splits, and how a host asks them for batches.

A split is the training, hold-out or test part of a data set. It comes in one of four forms: decoded and in memory
(`in_memory.InMemory`), one file per image (`folders.Files`), tars (`tars.Tars`), or shards (`shards.Shards`).
"""

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from skipnet_jax.data import holdout
from skipnet_jax.data.statistics import IMAGENET
from skipnet_jax.specs import DataSpec, Statistics

Batch = dict[str, np.ndarray]

# Evaluation shows the centre of an image, or all of it.
CENTER, WHOLE = "center", "whole"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """Which batches a host reads.

    Args:
      batch_size: examples per batch, over all hosts.
      seed: of the run; evaluation ignores it.
      start_step: number of batches to skip at the beginning.
      process_index: this host, 0..process_count - 1.
    """

    batch_size: int
    seed: int = 0
    start_step: int = 0
    process_index: int = 0
    process_count: int = 1

    @property
    def host_batch(self) -> int:
        """Examples per batch on this host."""
        return self.batch_size // self.process_count

    def steps_per_epoch(self, num_examples: int) -> int:
        """Whole batches in an epoch of this many examples."""
        return num_examples // self.batch_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSplit(abc.ABC):
    """One split of a data set.

    Args:
      class_names: in the order of the labels.
      place: which folder or split the images come from, for people; empty = obvious.
      statistics: the mean and standard deviation that normalise its pixels.
      crop: which part of an image evaluation shows: CENTER, or WHOLE for small square ones.
      classes: the classes that a prediction may choose from; None = all.
      held_out: the images are training images that are kept from training.
    """

    name: str
    class_names: tuple[str, ...]
    place: str = ""
    statistics: Statistics = IMAGENET
    crop: str = CENTER
    classes: tuple[int, ...] | None = None
    held_out: bool = False

    @property
    @abc.abstractmethod
    def num_examples(self) -> int:
        """Number of images in the split."""

    @property
    def num_classes(self) -> int:
        """Number of classes in the data set, whether or not each occurs in this split."""
        return len(self.class_names)

    @abc.abstractmethod
    def divide(self, amount: holdout.Amount) -> "tuple[DataSplit, DataSplit]":
        """Returns (the rest, the hold-out); `holdout.py` says which examples it takes."""

    @abc.abstractmethod
    def train_batches(self, spec: DataSpec, request: BatchRequest) -> Iterator[Batch]:
        """Makes endless batches; `pipeline.train_batches` describes them."""

    @abc.abstractmethod
    def eval_batches(self, spec: DataSpec, request: BatchRequest) -> Iterator[Batch]:
        """Makes one pass of batches; `pipeline.eval_batches` describes them."""


def reading_options(threads: int) -> Any:
    """The options of every tf.data input.

    Args:
      threads: of the input's own pool.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False  # nothing to tune, and closing would wait seconds for the tuner
    options.threading.private_threadpool_size = threads
    return options
