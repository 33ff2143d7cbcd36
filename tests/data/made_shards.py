"""Small shards whose labels are the examples' indexes."""

import pathlib
from collections.abc import Mapping

import tensorflow as tf

from skipnet_jax.data import tfrecords
from skipnet_jax.data.shards import Shards
from tests.data import made_images

COUNTS = (17, 23, 5, 40, 16)


def write(path: pathlib.Path, counts: tuple[int, ...] = COUNTS, bad: Mapping[int, bytes] | None = None) -> Shards:
    """Writes shards; `bad` replaces the image files of some indexes."""
    path.mkdir(parents=True, exist_ok=True)
    shards, index = [], 0
    for number, count in enumerate(counts):
        shard = path / f"train-{number:05d}-of-{len(counts):05d}"
        with tf.io.TFRecordWriter(str(shard)) as writer:
            for _ in range(count):
                encoded = (bad or {}).get(index, made_images.encode(index))
                writer.write(tfrecords.serialize(encoded, index, f"{index}.jpg"))
                index += 1
        shards.append(tfrecords.Shard(str(shard), count))
    names = tuple(str(number) for number in range(index))
    return Shards(name="noise", class_names=names, shards=tuple(shards), parse=parse, mend="Check them.")


def parse(serialized):
    encoded, label = tfrecords.OWN.parser(())(serialized)
    return encoded, tf.cast(label, tf.int32)
