"""Turns finished shards into a data set of TensorFlow Datasets (TFDS): `tfds.builder_from_directory(DIR)` reads it."""

import os
import pathlib
import re
import tempfile

from etils import epath

from skipnet_jax.data.shard_records import FRAME_BYTES
from skipnet_jax.data.tfrecords import OWN, Index


def write(directory: str, index: Index) -> None:
    """Writes TFDS's files beside shards that `shard_writer` made.

    TFDS renames folders when it writes, and not every bucket can do that. So it writes to a local folder, beside empty
    files with the shards' names; TFDS looks at nothing but these names.

    Args:
      directory: where the shards are, local or gs://.
      index: of the shards, whose keys are `tfrecords.OWN`.
    """
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            OWN.image: tfds.features.Image(shape=(None, None, 3)),
            OWN.label: tfds.features.ClassLabel(
                names=[os.fsencode(n).decode("utf-8", "replace") for n in index.class_names]
            ),
            OWN.filename: tfds.features.Text(),
        }
    )
    with tempfile.TemporaryDirectory() as scratch:
        template = tfds.core.ShardedFileTemplate(
            data_dir=epath.Path(scratch),
            template="{SPLIT}-{SHARD_X_OF_Y}",
            dataset_name=_name(index.name),
            filetype_suffix="tfrecord",
        )
        splits = [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard.examples for shard in shards],
                num_bytes=sum(shard.size - FRAME_BYTES * shard.examples for shard in shards),
                filename_template=template.replace(split=split),
            )
            for split, shards in index.splits.items()
        ]
        names = {shard.name for shards in index.splits.values() for shard in shards}
        for name in names:
            (pathlib.Path(scratch) / name).touch()
        tfds.folder_dataset.write_metadata(
            data_dir=scratch,
            features=features,
            split_infos=splits,
            filename_template=template,
            check_data=False,
            description=f"{index.name}, {len(index.class_names)} classes",
            supervised_keys=(OWN.image, OWN.label),
        )
        for file in sorted(pathlib.Path(scratch).iterdir()):
            if file.name not in names:
                (epath.Path(directory) / file.name).write_bytes(file.read_bytes())


def _name(name: str) -> str:
    """A data set's name as TFDS spells names: lower case, in letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "images"
