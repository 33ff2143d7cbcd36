"""Accuracy broken down by class and by confidence.

Besides results.json, `--mode=evaluate --details` writes these files to the workdir's folder `evaluation`. Their names
start with data set, image size and step:

    ..._confusion.csv      one row per class: how many of its images were taken for each class
    ..._confusion.png      the same as a picture
    ..._calibration.png    accuracy against confidence
"""

import csv
import dataclasses
import io

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from skipnet_jax.evaluation import plots
from skipnet_jax.evaluation.scoring import Predictions

FOLDER = "evaluation"
BINS = 15  # of confidence, as in Guo et al., section 5


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """The counts of a whole split.

    Args:
      class_names: the classes that could be predicted.
      confusion: images by answer (row) and prediction (column).
      images, hits: all images and the correctly predicted ones, in equally wide bins of confidence.
      confidence: summed over the images of each bin.
    """

    class_names: tuple[str, ...]
    confusion: Int[np.ndarray, "c c"]
    images: Int[np.ndarray, "m"]
    hits: Int[np.ndarray, "m"]
    confidence: Float[np.ndarray, "m"]

    @property
    def calibration_error(self) -> float:
        """The expected calibration error, 0..1: how far accuracy and confidence differ, on average over all images.

        Source: C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3.
        """
        return float(np.abs(self.hits - self.confidence).sum() / max(1, self.images.sum()))

    @property
    def class_accuracy(self) -> dict[str, float | None]:
        """The accuracy on each class's images, 0..1; None for a class without images."""
        accuracy: dict[str, float | None] = {}
        for number, name in enumerate(self.class_names):
            key = name if self.class_names.count(name) == 1 else f"{name} ({number})"
            images = int(self.confusion[number].sum())
            accuracy[key] = int(self.confusion[number, number]) / images if images else None
        return accuracy

    def write(self, workdir: epath.Path, name: str) -> list[epath.Path]:
        """Writes the three files, and returns their paths.

        Args:
          name: the beginning of the files' names.
        """
        folder = workdir / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        table, matrix, diagram = (
            folder / f"{name}_{end}" for end in ("confusion.csv", "confusion.png", "calibration.png")
        )
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["true class \\ predicted class", *self.class_names])
        rows.writerows([name, *counts] for name, counts in zip(self.class_names, self.confusion.tolist(), strict=True))
        table.write_text(text.getvalue())
        plots.plot_confusion(self.confusion, self.class_names, matrix)
        plots.plot_calibration(self.images, self.hits, self.confidence, error=self.calibration_error, path=diagram)
        return [table, matrix, diagram]


def break_down(predictions: Predictions, class_names: tuple[str, ...]) -> Breakdown:
    """Counts predictions by class and by confidence.

    Each bin of confidence includes its upper end but not its lower end.

    Args:
      class_names: in the order of the class numbers.
    """
    from sklearn import metrics  # slow to import

    answers, guesses, confidence = (predictions[name] for name in ("answer", "prediction", "confidence"))
    classes = range(len(class_names))
    confusion = np.zeros((len(classes), len(classes)), int)
    if len(answers):  # scikit-learn refuses to count nothing
        confusion = metrics.confusion_matrix(answers, guesses, labels=classes)
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    return Breakdown(
        class_names,
        confusion=confusion,
        images=np.bincount(bins, minlength=BINS),
        hits=np.bincount(bins[answers == guesses], minlength=BINS),
        confidence=np.bincount(bins, weights=confidence, minlength=BINS).astype(float),
    )
