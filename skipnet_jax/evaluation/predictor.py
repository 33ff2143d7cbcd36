"""A trained network that classifies images: what a notebook loads, and what `predict.py` and explanations stand on.

predictor = load_workdir("runs/digits")
images = np.stack([load_image(file, predictor.preprocessing) for file in files])
predictor.predict(images)     # [[("7", 0.98), ("1", 0.01), ...], ...]
predictor.features(images)    # the feature pyramid
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Float32, PyTree, UInt8

from skipnet_jax.evaluation.preprocessing import Preprocessing
from skipnet_jax.models import build_network
from skipnet_jax.runs import weights
from skipnet_jax.runs import workdir as workdirs
from skipnet_jax.training import mixing

BATCH_SIZE = 64


class Classifier(Protocol):
    """What predicting needs: a `Predictor`, or an exported network of `exports.artifacts.load_artifact`."""

    @property
    def preprocessing(self) -> Preprocessing:
        """What the network takes, and what it tells apart."""
        ...

    def logits(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float32[np.ndarray, "b k"]:
        """One row per image, one column per class."""
        ...


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A network with its weights, on the first device.

    Args:
      model: of `models.create_model`.
      variables: its "params" and "batch_stats".
      preprocessing: how its images are made and its classes called.
      batch_size: images that go through the network at once. Fewer images make a batch of their own; of more, the last
        batch is padded, so that each number of images up to this one compiles one program, and there is no other.
    """

    model: nn.Module
    variables: dict[str, PyTree]
    preprocessing: Preprocessing
    batch_size: int = BATCH_SIZE

    def logits(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float32[np.ndarray, "b k"]:
        """Classifies images as `preprocessing.load_image` makes them, with the numbers that evaluation has.

        Raises:
          ValueError: there are no images.
        """
        return np.concatenate(list(self._run(self._logits, images)))

    def predict(self, images: UInt8[np.ndarray, "b h w 3"], top: int = 5) -> list[list[tuple[str, float]]]:
        """The most probable classes of each image, most probable first.

        Args:
          images: as for `logits`.
          top: how many classes; of a network that has fewer: all.

        Returns:
          For each image (name of the class, probability 0..1).
        """
        return most_probable(self.logits(images), self.preprocessing.class_names, top)

    def features(self, images: UInt8[np.ndarray, "b h w 3"]) -> tuple[Float32[np.ndarray, "b _h _w _c"], ...]:
        """The last output of each section of the network, in order: a feature pyramid, largest map first.

        Args:
          images: as for `logits`.

        Raises:
          ValueError: there are no images.
        """
        batches = self._run(self._features, images)
        return tuple(np.concatenate(stages) for stages in zip(*batches, strict=True))

    def _run(self, program: Callable[..., PyTree], images: np.ndarray) -> Iterator[PyTree]:
        """Results of the program, batch by batch, without those of padding."""
        if not len(images):
            raise ValueError("images: got none, expected at least one. Give an array [b, h, w, 3].")
        size = min(len(images), self.batch_size)
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            results = jax.device_get(program(self.variables, pad(batch, size)))
            yield jax.tree.map(operator.itemgetter(slice(len(batch))), results)

    @functools.cached_property
    def _logits(self) -> Callable[..., Float[Array, "b k"]]:
        def run(variables: dict[str, PyTree], images: Array) -> Array:
            logits: Any = self.model.apply(variables, self._normalized(images), train=False)
            return logits.astype(jnp.float32)

        return jax.jit(run)

    @functools.cached_property
    def _features(self) -> Callable[..., list[Array]]:
        def run(variables: dict[str, PyTree], images: Array) -> list[Array]:
            stages: Any = self.model.apply(variables, self._normalized(images), train=False, method="features")
            return [stage.astype(jnp.float32) for stage in stages]

        return jax.jit(run)

    def _normalized(self, images: Array) -> Array:
        return mixing.normalize_images(images, self.preprocessing.statistics, jnp.result_type(float))


def pad(images: UInt8[np.ndarray, "b h w 3"], size: int) -> UInt8[np.ndarray, "n h w 3"]:
    """The images, and black ones after them until there are `size`."""
    return np.pad(images, [(0, size - len(images)), (0, 0), (0, 0), (0, 0)])


def most_probable(
    logits: Float32[np.ndarray, "b k"], class_names: Sequence[str], top: int
) -> list[list[tuple[str, float]]]:
    """What logits say, in words.

    Args:
      logits: of a `Classifier`.
      class_names: in the order of the columns.
      top: how many classes; if there are fewer: all.

    Returns:
      For each image (name of the class, probability 0..1), most probable first; of equals, the first class first.

    Raises:
      ValueError: top is less than 1.
    """
    if top < 1:
        raise ValueError(f"top: got {top}, expected at least 1 class. Give another top (--top=5).")
    scores = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    return [
        [(class_names[number], float(row[number])) for number in chosen]
        for row, chosen in zip(scores, order, strict=True)
    ]


def load_workdir(path: epath.PathLike, checkpoint: str = "best", *, batch_size: int = BATCH_SIZE) -> Predictor:
    """Reads the network of a run, or converted weights.

    Where the run keeps a moving average, that is the network: the best checkpoint is the best average's, too. Images
    are prepared as evaluation prepares those of the run's own data.

    Args:
      path: the workdir, local or gs://...
      checkpoint: best (by validation accuracy), latest, or a step.
      batch_size: see `Predictor`.

    Raises:
      ValueError: the folder is no workdir, has no such checkpoint, or the checkpoint is of another network.
    """
    return from_weights(path, weights.load(path, checkpoint), batch_size=batch_size)


def from_weights(path: epath.PathLike, read: weights.Weights, *, batch_size: int = BATCH_SIZE) -> Predictor:
    """Makes a predictor of weights that `weights.load` has read.

    Args:
      path: their workdir, which tells the names of the classes.
      read: the weights.
      batch_size: see `Predictor`.
    """
    model, data = read.spec.model, read.spec.data
    names = workdirs.read_class_names(workdirs.locate(path)) or _numbers(model.num_classes)
    return Predictor(build_network(model), read.variables, Preprocessing.of_data(model.name, data, names), batch_size)


def _numbers(num_classes: int) -> tuple[str, ...]:
    """Names of classes that nothing names."""
    return tuple(str(number) for number in range(num_classes))
