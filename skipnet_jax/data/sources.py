"""The data sets, each decoded to uint8 in memory.

`digits` comes with scikit-learn. CIFAR-10 and CIFAR-100 are prepared by TensorFlow Datasets (TFDS) from the official
archive, which it downloads, or takes from its manual directory.
"""

import dataclasses
import difflib
import importlib.util
import shlex
import sys
import threading
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int32, UInt8

from skipnet_jax.specs import DataSpec

SPLITS = ("train", "test")

# A server that has not answered by then counts as out of reach, seconds.
_REACH_SECONDS = 2.5

# Mean and standard deviation of each channel, for pixels scaled to 0..1. CIFAR: those of the published recipes.
# Digits: measured over the training split at 32x32, all pixels at once (the three channels are equal).
_STATISTICS = {
    "digits": ((0.3054,) * 3, (0.3237,) * 3),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


class DataError(ValueError):
    """A data set cannot be had; the message says what to do about it."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a data set, in memory.

    Args:
      name: of the data set.
      images: at the size that the network sees, 0..255.
      labels: 0..number of classes - 1.
      class_names: in the order of the labels.
      mean, std: of each channel, for pixels scaled to 0..1.
    """

    name: str
    images: UInt8[np.ndarray, "n h w 3"]
    labels: Int32[np.ndarray, "n"]
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def num_examples(self) -> int:
        """How many images the split has."""
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """How many classes the data set has, whether or not each occurs in the split."""
        return len(self.class_names)


def load(spec: DataSpec, split: str) -> Source:
    """Reads a split into memory, preparing the data set first where that has not been done.

    Args:
      spec: which data set, where, and at which image size.
      split: "train" or "test".

    Returns:
      The split, in an order that is always the same.

    Raises:
      ValueError: an unknown data set or split.
      DataError: the data set is not here and cannot be fetched.
    """
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}.")
    require_available(spec)
    images, labels, class_names = _READERS[spec.name](spec, split)
    if images.dtype != np.uint8 or images.shape[1:3] != (spec.image_size, spec.image_size):
        from skipnet_jax.data import image_ops

        images = image_ops.resize(images, spec.image_size)
    mean, std = _STATISTICS[spec.name]
    return Source(spec.name, images, labels, class_names, mean, std)


def require_available(spec: DataSpec) -> None:
    """Raises within 5 seconds, and before TensorFlow is imported, if `load` could not get the data set.

    Args:
      spec: which data set, and where.

    Raises:
      ValueError: an unknown data set.
      DataError: the data set is not here and cannot be fetched; the message has the file, its place and the command.
    """
    if spec.name not in _READERS:
        nearest = difflib.get_close_matches(spec.name, _READERS, n=len(_READERS), cutoff=0)
        raise ValueError(
            f"data.name: got {spec.name!r}, expected one of {', '.join(nearest)}. Change --config.data.name."
        )
    if spec.name == "digits":
        if importlib.util.find_spec("sklearn") is None:
            raise DataError("digits comes with scikit-learn, which is not installed. Run: pip install scikit-learn")
        return
    builder = _builder(spec)
    url, archive = _archive(builder)
    if builder.is_prepared() or archive.exists():
        return
    trouble = _why_unreachable(url)
    if trouble is not None:
        raise DataError(_how_to_get(builder, f"is not prepared and cannot be downloaded: {trouble}"))


def _read_digits(spec: DataSpec, split: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """scikit-learn's handwritten digits: 1,437 to train and 360 to test, 8x8 grey values 0..16."""
    import sklearn.datasets
    import sklearn.model_selection

    digits = sklearn.datasets.load_digits()
    # Part of the data set's definition: another split would make results incomparable.
    halves = sklearn.model_selection.train_test_split(
        np.arange(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0
    )
    chosen = halves[SPLITS.index(split)]
    grey = digits.images[chosen].astype(np.float32) * (255 / 16)
    return np.repeat(grey[..., None], 3, axis=3), digits.target[chosen].astype(np.int32), tuple("0123456789")


def _read_cifar(spec: DataSpec, split: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """CIFAR-10 or CIFAR-100 (its 100 fine classes) through TFDS."""
    import tensorflow_datasets as tfds

    builder = _builder(spec)
    if not builder.is_prepared():
        _prepare(builder)
    num_examples = builder.info.splits[split].num_examples
    logging.info("Reading %s %s: %d images from %s", spec.name, split, num_examples, builder.data_dir)
    read_config = tfds.ReadConfig(try_autocache=False)
    examples = builder.as_dataset(split=split, batch_size=1000, shuffle_files=False, read_config=read_config)
    images = np.empty((num_examples, *builder.info.features["image"].shape), np.uint8)
    labels = np.empty(num_examples, np.int32)
    start = 0
    for batch in examples.as_numpy_iterator():
        stop = start + len(batch["label"])
        images[start:stop], labels[start:stop] = batch["image"], batch["label"]
        start = stop
    if start != num_examples:
        raise DataError(
            f"{spec.name}: got {start} {split} images, expected {num_examples}, as {builder.data_dir} says of itself. "
            f"Delete that directory and start again."
        )
    return images, labels, tuple(builder.info.features["label"].names)


# The data sets. A reader returns images [n, h, w, 3] (0..255), labels [n] and the classes' names.
_READERS = {"digits": _read_digits, "cifar10": _read_cifar, "cifar100": _read_cifar}


def _builder(spec: DataSpec) -> Any:
    """The TFDS builder; makes no directory and does not import TensorFlow yet."""
    import tensorflow_datasets as tfds

    return tfds.builder(spec.name, data_dir=spec.dir or None)


def _archive(builder: Any) -> tuple[str, Any]:
    """The address of the official archive, and the path where TFDS takes it if it was put there by hand."""
    ((url, info),) = builder.url_infos.items()
    return url, builder.data_path.parents[1] / "downloads" / "manual" / info.filename


def _prepare(builder: Any) -> None:
    """Makes the data set from its archive; TFDS shows the progress and removes what it could not finish."""
    from tensorflow_datasets.core.download import download_manager, downloader, util

    # TFDS would retry for minutes. There is no public setting.
    downloader.MAX_RETRIES = 2
    try:
        builder.download_and_prepare()
    except (OSError, download_manager.NonMatchingChecksumError, util.DownloadError) as error:  # requests' are OSErrors
        raise DataError(_how_to_get(builder, f"could not be prepared: {type(error).__name__}: {error}")) from error


def _why_unreachable(url: str) -> str | None:
    """Asks the server for the file, through TFDS's own HTTP client and proxies; None if it is there."""
    import requests

    answer = [f"no answer within {_REACH_SECONDS:g} s"]

    def ask() -> None:
        try:
            with requests.get(url, stream=True, timeout=_REACH_SECONDS) as response:
                answer[0] = "" if response.ok else f"the server answers {response.status_code} {response.reason}"
        except requests.RequestException as error:
            answer[0] = f"{type(error).__name__}: {error}"

    # In a thread, since the time-out does not bound the look-up of the server's name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_REACH_SECONDS)
    return answer[0] or None


def _how_to_get(builder: Any, trouble: str) -> str:
    """The message of a DataError: the exact file, its place and the commands."""
    url, archive = _archive(builder)
    info = builder.url_infos[url]
    quoted = shlex.quote(str(archive))
    return (
        f"{builder.name} {trouble}\n"
        f"  looked for:  {builder.data_dir} (prepared) and {archive} (the official archive)\n"
        f"  file:        {info.filename}, {int(info.size):,} bytes, SHA-256 {info.checksum}\n"
        f"  from:        {url}\n"
        f"  fetch it:    mkdir -p {shlex.quote(str(archive.parent))} && curl -fL -o {quoted} {url}\n"
        f"  run again:   {shlex.join(sys.orig_argv)}\n"
        f"A data set that is prepared elsewhere is found with --config.data.dir=DIR (DIR holds {builder.name}/). "
        f"configs/digits.py needs no download."
    )
