"""Prepares Fashion-MNIST for TensorFlow Datasets from its four IDX files, on machines without internet.

    apt-get install dataset-fashion-mnist
    python scripts/fashion_mnist.py
    python -m skipnet_jax.main --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist

With internet none of this is needed, since training lets TensorFlow Datasets download the same images. Debian
compresses the files again, so TensorFlow Datasets would refuse their checksums. The hash below covers the pixels and
labels instead.
"""

import argparse
import gzip
import hashlib
import math
import pathlib
import struct
import sys
import zlib
from collections.abc import Sequence

import numpy as np

from skipnet_jax import libraries
from skipnet_jax.errors import DataError

DEBIAN = "/usr/share/datasets/fashion-mnist"
SPLITS = {"train": ("train", 60_000), "test": ("t10k", 10_000)}
CLASSES = 10
UNSIGNED_BYTE = 8  # IDX's code of the element type
_MEND = "Get the files again."

# SHA-256 over the pixels and labels of training and test images, in the order of the files.
CONTENT = "ca3ab2a37f845e1b8ae23cab1b51749a3011ba3bf1d9016176d75cbaabac376f"


def main(argv: Sequence[str]) -> int:
    """Runs the script with a command line (without the program's name), and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idx", default=DEBIAN, help=f"folder with the four .gz files; default: {DEBIAN}")
    parser.add_argument("--out", help="folder of the data sets; default: as in TensorFlow Datasets")
    arguments = parser.parse_args(argv)
    try:
        splits = {split: read_split(pathlib.Path(arguments.idx), split) for split in SPLITS}
        require_original(splits)
        print(f"written to {write(splits, arguments.out)}")
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: --out: got {error}, expected a folder that can be written. Give another.", file=sys.stderr)
        return 2
    return 0


def read_split(folder: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a split: images uint8 [n, 28, 28, 1] and labels int64 [n]."""
    prefix, count = SPLITS[split]
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", (count, 28, 28))
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", (count,))
    return images[..., None], labels.astype(np.int64)


def read_idx(file: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
    """Reads a compressed IDX file of bytes.

    Raises:
      DataError: it holds no array of this shape.
    """
    try:
        content = gzip.decompress(file.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file}", f"a damaged file ({error})", "a whole .gz file", _MEND) from error
    except OSError as error:
        mend = "Run: apt-get install dataset-fashion-mnist, or give the files' folder: --idx=DIR."
        raise DataError(
            f"{file}", f"{error.strerror or error}", "one of the four files of Fashion-MNIST", mend
        ) from error
    header = struct.pack(f">HBB{len(shape)}I", 0, UNSIGNED_BYTE, len(shape), *shape)
    if content[: len(header)] != header or len(content) != len(header) + math.prod(shape):
        raise DataError(f"{file}", "another header or length", f"an IDX file of bytes of shape {shape}", _MEND)
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def require_original(splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Checks that these are the published images.

    Raises:
      DataError: classes are not balanced, or some pixel or label differs.
    """
    digest = hashlib.sha256()
    for split, (images, labels) in splits.items():
        counts = np.bincount(labels, minlength=CLASSES)
        if not np.all(counts == len(labels) // CLASSES):
            got, expected = f"{counts.tolist()} images by class", f"{len(labels) // CLASSES} each"
            raise DataError(f"{split} images", got, expected, _MEND)
        digest.update(images.tobytes())
        digest.update(labels.astype(np.uint8).tobytes())
    if digest.hexdigest() != CONTENT:
        raise DataError("images and labels", f"the hash {digest.hexdigest()}", CONTENT, _MEND)


def write(splits: dict[str, tuple[np.ndarray, np.ndarray]], out: str | None) -> str:
    """Writes the data set as TensorFlow Datasets prepares it.

    Args:
      splits: images and labels of each split.
      out: folder of the data sets; None = TensorFlow Datasets' own.

    Returns:
      The folder of this data set.
    """
    libraries.quieten_tensorflow(level=1)
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = tfds.builder("fashion_mnist", data_dir=out)
    data = {
        split: tf.data.Dataset.from_tensor_slices({"image": images, "label": labels})
        for split, (images, labels) in splits.items()
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name="fashion_mnist",
        version=str(builder.version),
        data_dir=str(builder.data_path.parents[1]),
        features=tfds.features.FeaturesDict({**builder.info.features}),
        split_datasets=data,
    )
    return str(builder.data_path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
