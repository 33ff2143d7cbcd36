"""A trained network that classifies images, for notebooks, `predict.py` and `explain.py`.

predictor = load_workdir("runs/digits")
images = np.stack([load_image(file, predictor.preprocessing) for file in files])
predictor.predict(images)     # [[("7", 0.98), ("1", 0.01), ...], ...]
predictor.features(images)    # the feature pyramid
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float32, PyTree, UInt8

from skipnet_jax.errors import UserError
from skipnet_jax.evaluation.preprocessing import Preprocessing
from skipnet_jax.models import build_network
from skipnet_jax.runs import weights
from skipnet_jax.runs import workdir as workdirs
from skipnet_jax.training import mixing, xla_options

BATCH_SIZE = 64


class Classifier(Protocol):
    """Anything that predicts: a `Predictor`, or an exported network of `exports.artifacts.load_artifact`."""

    @property
    def preprocessing(self) -> Preprocessing:
        """What the network takes, and which classes it knows."""
        ...

    def logits(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float32[np.ndarray, "b k"]:
        """Returns one row per image, with one column per class."""
        ...


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A network with its weights, on the first device.

    Args:
      model: of `models.create_model`.
      variables: its "params" and "batch_stats".
      preprocessing: how to prepare its images, and the names of its classes.
      batch_size: the most images that go through the network at once. The last of several batches is padded, so a call
        compiles at most one program.
    """

    model: nn.Module
    variables: dict[str, PyTree]
    preprocessing: Preprocessing
    batch_size: int = BATCH_SIZE

    def logits(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float32[np.ndarray, "b k"]:
        """Classifies images that `preprocessing.load_image` made, with the same numbers as evaluation.

        Raises:
          UserError: there are no images.
        """
        return np.concatenate(list(self._run(images)))

    def predict(self, images: UInt8[np.ndarray, "b h w 3"], top: int = 5) -> list[list[tuple[str, float]]]:
        """Returns the most probable classes of each image, as `most_probable` does.

        Args:
          top: how many classes; all if the network has fewer.
        """
        return most_probable(self.logits(images), self.preprocessing.class_names, top)

    def features(self, images: UInt8[np.ndarray, "b h w 3"]) -> tuple[Float32[np.ndarray, "b _h _w _c"], ...]:
        """Returns the last output of each section of the network: a feature pyramid, largest map first.

        Raises:
          UserError: there are no images.
        """
        batches = self._run(images, "features")
        return tuple(np.concatenate(stages) for stages in zip(*batches, strict=True))

    def _run(self, images: np.ndarray, method: str | None = None) -> Iterator[PyTree]:
        """Runs the network or another of its methods batch by batch, and yields the results without padding."""
        if not len(images):
            raise UserError("images", "none", "at least one", "Give an array [b, h, w, 3].")
        size = min(len(images), self.batch_size)
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            results = jax.device_get(self._program(self.variables, pad(batch, size), method))
            yield jax.tree.map(operator.itemgetter(slice(len(batch))), results)

    @functools.cached_property
    def _program(self) -> Callable[..., PyTree]:
        def run(variables: dict[str, PyTree], images: Array, method: str | None) -> PyTree:
            normalized = mixing.normalize_images(images, self.preprocessing.statistics, jnp.result_type(float))
            outputs = self.model.apply(variables, normalized, train=False, method=method)
            return jax.tree.map(lambda output: output.astype(jnp.float32), outputs)

        options = xla_options.for_evaluation(jax.default_backend())
        return jax.jit(run, static_argnames="method", compiler_options=options)


def pad(images: UInt8[np.ndarray, "b h w 3"], size: int) -> UInt8[np.ndarray, "n h w 3"]:
    """Appends black images until there are `size`."""
    return np.pad(images, [(0, size - len(images)), (0, 0), (0, 0), (0, 0)])


def most_probable(
    logits: Float32[np.ndarray, "b k"], class_names: Sequence[str], top: int
) -> list[list[tuple[str, float]]]:
    """Turns logits into names and probabilities.

    Args:
      class_names: in the order of the columns.
      top: how many classes; all if there are fewer.

    Returns:
      For each image the pairs (name of the class, probability 0..1), most probable first; ties in the order of the
      classes.

    Raises:
      UserError: top is less than 1.
    """
    if top < 1:
        raise UserError("top", f"{top}", "at least 1")
    scores = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    return [
        [(class_names[number], float(row[number])) for number in chosen]
        for row, chosen in zip(scores, order, strict=True)
    ]


def load_workdir(path: epath.PathLike, checkpoint: str = "best", *, batch_size: int = BATCH_SIZE) -> Predictor:
    """Loads the network of a run, or converted weights.

    If the run keeps a moving average, the average is loaded. Images are prepared as evaluation prepares the run's own
    test images.

    Args:
      path: the workdir, local or gs://...
      checkpoint: best (by validation accuracy, the average's if there is one), latest, or a step.

    Raises:
      UserError: the folder is no workdir, has no such checkpoint, or the checkpoint is of another network.
    """
    return from_weights(path, weights.load(path, checkpoint), batch_size=batch_size)


def from_weights(path: epath.PathLike, loaded: weights.Weights, *, batch_size: int = BATCH_SIZE) -> Predictor:
    """Makes a predictor from weights that `weights.load` has loaded.

    Args:
      path: their workdir, which knows the names of the classes; classes without a name are called by their number.
    """
    model, data = loaded.spec.model, loaded.spec.data
    workdir = workdirs.locate(path)
    names = workdirs.read_class_names(workdir) or tuple(map(str, range(model.num_classes)))
    preprocessing = Preprocessing.of_data(model.name, data, names, workdirs.read_crop(workdir))
    return Predictor(build_network(model), loaded.variables, preprocessing, batch_size)
