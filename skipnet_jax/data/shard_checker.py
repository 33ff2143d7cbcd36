"""Reads shards to the last byte, to check a data set or to describe shards that were made elsewhere."""

import concurrent.futures
import dataclasses
import fnmatch
import os
from collections.abc import Callable, Iterator, Mapping

from etils import epath

from skipnet_jax import files
from skipnet_jax.data import record_format, shard_records, storage, tfrecords
from skipnet_jax.data.record_format import DIGITS, TEXT, RecordFormat
from skipnet_jax.data.tfrecords import Index, Shard
from skipnet_jax.errors import DataError, UserError

# Labels with more different numbers than this are not classes, but identities or sizes.
_MOST_CLASSES = 1_000_000
# Problems named per shard: if all records are bad, more lines say no more.
_NAMED_AT_MOST = 20


def check(directory: str, *, threads: int, advance: Callable[[int], None]) -> tuple[Index, list[str]]:
    """Checks everything that the index says and that a reader needs.

    It checks sizes, checksums, the number of records, the records' own checksums (CRC-32C) and keys, the labels, and
    that every image can be decoded.

    Args:
      directory: of the data set, local or gs://.
      threads: shards read at a time. A shard in a bucket is copied to the local disk first.
      advance: called with the number of records just done.

    Returns:
      The index, and a line for each problem, with its file and record (from 0).

    Raises:
      DataError: there is no index that can be read.
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
    image_key: str = "",
    label_key: str = "",
    threads: int,
    advance: Callable[[int], None],
) -> Index:
    """Writes the index of existing shards, without decoding the images; `check` does that.

    Args:
      directory: of the shards, local or gs://.
      patterns: shell pattern of the shards' names, by split.
      name: of the data set, for people.
      label_offset: label of class 0 in the records; 1 in tf-slim's ImageNet.
      class_names: in the order of their numbers; empty = the numbers themselves, up to the largest label, or, if the
        labels are words, these words, sorted.
      image_key, label_key: of the records; empty = look for them.
      threads: shards read at a time.
      advance: called with the number of records just done.

    Returns:
      The index, as written.

    Raises:
      DataError: there are no such shards, one is damaged, or the labels do not fit.
      UserError: there is an index already, or the splits share shards.
    """
    if (epath.Path(directory) / tfrecords.INDEX).exists():
        raise UserError("index", f"{directory}, which has a {tfrecords.INDEX}", "none", "Remove it first.")
    matching = _match(directory, patterns)
    first = next(iter(matching.values()))[0]
    found = record_format.find(shard_records.first(first), first, image_key=image_key, label_key=label_key)
    splits: dict[str, tuple[Shard, ...]] = {}
    labels = set[int | str]()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for split, paths in matching.items():
            results = list(pool.map(lambda path: _measure(path, found, advance), paths))
            splits[split] = tuple(shard for shard, _ in results)
            if not sum(shard.examples for shard in splits[split]):
                got = f"no record in {storage.some([shard.name for shard in splits[split]])}"
                raise DataError(split, got, "at least one", f"Copy the shards again, or leave out `{split}`.")
            labels.update(*(occurring for _, occurring in results))
    if words := {label for label in labels if isinstance(label, str)}:
        found, class_names = _named_by_words(found, words, class_names, label_offset, directory)
    if found.kind != TEXT:
        class_names = _numbered(set(map(int, labels)), class_names, label_offset, directory)
    index = Index(name, class_names, label_offset, splits, found)
    tfrecords.write_index(directory, index, made_with={"patterns": dict(patterns)})
    return index


def _named_by_words(
    found: RecordFormat, words: set[str], class_names: tuple[str, ...], label_offset: int, directory: str
) -> tuple[RecordFormat, tuple[str, ...]]:
    """Reads labels stored as text: as numbers if all of them are numbers, otherwise as names of classes.

    Returns:
      The format with the kind of the labels, and the names of the classes.
    """
    if all(word.strip().isdecimal() for word in words):
        return dataclasses.replace(found, kind=DIGITS), class_names
    if label_offset:
        got = f"{label_offset}, but the labels are words: {storage.some(sorted(words))}"
        raise UserError("label_offset", got, "numbers", "Leave out `label_offset`.")
    if class_names and (unknown := sorted(words - set(class_names))):
        got = f"labels that are not among the class names: {storage.some(unknown)}"
        raise DataError(directory, got, f"some of {storage.some(class_names)}", "Change `class_names`.")
    return found, class_names or tuple(sorted(words))


def _numbered(labels: set[int], class_names: tuple[str, ...], label_offset: int, directory: str) -> tuple[str, ...]:
    """Checks labels that are numbers, and returns the names of the classes."""
    first, last = min(labels), max(labels)
    if first < label_offset or (class_names and last - label_offset >= len(class_names)):
        expected = f"{label_offset} to {label_offset + len(class_names) - 1}" if class_names else f"{label_offset} on"
        mend = "Change `label_offset` or `class_names`."
        raise DataError(directory, f"labels from {first} to {last}", expected, mend)
    if first > label_offset and not class_names:
        raise DataError(
            directory,
            f"labels from {first} to {last}",
            f"some of class 0, whose label is {label_offset}",
            f"Give `label_offset`={first}, or `class_names`=FILE if some classes just do not occur.",
        )
    if not class_names and last - label_offset >= _MOST_CLASSES:
        mend = "Give `label_key`, if another key holds the label, or `class_names`."
        raise DataError(directory, f"labels from {first} to {last}", f"fewer than {_MOST_CLASSES:,} classes", mend)
    return class_names or tuple(str(number) for number in range(last - label_offset + 1))


def _problems(shard: Shard, index: Index, advance: Callable[[int], None]) -> Iterator[str]:
    import tensorflow as tf

    from skipnet_jax.data import decoding

    records = 0
    labels = range(index.label_offset, index.label_offset + len(index.class_names))
    words = set(index.class_names) if index.records.kind == TEXT else set()
    try:
        with storage.local_copy(shard.path) as path:
            size, sha256 = storage.hash_file(path)
            if size != shard.size:
                yield f"{size:,} bytes, expected {shard.size:,}"
            elif sha256 != shard.sha256:
                yield f"checksum {sha256[:8]}..., expected {shard.sha256[:8]}...: the file has changed"
            for record in shard_records.read(path, shard.compression, index.records):
                where = f"record {records}"
                records += 1
                advance(1)
                if isinstance(record, str):
                    yield f"{where}: {record}"
                    continue
                where += f" ({record.filename})" if record.filename else ""
                if words and record.label not in words:
                    yield f"{where}: label {record.label!r}, expected one of the classes' names"
                elif not words and int(record.label) not in labels:
                    yield f"{where}: label {record.label}, expected {labels[0]} to {labels[-1]}"
                if reason := decoding.why_undecodable(record.encoded):
                    yield f"{where}: cannot be decoded: {reason}"
    except tf.errors.DataLossError as error:
        yield f"record {records}: damaged, and what follows cannot be read ({storage.reason(error)})"
    except (OSError, tf.errors.OpError) as error:
        yield f"cannot be read ({storage.reason(error)})"
    else:
        if records != shard.examples:
            yield f"{records} records, expected {shard.examples}"


def _match(directory: str, patterns: Mapping[str, str]) -> dict[str, list[str]]:
    """Finds the shards of each split by the pattern of their names."""
    import tensorflow as tf

    try:
        present = sorted(path.name for path in epath.Path(directory).iterdir())
    except (FileNotFoundError, tf.errors.NotFoundError) as error:
        kind = "folder" if files.is_local(directory) else "bucket or folder"
        raise DataError(directory, f"no {kind} of this name", "one with shards") from error
    matching: dict[str, list[str]] = {}
    for split, pattern in patterns.items():
        names = [name for name in present if fnmatch.fnmatchcase(name, pattern)]
        if shared := set(names) & {name for other in matching.values() for name in other}:
            got = f"{pattern!r}, which matches {min(shared)} too, a shard of another split"
            raise UserError(split, got, "splits that share no shard", f"Change `{split}`.")
        if not names:
            got = f"{pattern!r}, which no file in {directory} matches"
            raise DataError(split, got, "a pattern of the shards' names", f"Change `{split}`.")
        matching[split] = names
    return {split: [os.fspath(epath.Path(directory) / name) for name in names] for split, names in matching.items()}


def _measure(path: str, records: RecordFormat, advance: Callable[[int], None]) -> tuple[Shard, set[int | str]]:
    """Measures a shard for the index, and finds the labels that occur in it."""
    import tensorflow as tf

    labels, examples = set(), 0
    compression = storage.compression_of(path)
    try:
        with storage.local_copy(path) as local:
            size, sha256 = storage.hash_file(local)
            for record in shard_records.read(local, compression, records):
                if isinstance(record, str):
                    raise DataError(f"{path}, record {examples}", record, "a record of an image")
                labels.add(record.label)
                examples += 1
                advance(1)
    except tf.errors.OpError as error:
        got, mend = f"damage ({storage.reason(error)})", "Make or copy this shard again."
        raise DataError(f"{path}, record {examples}", got, "a whole shard", mend) from error
    return Shard(path, examples, size, sha256, compression=compression), labels
