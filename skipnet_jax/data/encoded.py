"""Splits whose images are still encoded, each in a file or in a record of a shard.

TensorFlow ends the whole input at the first image that it cannot decode, and does not say which image that was. After
the error, this module reopens the input at the same place in a careful mode: a bad image becomes a black one whose
"status" says what is wrong, so it can be named or skipped. The careful mode costs a millisecond per image.
"""

import abc
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from skipnet_jax.data import pillow_images, storage
from skipnet_jax.data.splits import WHOLE, Batch, BatchRequest, DataSplit, reading_options
from skipnet_jax.errors import DataError
from skipnet_jax.specs import DataSpec

_log = logging.getLogger(__name__)

# The status of an image: decoded; not decodable; absent, since its shard ends or is damaged before it.
GOOD, UNDECODABLE, MISSING = 0, 1, 2

# With on_corrupt=skip: the largest share of unreadable images, out of at least this many, before the run stops.
_TOLERATED_SHARE, _TOLERATED_OF = 0.01, 1000
# Images in progress at once: more than there are cores, since some wait for a file.
_PARALLEL = max(2 * (os.cpu_count() or 1), 16)
# Batches made ahead.
_PREFETCH = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedSplit(DataSplit):
    """Images in files or shards.

    A dataset of records has elements (epoch, index, record): `index` is the example's number in the split, and `record`
    its bytes in a shard or, for a file, the word "file".

    Args:
      mend: what the user should do about damaged data, as a sentence.
      label_width: 0 = one label per image; k = up to k right labels, padded with -1.
    """

    mend: str
    label_width: int = 0

    @abc.abstractmethod
    def train_records(self, request: BatchRequest) -> Any:
        """This host's endless dataset of records in training order, from `request.start_step` on."""

    @abc.abstractmethod
    def eval_records(self, start: int, stop: int) -> Any:
        """A dataset of the records start..stop - 1, each once."""

    @abc.abstractmethod
    def reader(self) -> Callable[[Any, Any], tuple[Any, Any]]:
        """Returns the function from (index, record) to the encoded image and its label, in TensorFlow operations."""

    @abc.abstractmethod
    def describe(self, index: int) -> str:
        """Names an example in a message."""

    def why(self, index: int) -> str:
        """Says why an image cannot be decoded, in brackets; reads the image once more."""
        import tensorflow as tf

        from skipnet_jax.data import decoding

        read = self.reader()
        try:
            records = self.eval_records(index, index + 1)
            (encoded,) = (read(number, record)[0].numpy() for _, number, record in records)
        except (tf.errors.OpError, ValueError, UnicodeDecodeError) as error:
            return f" ({storage.reason(error)})"
        reason = decoding.why_undecodable(encoded)
        return f" ({reason})" if reason else ""

    def missing_record(self, index: int) -> DataError:
        """The error for an example whose record is absent."""
        return DataError(self.describe(index), "no record", "an image", self.mend)

    def train_batches(self, spec: DataSpec, request: BatchRequest) -> Iterator[Batch]:
        import tensorflow as tf

        from skipnet_jax.data import augment, keys

        read = self.reader()
        blank = {"lighting": tf.zeros([3])} if spec.lighting else {}

        def load(epoch: Any, index: Any, record: Any) -> dict[str, Any]:
            encoded, label = read(index, record)
            key = keys.example_key(request.seed, epoch, index)
            light = {"lighting": augment.lighting(key, spec)} if spec.lighting else {}
            image = augment.train_image(encoded, key, spec, whole=self.crop == WHOLE)
            return {"image": image, "label": label, **light}

        def open_batches(done: int, careful: bool) -> Any:
            records = self.train_records(dataclasses.replace(request, start_step=request.start_step + done))
            examples = self._load_each(records, load, spec, blank, careful)
            return _in_batches(examples, request.host_batch, careful=careful, drop_remainder=True)

        return _name_or_skip(_survive(open_batches, self), self, skip=spec.on_corrupt == "skip")

    def eval_batches(self, spec: DataSpec, request: BatchRequest) -> Iterator[Batch]:
        """Makes the batches of this host's contiguous range of the examples, the last ones padded."""
        import tensorflow as tf

        from skipnet_jax.data import decoding, image_ops

        share = -(-self.num_examples // request.process_count)
        start, stop = (min((request.process_index + k) * share, self.num_examples) for k in (0, 1))
        read = self.reader()

        def load(epoch: Any, index: Any, record: Any) -> dict[str, Any]:
            encoded, label = read(index, record)
            image = decoding.decode(encoded, spec.background)
            if self.crop == WHOLE:
                image = image_ops.resize_whole(image, spec.image_size)
            else:
                image = image_ops.eval_crop(image, spec.image_size, spec.eval_crop, spec.interpolation)
            return {"image": tf.ensure_shape(image, [spec.image_size, spec.image_size, 3]), "label": label}

        def open_batches(done: int, careful: bool) -> Any:
            records = self.eval_records(start, stop).skip((request.start_step + done) * request.host_batch)
            return _in_batches(self._load_each(records, load, spec, {}, careful), request.host_batch, careful=careful)

        batches = _name_or_skip(_survive(open_batches, self), self, skip=False)
        number = -(-share // request.host_batch) - request.start_step
        return (self._pad(next(batches, None), spec.image_size, request.host_batch) for _ in range(number))

    def _load_each(
        self, records: Any, load: Callable[..., dict[str, Any]], spec: DataSpec, blank: dict[str, Any], careful: bool
    ) -> Any:
        """Applies `load` to each record, many at once and in order, and adds "index" and "status".

        In the careful mode each record goes through a dataset of its own, in which errors can be ignored. After an
        error that dataset is empty, so the replacement appended to it comes first.

        Args:
          records: (epoch, index, record).
          load: (epoch, index, record) -> {"image", "label", ...}.
          blank: further entries of a bad image, beside its black image and label -1.
          careful: mark bad images instead of ending the input.
        """
        import tensorflow as tf

        shape = [self.label_width] if self.label_width else []

        def loaded(epoch: Any, index: Any, record: Any) -> dict[str, Any]:
            example = load(epoch, index, record)
            label = tf.ensure_shape(tf.cast(example["label"], tf.int32), shape)
            return example | {"label": label, "index": index, "status": tf.constant(GOOD)}

        def loaded_or_replaced(epoch: Any, index: Any, record: Any) -> Any:
            replacement = {
                "image": tf.zeros([spec.image_size, spec.image_size, 3], tf.uint8),
                "label": -tf.ones(shape, tf.int32),
                "index": index,
                "status": tf.where(tf.strings.length(record) > 0, UNDECODABLE, MISSING),
            }
            good = tf.data.Dataset.from_tensors((epoch, index, record)).map(loaded).ignore_errors(log_warning=False)
            return good.concatenate(tf.data.Dataset.from_tensors(replacement | blank)).take(1)

        as_it_is = tf.autograph.experimental.do_not_convert  # AutoGraph would take seconds, and nothing here needs it
        if not careful:
            return records.map(as_it_is(loaded), num_parallel_calls=_PARALLEL, deterministic=True)
        return records.interleave(
            as_it_is(loaded_or_replaced), cycle_length=_PARALLEL, num_parallel_calls=_PARALLEL, deterministic=True
        )

    def _pad(self, batch: Batch | None, size: int, host_batch: int) -> Batch:
        """Fills a batch up with black images and mask False; None is an empty batch."""
        width = self.label_width
        image = np.zeros((host_batch, size, size, 3), np.uint8)
        label = np.full((host_batch, width), -1, np.int32) if width else np.zeros(host_batch, np.int32)
        mask = np.zeros(host_batch, bool)
        if batch is not None:
            count = len(batch["label"])
            image[:count], label[:count], mask[:count] = batch["image"], batch["label"], True
        return {"image": image, "label": label, "mask": mask & (label >= 0).any(axis=1) if width else mask}


def _in_batches(examples: Any, host_batch: int, *, careful: bool, drop_remainder: bool = False) -> Any:
    # In the careful mode each image in progress holds a thread while others do its work.
    threads = (os.cpu_count() or 1) + (2 * _PARALLEL if careful else 0)
    batches = examples.batch(host_batch, drop_remainder=drop_remainder)
    return batches.prefetch(_PREFETCH).with_options(reading_options(threads))


def _survive(open_batches: Callable[[int, bool], Any], split: EncodedSplit) -> Iterator[Batch]:
    """Yields batches; after an error from TensorFlow, continues in the careful mode.

    If a bucket caused the error and works again, the batches are the same as without it.

    Args:
      open_batches: makes the dataset, given the number of batches to skip and whether to be careful.
      split: for the messages.

    Raises:
      DataError: the careful mode fails too.
    """
    import tensorflow as tf

    done, careful = 0, False
    iterator = open_batches(done, careful).as_numpy_iterator()
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except (tf.errors.OpError, UnicodeDecodeError) as error:  # the latter where the message quotes a bad record
            if careful:
                raise DataError(split.name, storage.reason(error), "data that can be read", split.mend) from None
            careful = True
            iterator = open_batches(done, careful).as_numpy_iterator()
            continue
        done += 1
        yield batch


def _name_or_skip(batches: Iterator[Batch], split: EncodedSplit, *, skip: bool) -> Iterator[Batch]:
    """Checks batches, and yields them without "index" and "status".

    Args:
      batches: of {"image", "label", "index", "status", ...}.
      skip: instead of raising, count undecodable images and warn; they stay black, with label -1.

    Raises:
      DataError: a record is absent, a label is out of range, or an image (with `skip`: too many) cannot be decoded.
    """
    seen, skipped = 0, set[int]()
    for batch in batches:
        index, status = batch.pop("index"), batch.pop("status")
        if MISSING in status:
            raise split.missing_record(int(index[status == MISSING][0]))
        _require_labels(split, index[status == GOOD], batch["label"][status == GOOD])
        undecodable = index[status == UNDECODABLE].tolist()
        seen += len(index)
        if undecodable and not skip:
            raise DataError(
                split.describe(undecodable[0]),
                f"an image that cannot be decoded{split.why(undecodable[0])}",
                pillow_images.KINDS,
                f"{split.mend} To train without it, set `data.on_corrupt`=skip.",
            )
        for bad in set(undecodable) - skipped:
            _log.warning("Skipped an image that cannot be decoded: %s%s", split.describe(bad), split.why(bad))
        skipped.update(undecodable)
        different = min(seen, split.num_examples)
        if len(skipped) > _TOLERATED_SHARE * max(different, _TOLERATED_OF):
            raise DataError(
                split.name,
                f"{len(skipped)} of {different} images that cannot be decoded, the last of them "
                f"{split.describe(undecodable[-1])}",
                f"at most {_TOLERATED_SHARE:.0%}",
                split.mend,
            )
        yield batch


def _require_labels(split: EncodedSplit, index: np.ndarray, label: np.ndarray) -> None:
    least = -1 if split.label_width else 0  # several labels are padded with -1
    wrong = np.argwhere((label >= split.num_classes) | (label < least))
    if len(wrong):
        place = split.describe(int(index[wrong[0][0]]))
        raise DataError(place, f"label {label[tuple(wrong[0])]}", f"0..{split.num_classes - 1}", split.mend)
