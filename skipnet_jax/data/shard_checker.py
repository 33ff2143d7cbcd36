"""Reads shards to the last byte: to check a data set, or to describe shards that were made elsewhere."""

import concurrent.futures
import dataclasses
import fnmatch
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from skipnet_jax.data import tfrecords
from skipnet_jax.data.storage import hash_file, is_bucket, join, local_copy
from skipnet_jax.data.tfrecords import ENCODED, FILENAME, LABEL, Index, Shard
from skipnet_jax.errors import DataError, UserError

# Of one shard: where all records are bad, more lines would say no more.
_NAMED_AT_MOST = 20
# Bytes of a record beside its content: the length (8), and a checksum (4) of each.
_FRAME = 16
# Values of an image that TensorFlow's decoder takes.
_DECODABLE = 2**29


def check(directory: str, *, threads: int, advance: Callable[[int], None]) -> tuple[Index, list[str]]:
    """Checks all that the index says and all that a reader needs.

    Sizes, checksums, the records' own checksums (CRC-32C) and number, their keys, labels, and that every image can be
    decoded.

    Args:
      directory: of the data set, local or gs://.
      threads: shards read at a time; one of a bucket is copied to the local disk for that.
      advance: called with a number of records as they are done.

    Returns:
      The index, and a line for each thing that is wrong, with its file and record (from 0).

    Raises:
      DataError: there is no index, or none that can be read.
    """
    index = tfrecords.read_index(directory)

    def problems_of(shard: Shard) -> list[str]:
        problems = list(_problems(shard, index, advance))
        more = [f"and {len(problems) - _NAMED_AT_MOST} more"] if len(problems) > _NAMED_AT_MOST else []
        return [f"{shard.name}: {problem}" for problem in (*problems[:_NAMED_AT_MOST], *more)]

    shards = [shard for shards in index.splits.values() for shard in shards]
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return index, [problem for problems in pool.map(problems_of, shards) for problem in problems]


def describe(
    directory: str,
    patterns: Mapping[str, str],
    *,
    name: str,
    label_offset: int,
    class_names: tuple[str, ...],
    threads: int,
    advance: Callable[[int], None],
) -> Index:
    """Writes the index of shards that are there already. Images are not decoded: `check` does that.

    Args:
      directory: of the shards, local or gs://.
      patterns: shell pattern of the shards' names, by split.
      name: of the data set, for people.
      label_offset: label of class 0 in the records; 1 in tf-slim's ImageNet.
      class_names: in the order of their numbers; empty = the numbers themselves, as many as occur.
      threads: shards read at a time.
      advance: called with a number of records as they are done.

    Returns:
      The index, as written.

    Raises:
      DataError: there are no such shards, or one is damaged, or the labels do not fit.
      ValueError: there is an index.
    """
    import tensorflow as tf

    if tf.io.gfile.exists(join(directory, tfrecords.INDEX)):
        raise UserError("index", f"{directory}, which has a {tfrecords.INDEX}", "none", "Remove it first.")
    splits: dict[str, tuple[Shard, ...]] = {}
    labels = set[int]()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for split, pattern in patterns.items():
            paths = [join(directory, file) for file in _list(directory) if fnmatch.fnmatchcase(file, pattern)]
            if shared := {shard.path for shards in splits.values() for shard in shards} & set(paths):
                raise UserError(
                    split,
                    f"{pattern!r}, which matches {min(shared)} too, a shard of another split",
                    "splits that share no shard",
                )
            if not paths:
                raise DataError(
                    split, f"{pattern!r}, which no file in {directory} matches", "a pattern of the shards' names"
                )
            results = list(pool.map(lambda path: _measure(path, advance), paths))
            splits[split] = tuple(shard for shard, _ in results)
            labels.update(*(found for _, found in results))
    first, last = min(labels), max(labels)
    if first < label_offset or (class_names and last - label_offset >= len(class_names)):
        wanted = f"{label_offset} to {label_offset + len(class_names) - 1}" if class_names else f"{label_offset} on"
        raise DataError(directory, f"labels from {first} to {last}", wanted, "Change `label_offset` or `class_names`.")
    if first > label_offset and not class_names:
        raise DataError(
            directory,
            f"labels from {first} to {last}",
            f"some of class 0, which has the label {label_offset}",
            f"Give `label_offset`={first}, or `class_names`=FILE if some classes just do not occur.",
        )
    class_names = class_names or tuple(str(number) for number in range(last - label_offset + 1))
    index = Index(name, class_names, label_offset, splits)
    tfrecords.write_index(directory, index, made_with={"patterns": dict(patterns)})
    return index


def why_undecodable(encoded: bytes) -> str:
    """Why an image file cannot be decoded; empty if it can.

    Reads all of a JPEG's data but computes only an eighth of its pixels a side, in about half of the time.
    """
    import tensorflow as tf

    try:
        image = tf.io.decode_jpeg(encoded, channels=3, ratio=8, dct_method="INTEGER_FAST")  # PNG, too
    except tf.errors.InvalidArgumentError as error:
        return _reason(error)
    if image.shape.rank != 3:  # TensorFlow takes animations, with a rank of 4
        return "neither JPEG nor PNG"
    reduced = 64 if encoded.startswith(b"\xff\xd8") else 1  # the ratio is for JPEGs alone
    too_large = image.shape.num_elements() * reduced >= _DECODABLE
    return f"too large: {image.shape[0]} x {image.shape[1]} blocks of 8 x 8 pixels" if too_large else ""


@dataclasses.dataclass(frozen=True)
class _Record:
    encoded: bytes
    label: int
    filename: str


def _problems(shard: Shard, index: Index, advance: Callable[[int], None]) -> Iterator[str]:
    import tensorflow as tf

    records = 0
    labels = range(index.label_offset, index.label_offset + len(index.class_names))
    try:
        with local_copy(shard.path) as path:
            size, sha256 = hash_file(path)
            if size != shard.size:
                yield f"{size:,} bytes, expected {shard.size:,}"
            elif sha256 != shard.sha256:
                yield f"checksum {sha256[:8]}..., expected {shard.sha256[:8]}...: the file has changed"
            for record in _records(path):
                where = f"record {records}"
                records += 1
                advance(1)
                if isinstance(record, str):
                    yield f"{where}: {record}"
                    continue
                where += f" ({record.filename})" if record.filename else ""
                if record.label not in labels:
                    yield f"{where}: label {record.label}, expected {labels[0]} to {labels[-1]}"
                if reason := why_undecodable(record.encoded):
                    yield f"{where}: cannot be decoded: {reason}"
    except tf.errors.DataLossError as error:
        yield f"record {records}: damaged, and what follows cannot be read ({_reason(error)})"
    except (OSError, tf.errors.OpError) as error:
        yield f"cannot be read ({_reason(error)})"
    else:
        if records != shard.examples:
            yield f"{records} records, expected {shard.examples}"


def _measure(path: str, advance: Callable[[int], None]) -> tuple[Shard, set[int]]:
    """What the index says of a shard, and the labels that occur in it."""
    import tensorflow as tf

    labels, examples = set(), 0
    try:
        with local_copy(path) as local:
            size, sha256 = hash_file(local)
            for record in _records(local):
                if isinstance(record, str):
                    raise DataError(f"{path}, record {examples}", record, "a record of an image")
                labels.add(record.label)
                examples += 1
                advance(1)
    except tf.errors.OpError as error:
        raise DataError(
            f"{path}, record {examples}",
            f"damage ({_reason(error)})",
            "a whole shard",
            "Make or copy this shard anew.",
        ) from error
    return Shard(path, examples, size, sha256), labels


def _records(path: str) -> Iterator[_Record | str]:
    """The records of a local shard; of one that is no image, what it lacks."""
    import tensorflow as tf

    features = {
        ENCODED: tf.io.FixedLenFeature([], tf.string),
        LABEL: tf.io.FixedLenFeature([], tf.int64),
        FILENAME: tf.io.FixedLenFeature([], tf.string, default_value=""),
    }
    whole, damage = _count_framed(path)
    for serialized in tf.data.TFRecordDataset(path).take(whole):
        try:
            example = {key: value.numpy() for key, value in tf.io.parse_single_example(serialized, features).items()}
        except (tf.errors.InvalidArgumentError, UnicodeDecodeError):  # the latter where the message quotes the record
            yield f"no tf.Example with {ENCODED} and {LABEL}"
        else:
            yield _Record(example[ENCODED], int(example[LABEL]), example[FILENAME].decode("utf-8", "replace"))
    if damage:
        raise tf.errors.DataLossError(None, None, damage)


def _count_framed(path: str) -> tuple[int, str]:
    """How many records a shard holds before one that is longer than the rest of the file, and what is wrong with that.

    TensorFlow makes room for whatever length it reads, and an absurd one ends the process.
    """
    size, at, count = os.path.getsize(path), 0, 0
    with open(path, "rb") as file:
        while at < size:
            file.seek(at)
            length = int.from_bytes(file.read(8), "little")
            at += length + _FRAME
            if at > size:
                return count, f"truncated record: {length:,} bytes, of which {max(size - at + length, 0):,} are there"
            count += 1
    return count, ""


def _list(directory: str) -> list[str]:
    import tensorflow as tf

    try:
        return sorted(name.rstrip("/") for name in tf.io.gfile.listdir(directory))
    except tf.errors.NotFoundError as error:
        kind = "bucket or folder" if is_bucket(directory) else "folder"
        raise DataError(directory, f"no {kind} of this name", "one with shards") from error


def _reason(error: Any) -> str:
    """TensorFlow's words without the operation that they come with."""
    words = getattr(error, "message", None) or str(error)
    return words.rpartition("}} ")[2].partition(" [Op:")[0].strip() or type(error).__name__
