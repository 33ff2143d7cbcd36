"""Batches from TensorFlow's input, looked at before training or evaluation gets them.

Here an image that cannot be decoded becomes an error that names it, or is counted.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from skipnet_jax.data.encoded import GOOD, MISSING, UNDECODABLE
from skipnet_jax.data.splits import Files, Shards
from skipnet_jax.errors import DataError

_log = logging.getLogger(__name__)

# With on_corrupt=skip: more than this share of unreadable images, of at least so many, is no accident.
_TOLERATED_SHARE, _TOLERATED_OF = 0.01, 1000


def checked(
    open_batches: Callable[[int, bool], Any], source: Files | Shards, *, skip: bool
) -> Iterator[dict[str, np.ndarray]]:
    """Goes through a dataset of batches.

    When TensorFlow gives up, the input is opened again where it was, this time carefully: if an image or a shard is
    bad, it is found; if the trouble was a bucket's and has passed, the same batches go on.

    Args:
      open_batches: makes the tf.data.Dataset of {"image", "label", "index", "status", ...}; given the number of batches
        to leave out at the beginning, and whether to mark bad images instead of raising.
      source: names the examples.
      skip: an image that cannot be decoded is counted and warned of, and keeps its black image and label -1, until
        there are too many; otherwise it is an error.

    Returns:
      Iterator over the batches without "index" and "status".

    Raises:
      DataError: on `next`: an image, a label or a shard is bad.
    """
    import tensorflow as tf

    done = seen = 0
    skipped = set[int]()
    careful = False
    iterator = open_batches(done, careful).as_numpy_iterator()
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except (tf.errors.OpError, UnicodeDecodeError) as error:  # the latter where its message quotes a bad record
            if careful:
                raise DataError(
                    source.name, _first_line(error), "data that can be read", f"{source.how_to_check}."
                ) from None
            careful = True
            iterator = open_batches(done, careful).as_numpy_iterator()
            continue
        done += 1
        index, status = batch.pop("index"), batch.pop("status")
        _require_records(source, index[status == MISSING])
        _require_labels(source, index[status == GOOD], batch["label"][status == GOOD])
        undecodable = index[status == UNDECODABLE]
        seen += len(index)
        if len(undecodable) and not skip:
            raise DataError(
                source.describe(int(undecodable[0])),
                "an image that cannot be decoded",
                "a JPEG or PNG file",
                f"{source.how_to_check}, or train without it by `data.on_corrupt`=skip.",
            )
        for bad in set(undecodable.tolist()) - skipped:
            _log.warning("Skipped an image that cannot be decoded: %s", source.describe(bad))
        skipped.update(undecodable.tolist())
        different = min(seen, source.num_examples)
        if len(skipped) > _TOLERATED_SHARE * max(different, _TOLERATED_OF):
            raise DataError(
                source.name,
                f"{len(skipped)} images of {different} that cannot be decoded, the last of them "
                f"{source.describe(int(undecodable[-1]))}",
                f"at most {_TOLERATED_SHARE:.0%}",
                f"{source.how_to_check}.",
            )
        yield batch


def _require_records(source: Files | Shards, missing: np.ndarray) -> None:
    """Raises if records were not there, with TensorFlow's own words on their shard."""
    if not len(missing) or isinstance(source, Files):  # a file that is not there counts as unreadable
        return
    import tensorflow as tf

    shard, _ = source.locate(int(missing[0]))
    count, trouble = 0, "no more"
    try:
        for record in tf.data.TFRecordDataset(shard.path):
            if not len(record.numpy()):
                trouble = "an empty one"
                break
            count += 1
    except tf.errors.OpError as error:
        trouble = _first_line(error)
    raise DataError(
        shard.path,
        f"{count} records and then {trouble!r}",
        f"{shard.examples} records",
        f"Copy or make the shard again. {source.how_to_check}.",
    )


def _require_labels(source: Files | Shards, index: np.ndarray, label: np.ndarray) -> None:
    several = label.ndim == 2  # then padded with -1
    wrong = (label >= source.num_classes) | (label < (-1 if several else 0))
    if wrong.any():
        first = np.argwhere(wrong)[0]
        raise DataError(
            source.describe(int(index[first[0]])),
            f"label {label[tuple(first)]}",
            f"0..{source.num_classes - 1}",
            f"{source.how_to_check}.",
        )


def _first_line(error: Any) -> str:
    """TensorFlow's message without the places in its own graph."""
    line = (getattr(error, "message", None) or str(error)).splitlines()[0]
    return line.split("}} ")[-1].split(" [Op:")[0].strip()
