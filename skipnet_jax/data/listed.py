"""Splits whose images can be read in any order: from files, or from known places in tars."""

import abc
import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from skipnet_jax.data import holdout
from skipnet_jax.data.encoded import EncodedSplit
from skipnet_jax.data.splits import BatchRequest


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListedSplit(EncodedSplit):
    """Images that are listed with their labels.

    Args:
      labels: 0..number of classes - 1.
    """

    labels: Int32[np.ndarray, "n"]

    @property
    def num_examples(self) -> int:
        return len(self.labels)

    @abc.abstractmethod
    def chosen(self, mask: Bool[np.ndarray, "n"]) -> "ListedSplit":
        """The examples that the mask marks."""

    def divide(self, amount: holdout.Amount) -> "tuple[ListedSplit, ListedSplit]":
        mask = holdout.choose(self.labels, amount)
        return self.chosen(~mask), self.chosen(mask)

    def train_records(self, request: BatchRequest) -> Any:
        """Follows a permutation of all images, a new one in each epoch."""
        import tensorflow as tf

        from skipnet_jax.data import keys

        steps = request.steps_per_epoch(self.num_examples)
        host_start = request.process_index * request.host_batch

        def epoch_of(epoch: Any) -> Any:
            order = keys.permutation(request.seed, epoch, self.num_examples)

            def step_of(step: Any) -> Any:
                indexes = tf.slice(order, [step * request.batch_size + host_start], [request.host_batch])
                return tf.data.Dataset.from_tensor_slices(indexes)

            first = tf.maximum(request.start_step - epoch * steps, 0)
            return tf.data.Dataset.range(first, steps).flat_map(step_of).map(lambda index: (epoch, index, "file"))

        epochs = tf.data.Dataset.range(request.start_step // steps, np.iinfo(np.int64).max)
        return epochs.flat_map(tf.autograph.experimental.do_not_convert(epoch_of))

    def eval_records(self, start: int, stop: int) -> Any:
        import tensorflow as tf

        return tf.data.Dataset.range(start, stop).map(lambda index: (tf.zeros([], tf.int64), index, "file"))
