"""What lies behind a network's accuracy: which classes it takes for which, and how far its confidence can be trusted.

Beside results.json, `--mode=evaluate --details` leaves in the workdir's folder `evaluation`, each named by its data
set, image size and step:

    ..._confusion.csv      a row for each class: how many of its images were taken for which class
    ..._confusion.png      the same as a picture
    ..._calibration.png    accuracy over confidence
"""

import csv
import dataclasses
import io
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, Int

from skipnet_jax.evaluation import plots

FOLDER = "evaluation"


@dataclasses.dataclass(frozen=True)
class Details:
    """Counts over a whole split.

    Args:
      class_names: those that could be predicted.
      confusion: images by answer (row) and prediction (column).
      images, hits: by confidence, in bins of equal width: all, and those predicted rightly.
      confidence: summed over the images of each bin.
    """

    class_names: tuple[str, ...]
    confusion: Int[np.ndarray, "c c"]
    images: Int[np.ndarray, "m"]
    hits: Int[np.ndarray, "m"]
    confidence: Float[np.ndarray, "m"]

    @property
    def calibration_error(self) -> float:
        """The expected calibration error, 0..1: how far accuracy and mean confidence of a bin are apart.

        It is the mean over the bins, each weighed by its images: sum over m of
        |B_m| / n * |accuracy(B_m) - confidence(B_m)|.

        Source: C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3.
        """
        apart = np.abs(self.hits - self.confidence.astype(np.float64))
        return float(apart.sum() / max(1, self.images.sum()))

    @property
    def class_accuracy(self) -> dict[str, float | None]:
        """The share of each class's images that were predicted rightly, 0..1; None for a class without images."""
        accuracy: dict[str, float | None] = {}
        for number, name in enumerate(self.class_names):
            key = name if self.class_names.count(name) == 1 else f"{name} ({number})"
            images = int(self.confusion[number].sum())
            accuracy[key] = int(self.confusion[number, number]) / images if images else None
        return accuracy

    def write(self, workdir: epath.Path, name: str) -> list[epath.Path]:
        """Writes the files into the folder of evaluations of a workdir, and makes it where there is none.

        Args:
          name: that the names of the files begin with.

        Returns:
          Their paths.
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


def fetch(total: dict[str, Any], class_names: tuple[str, ...]) -> Details:
    """The details of a split.

    Args:
      total: of `scoring.Tally`.
      class_names: those that could be predicted, in the order of their numbers.
    """
    return Details(class_names, **{name: np.asarray(array) for name, array in jax.device_get(total).items()})
