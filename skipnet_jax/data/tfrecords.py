"""The project's own data format: shards of encoded images, and the index that describes them.

A folder, local or in a bucket, with TFRecord files of tf.Example messages:

    image/encoded       bytes   the JPEG or PNG file, as it was
    image/class/label   int64   minus the index's label_offset: the class's number
    image/filename      bytes   of the image, to name it in messages

and `dataset.json`, which names every shard with its examples, its size and its SHA-256. It is written last: where it
is, the shards are complete. The keys are those of TensorFlow's tf-slim, whose shards only need an index.
"""

import dataclasses
import json
import pathlib
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Int64

from skipnet_jax.data.storage import is_bucket, join, read_bytes, require_bucket, write_text
from skipnet_jax.errors import DataError

INDEX = "dataset.json"
FORMAT = 1
SPLITS = ("train", "test")
MAKE = "scripts/make_tfrecords.py"
# Shards that an error names one by one.
_NAMED_AT_MOST = 5
# That TensorFlow can count.
_LARGEST = 2**62

# Keys of a record.
ENCODED, LABEL, FILENAME = "image/encoded", "image/class/label", "image/filename"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One TFRecord file.

    Args:
      path: of the file, local or gs://.
      examples: records in it.
      size: in bytes; -1 = unknown.
      sha256: of the whole file, in hexadecimal; empty = unknown.
    """

    path: str
    examples: int
    size: int = -1
    sha256: str = ""

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return self.path.rpartition("/")[2]


@dataclasses.dataclass(frozen=True)
class Index:
    """What `dataset.json` says.

    Args:
      name: of the data set, for people.
      class_names: in the order of the classes' numbers.
      label_offset: label of class 0 in the records.
      splits: "train", "test" or both; the shards in the order of the data.
    """

    name: str
    class_names: tuple[str, ...]
    label_offset: int
    splits: dict[str, tuple[Shard, ...]]


def read_index(directory: str) -> Index:
    """Reads `dataset.json`; it does not look at the shards (`require_shards` does).

    Args:
      directory: of the data set, local or gs://.

    Raises:
      DataError: there is none, or it does not say what it should.
    """
    require_bucket(directory)
    path = join(directory, INDEX)
    try:
        content = json.loads(read_bytes(path))
    except FileNotFoundError as error:
        raise DataError(
            directory or ".",
            f"no {INDEX}",
            f"the one that {MAKE} writes beside the shards when it is done",
            f"Give the folder of a finished data set, run the interrupted {MAKE} again, or describe shards made "
            f"elsewhere by {MAKE} --index={directory or '.'}.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(path, f"no valid JSON ({error})", f"what {MAKE} writes", "Make it anew.") from error
    try:
        return _index_of(content, directory)
    except (KeyError, ValueError) as error:
        words = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(path, words, f"what {MAKE} writes", "Make it anew.") from error


def write_index(directory: str, index: Index, *, made_with: Mapping[str, Any]) -> None:
    """Writes `dataset.json`, whole or not at all.

    Args:
      directory: of the shards.
      index: what to write; its shards lie in `directory`.
      made_with: how the shards were made, for whoever asks later; JSON.
    """
    splits = {
        split: {
            "examples": sum(shard.examples for shard in shards),
            "shards": [
                {"name": shard.name, "examples": shard.examples, "bytes": shard.size, "sha256": shard.sha256}
                for shard in shards
            ],
        }
        for split, shards in index.splits.items()
    }
    content = {
        "format": FORMAT,
        "name": index.name,
        "class_names": list(index.class_names),
        "label_offset": index.label_offset,
        "splits": splits,
        "made_with": dict(made_with),
    }
    write_text(join(directory, INDEX), json.dumps(content, indent=1) + "\n")


def require_shards(directory: str, shards: Sequence[Shard]) -> None:
    """Looks whether every shard is there and, on a local disk, whole; contents are not read.

    One listing of the folder instead of a question per shard: of a bucket each would take a while.

    Args:
      directory: of the data set, local or gs://.
      shards: those that are going to be read.

    Raises:
      DataError: shards are missing or have another size than the index says; the message names them.
    """
    if is_bucket(directory):
        import tensorflow as tf

        present = {name.rstrip("/") for name in tf.io.gfile.listdir(directory)}
        missing = [shard.name for shard in shards if shard.name not in present]
        broken = []
    else:
        missing = [shard.name for shard in shards if not pathlib.Path(shard.path).is_file()]
        whole = [shard for shard in shards if shard.name not in set(missing) and shard.size >= 0]
        sizes = [(shard, pathlib.Path(shard.path).stat().st_size) for shard in whole]
        broken = [f"{shard.name} ({size:,} bytes of {shard.size:,})" for shard, size in sizes if size != shard.size]
    kinds = (("missing", missing), ("of the wrong size", broken))
    troubles = [f"{len(names)} {kind}: {_some(names)}" for kind, names in kinds if names]
    if troubles:
        raise DataError(
            directory,
            "; ".join(troubles),
            f"{len(shards)} whole shards, as {INDEX} says",
            f"Copy them again, or see what is wrong with all of them by {MAKE} --check={directory}.",
        )


def serialize(encoded: bytes, label: int, filename: str) -> bytes:
    """One record.

    Args:
      encoded: the image file.
      label: class number plus the index's label_offset.
      filename: to name the image in messages.
    """
    import tensorflow as tf

    def feature(value: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    features = {
        ENCODED: feature(encoded),
        LABEL: tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        FILENAME: feature(filename.encode("utf-8", "surrogateescape")),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def parse(serialized: Any) -> tuple[Any, Int64[Any, ""]]:
    """Takes a record apart, as a TensorFlow operation.

    Args:
      serialized: string scalar.

    Returns:
      The image file (string scalar) and the label before the offset. A record without either raises TensorFlow's
      InvalidArgumentError when it is read.
    """
    import tensorflow as tf

    features = {ENCODED: tf.io.FixedLenFeature([], tf.string), LABEL: tf.io.FixedLenFeature([], tf.int64)}
    example = tf.io.parse_single_example(serialized, features)
    return example[ENCODED], example[LABEL]


def _index_of(content: Any, directory: str) -> Index:
    """Checks the JSON; raises what `read_index` tells the user."""
    if _the(dict, content, "content")["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r} instead of {FORMAT}")
    class_names = tuple(_the(str, name, "class") for name in _the(list, content["class_names"], "class_names"))
    if not class_names or len(set(class_names)) < len(class_names):
        raise ValueError(f"{len(class_names)} class_names, of which {len(set(class_names))} are different")
    splits = {}
    for split, described in _the(dict, content["splits"], "splits").items():
        if split not in SPLITS:
            raise ValueError(f"a split {split!r} instead of {' or '.join(SPLITS)}")
        shards = tuple(
            _shard_of(shard, directory) for shard in _the(list, _the(dict, described, split)["shards"], split)
        )
        total = sum(shard.examples for shard in shards)
        names = {shard.path for shard in shards}
        if total != described["examples"] or not 0 < total <= _LARGEST or len(names) < len(shards):
            raise ValueError(f"{described['examples']} {split} examples, where its {len(names)} shards have {total}")
        splits[split] = shards
    if not splits:
        raise ValueError("no splits")
    label_offset = _the(int, content["label_offset"], "label_offset")
    if abs(label_offset) > _LARGEST:
        raise ValueError(f"label_offset {label_offset}")
    return Index(_the(str, content["name"], "name"), class_names, label_offset, splits)


def _shard_of(content: Any, directory: str) -> Shard:
    name = _the(str, _the(dict, content, "shard")["name"], "name")
    if not name or name in (".", "..") or {"/", "\\", "\0"} & set(name):  # it lies in this folder and nowhere else
        raise ValueError(f"a shard {name!r} instead of a file's name without its folder")
    examples, size = _the(int, content["examples"], name), _the(int, content["bytes"], name)
    if examples < 0 or size < -1:
        raise ValueError(f"a shard {name} of {examples} examples in {size} bytes")
    return Shard(join(directory, name), examples, size, _the(str, content["sha256"], name))


_Kind = typing.TypeVar("_Kind")


def _the(kind: type[_Kind], value: Any, what: str) -> _Kind:
    if type(value) is not kind:  # not isinstance: a bool is an int to Python
        raise ValueError(f"{what} of type {type(value).__name__} instead of {kind.__name__}")
    return value


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return ", ".join(names[:_NAMED_AT_MOST]) + more
