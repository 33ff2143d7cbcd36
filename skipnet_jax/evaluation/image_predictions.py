"""Finds images and classifies them: decoding, batches, and the most probable classes of each."""

import collections
import concurrent.futures
import dataclasses
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from skipnet_jax.data import storage, walk
from skipnet_jax.errors import DataError, UserError
from skipnet_jax.files import is_local

if TYPE_CHECKING:
    from skipnet_jax.evaluation.predictor import Classifier

STDIN = "-"


@dataclasses.dataclass(frozen=True)
class Result:
    """The classes of an image, or an error.

    Args:
      file: as the user named it, or its path in the folder that the user named.
      predictions: (name of the class, probability 0..1), most probable first.
      error: empty = none.
    """

    file: str
    predictions: tuple[tuple[str, float], ...] = ()
    error: str = ""


def find_images(paths: Sequence[str]) -> list[str]:
    """Finds the images to classify.

    Args:
      paths: files, which need not exist; folders, which stand for all images below them; - = standard input.

    Returns:
      Files in the order given, a folder's sorted.

    Raises:
      UserError: a folder without images, standard input twice, or a bucket that cannot be read.
    """
    if paths.count(STDIN) > 1:
        raise UserError("images", "- more than once", "one image on standard input", "Leave the others out.")
    found = []
    for one_of_each_bucket in {"/".join(path.split("/")[:3]): path for path in paths if not is_local(path)}.values():
        storage.require_bucket(one_of_each_bucket)
    for path in paths:
        if path == STDIN or not storage.is_folder(path):
            found.append(path)
            continue
        found += _images_below(path)
    return found


def _images_below(folder: str) -> list[str]:
    """All images below a folder, sorted. Includes empty files, so that users hear of them rather than miss a result."""
    left_out = walk.LeftOut()
    inside = sorted(os.path.join(folder, name) for name, _ in walk.images_below(folder, left_out, empty=True))
    if not inside:
        got = f"{folder}, a folder without images" + (f" ({left_out})" if left_out.counts else "")
        expected = f"some ({', '.join(walk.EXTENSIONS)}) in it or below"
        raise UserError("images", got, expected, "Give another folder.")
    if told := {kind: count for kind, count in left_out.counts.items() if kind in (walk.LINKS, walk.BROKEN)}:
        print(f"{folder}: left out: {'; '.join(f'{kind} ({count})' for kind, count in told.items())}", file=sys.stderr)
    return inside


def classify(network: "Classifier", files: Sequence[str], top: int, batch_size: int) -> Iterator[list[Result]]:
    """Classifies images while the next ones are being decoded.

    All batches have the same size, so that only one program is compiled. Padding fills the last batch, and batches with
    images that cannot be read.

    Args:
      network: a run's, or an exported one.
      files: paths, or - for standard input.
      top: classes per image.

    Yields:
      The results of one batch at a time, in the order of the files.
    """
    import numpy as np

    from skipnet_jax.evaluation.predictor import most_probable, pad

    size = min(batch_size, len(files))
    loaded = _read_ahead(files, network, ahead=2 * size)
    while batch := list(itertools.islice(loaded, size)):
        images = [image for _, image in batch if not isinstance(image, str)]
        named = []
        if images:
            logits = network.logits(pad(np.stack(images), size))[: len(images)]
            named = most_probable(logits, network.preprocessing.class_names, top)
        following = iter(named)
        yield [
            Result(file, error=image) if isinstance(image, str) else Result(file, tuple(next(following)))
            for file, image in batch
        ]


def _read_ahead(files: Sequence[str], network: "Classifier", ahead: int) -> Iterator[tuple[str, Any]]:
    """Yields (file, image or error) in order, while threads read the next `ahead` files."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting: collections.deque[tuple[str, concurrent.futures.Future[Any]]] = collections.deque()
        for file in files:
            waiting.append((file, pool.submit(_read, file, network)))
            if len(waiting) > ahead:
                file, future = waiting.popleft()
                yield file, future.result()
        for file, future in waiting:
            yield file, future.result()


def _read(file: str, network: "Classifier") -> Any:
    """Reads an image as uint8 [s, s, 3], or returns the error as text."""
    from skipnet_jax.evaluation.preprocessing import load_image

    try:
        return load_image(sys.stdin.buffer.read() if file == STDIN else file, network.preprocessing)
    except DataError as error:
        return str(error)
    except OSError as error:
        return f"{file}: cannot be read: {error.strerror or error}."
