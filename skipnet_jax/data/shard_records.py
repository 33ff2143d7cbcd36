"""Reads the records of a shard one by one, whatever their keys, compression or damage."""

import dataclasses
import math
import os
from collections.abc import Iterator
from typing import Any

from skipnet_jax.data import storage
from skipnet_jax.data.record_format import DIGITS, LOOKED_AT, RecordFormat

# Bytes of a record beside its content: the length (8), and checksums (4 each) of the length and of the content.
FRAME_BYTES = 16


@dataclasses.dataclass(frozen=True)
class Record:
    """The image and the label of a record."""

    encoded: bytes
    label: int | str  # as in the record
    filename: str


def first(path: str) -> list[bytes]:
    """The first records of a shard, as many as can be read."""
    import tensorflow as tf

    try:
        with storage.local_copy(path) as local, storage.decompressed(local, storage.compression_of(local)) as plain:
            whole, _ = _count_framed(plain)
            records = tf.data.TFRecordDataset(plain).take(min(whole, LOOKED_AT))
            return [record.numpy() for record in records]
    except tf.errors.OpError:
        return []


def read(path: str, compression: str, of: RecordFormat) -> Iterator[Record | str]:
    """Yields the records of a local shard; in place of a bad record, yields a text that says what is wrong with it."""
    import tensorflow as tf

    with storage.decompressed(path, compression) as plain:
        whole, damage = _count_framed(plain)
        for serialized in tf.data.TFRecordDataset(plain).take(whole):
            if not _is_example(serialized.numpy()):
                yield "no tf.Example"
                continue
            try:
                fields = of.fields(serialized)
                encoded, label = of.encoded(fields).numpy(), _label(fields[of.label].numpy(), of)
            except (tf.errors.InvalidArgumentError, UnicodeDecodeError):  # the latter where the message quotes it
                sides = f", as many pixels as {of.height} x {of.width}" if of.height else ""
                yield f"no tf.Example with {of.image}{sides} and {of.label}"
                continue
            except ValueError as error:
                yield str(error)
                continue
            filename = fields[of.filename].numpy().decode("utf-8", "replace") if of.filename else ""
            yield Record(encoded, label, filename)
        if damage:
            raise tf.errors.DataLossError(None, None, damage)


def _is_example(serialized: bytes) -> bool:
    """Whether a record can be parsed. Some damage would end the process in TensorFlow's own parser."""
    import tensorflow as tf
    from google.protobuf import message

    try:
        tf.train.Example.FromString(serialized)
    except message.DecodeError:
        return False
    return True


def _label(value: Any, of: RecordFormat) -> int | str:
    """A label as the record has it.

    Raises:
      ValueError: it is neither a whole number nor the name of a class.
    """
    if isinstance(value, bytes):
        word = os.fsdecode(value)
        if not word or (of.kind == DIGITS and not word.strip().isdecimal()):
            raise ValueError(f"label {word!r}, expected {'a whole number' if word else 'the name of a class'}")
        return int(word) if of.kind == DIGITS else word
    if not math.isfinite(value) or value != int(value):
        raise ValueError(f"label {value}, expected a whole number")
    return int(value)


def _count_framed(path: str) -> tuple[int, str]:
    """Counts the records up to one that claims to be longer than the rest of the file, and describes the damage.

    TensorFlow allocates memory for whatever length it reads, and an absurd one ends the process.
    """
    size, at, count = os.path.getsize(path), 0, 0
    with open(path, "rb") as file:
        while at < size:
            file.seek(at)
            length = int.from_bytes(file.read(8), "little")
            at += length + FRAME_BYTES
            if at > size:
                return count, f"truncated record: {length:,} bytes, but only {max(size - at + length, 0):,} are there"
            count += 1
    return count, ""
