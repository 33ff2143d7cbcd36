"""The project's own data format: shards of encoded images, and an index that describes them.

A folder, local or in a bucket, with TFRecord files of tf.Example messages:

    image       bytes   the JPEG or PNG file
    label       int64   the class's number plus the index's label_offset
    file_name   bytes   names the image in messages

and `dataset.json`, which names every shard with its number of examples, its size and its SHA-256. It is written last:
if it exists, the shards are complete. Shards made elsewhere need only an index, which also holds their own keys and
their compression. An index of format 1 holds neither; the keys are then tf-slim's.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from skipnet_jax import files
from skipnet_jax.data import storage
from skipnet_jax.data.record_format import KINDS, RecordFormat
from skipnet_jax.errors import DataError

INDEX = "dataset.json"
# Format 1 has no "records".
FORMATS = (1, 2)
SPLITS = ("train", "test")
MAKE = "scripts/make_tfrecords.py"
# TensorFlow cannot count further.
_LARGEST = 2**62
_MEND = f"Make it again with {MAKE}."

# The keys that `serialize` writes, and that TensorFlow Datasets expects.
OWN = RecordFormat(image="image", label="label", filename="file_name")


@dataclasses.dataclass(frozen=True)
class Shard:
    """One TFRecord file.

    Args:
      path: of the file, local or gs://.
      examples: records that belong to the split.
      size: in bytes; -1 = unknown.
      sha256: of the whole file, in hexadecimal; empty = unknown.
      skip: records before them.
      compression: empty, GZIP or ZLIB.
    """

    path: str
    examples: int
    size: int = -1
    sha256: str = ""
    skip: int = 0
    compression: str = ""

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return self.path.rpartition("/")[2]


@dataclasses.dataclass(frozen=True)
class Index:
    """The content of `dataset.json`.

    Args:
      name: of the data set, for people.
      class_names: in the order of the classes' numbers.
      label_offset: label of class 0 in the records.
      splits: "train", "test" or both; the shards in the order of the data.
      records: the keys of a record.
    """

    name: str
    class_names: tuple[str, ...]
    label_offset: int
    splits: dict[str, tuple[Shard, ...]]
    records: RecordFormat = OWN


def read_index(directory: str) -> Index:
    """Reads `dataset.json` of a folder, local or gs://; `require_shards` looks at the shards.

    Raises:
      DataError: there is no index, or its content is wrong.
    """
    storage.require_bucket(directory)
    path = epath.Path(directory) / INDEX
    fields = {"format": int, "name": str, "class_names": list[str], "label_offset": int, "splits": dict}
    try:
        content = files.read_record(path, fields, mend=_MEND, kind_of_error=DataError)
    except FileNotFoundError as error:
        raise DataError(
            directory or ".",
            f"no {INDEX}",
            f"the one that {MAKE} writes beside the shards when it is done",
            f"Give the folder of a finished data set, run the interrupted {MAKE} again, or, for shards made elsewhere, "
            f"run {MAKE} --index={directory or '.'}.",
        ) from error
    if content["format"] not in FORMATS:
        raise _wrong(path, f"format {content['format']!r}", f"format {FORMATS[0]} or {FORMATS[1]}")
    class_names = tuple(content["class_names"])
    if not class_names or len(set(class_names)) < len(class_names):
        raise _wrong(
            path, f"{len(class_names)} class_names, {len(set(class_names))} of them different", "different names"
        )
    if abs(content["label_offset"]) > _LARGEST:
        raise _wrong(path, f"label_offset {content['label_offset']}", "a number of 62 bits")
    splits = {split: _read_split(path, split, described) for split, described in content["splits"].items()}
    if not splits:
        raise _wrong(path, "no splits", " or ".join(SPLITS))
    records = _read_records(path, content["records"]) if "records" in content else RecordFormat()
    return Index(content["name"], class_names, content["label_offset"], splits, records)


def write_index(directory: str, index: Index, *, made_with: Mapping[str, Any]) -> None:
    """Writes `dataset.json`, whole or not at all.

    Args:
      directory: where the shards of the index are.
      made_with: how the shards were made, for whoever asks later; JSON.
    """
    splits = {
        split: {
            "examples": sum(shard.examples for shard in shards),
            "shards": [
                {
                    "name": shard.name,
                    "examples": shard.examples,
                    "bytes": shard.size,
                    "sha256": shard.sha256,
                    **({"compression": shard.compression} if shard.compression else {}),
                }
                for shard in shards
            ],
        }
        for split, shards in index.splits.items()
    }
    content = {
        "format": FORMATS[-1],
        "name": index.name,
        "class_names": list(index.class_names),
        "label_offset": index.label_offset,
        "records": dataclasses.asdict(index.records),
        "splits": splits,
        "made_with": dict(made_with),
    }
    files.write_text(epath.Path(directory) / INDEX, json.dumps(content, indent=1) + "\n")


def require_shards(directory: str, shards: Sequence[Shard]) -> None:
    """Checks that every shard is there and, on a local disk, has the right size; the contents are not read.

    Lists the folder once, since asking a bucket about each shard would take a while.

    Raises:
      DataError: shards are missing or do not have the size that the index says; the message names them.
    """
    sizes: dict[str, int | None]
    if files.is_local(directory):
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(directory) if entry.is_file()}
    else:
        sizes = {path.name: None for path in epath.Path(directory).iterdir()}
    missing = [shard.name for shard in shards if shard.name not in sizes]
    broken = [
        f"{shard.name} ({size:,} bytes of {shard.size:,})"
        for shard in shards
        if shard.size >= 0 and (size := sizes.get(shard.name)) is not None and size != shard.size
    ]
    troubles = [
        f"{len(names)} {trouble}: {storage.some(names)}"
        for trouble, names in (("missing", missing), ("of the wrong size", broken))
        if names
    ]
    if troubles:
        raise DataError(
            directory,
            "; ".join(troubles),
            f"{len(shards)} whole shards, as {INDEX} says",
            f"Copy them again, or run {MAKE} --check={directory} to see everything that is wrong.",
        )


def serialize(encoded: bytes, label: int, filename: str) -> bytes:
    """Makes a record.

    Args:
      encoded: the image file.
      label: class number plus the index's label_offset.
      filename: names the image in messages.
    """
    import tensorflow as tf

    def feature(value: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    features = {
        OWN.image: feature(encoded),
        OWN.label: tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        OWN.filename: feature(filename.encode("utf-8", "surrogateescape")),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def _read_split(path: epath.Path, split: str, content: Any) -> tuple[Shard, ...]:
    if split not in SPLITS:
        raise _wrong(path, f"a split {split!r}", " or ".join(SPLITS))
    place, fields = f"{path}, {split}", {"examples": int, "shards": list}
    content = files.require_fields(content, fields, place, mend=_MEND, kind_of_error=DataError)
    shards = tuple(_read_shard(path, place, shard) for shard in content["shards"])
    total, different = sum(shard.examples for shard in shards), len({shard.path for shard in shards})
    if total != content["examples"] or not 0 < total <= _LARGEST or different < len(shards):
        raise _wrong(path, f"{content['examples']} {split} examples", f"as many as its {different} shards: {total}")
    return shards


def _read_shard(path: epath.Path, place: str, content: Any) -> Shard:
    fields = {"name": str, "examples": int, "bytes": int, "sha256": str}
    content = files.require_fields(content, fields, place, mend=_MEND, kind_of_error=DataError)
    name, examples, size = content["name"], content["examples"], content["bytes"]
    if not name or name in (".", "..") or {"/", "\\", "\0"} & set(name):  # else it might lie outside this folder
        raise _wrong(path, f"a shard {name!r}", "the name of a file without its folder")
    if examples < 0 or size < -1:
        raise _wrong(path, f"a shard {name} of {examples} examples in {size} bytes", "numbers from 0 on")
    compression = content.get("compression", "")
    if compression not in storage.COMPRESSIONS:
        raise _wrong(path, f"compression {compression!r}", f"none or one of {', '.join(storage.COMPRESSIONS[1:])}")
    return Shard(os.fspath(path.parent / name), examples, size, content["sha256"], compression=compression)


def _read_records(path: epath.Path, content: Any) -> RecordFormat:
    fields = {field.name: str for field in dataclasses.fields(RecordFormat)}
    content = files.require_fields(content, fields, f"{path}, records", mend=_MEND, kind_of_error=DataError)
    if content["kind"] not in KINDS:
        raise _wrong(path, f"labels of kind {content['kind']!r}", f"one of {', '.join(KINDS)}")
    named = [content["image"], content["label"]]
    if not all(named) or len(set(named)) < len(named) or bool(content["height"]) != bool(content["width"]):
        raise _wrong(path, f"records {content}", "different keys of an image and a label, and both sides or none")
    return RecordFormat(**{name: content[name] for name in fields})


def _wrong(path: epath.Path, got: str, expected: str) -> DataError:
    return DataError(os.fspath(path), got, expected, _MEND)
