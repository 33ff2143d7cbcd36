"""Pictures of a run, and of what it sees."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

TRAIN, TEST, AVERAGE, RATE = "#8aa4c8", "#c0392b", "#1e8449", "#5d6d7e"
CELL_INCHES, TITLE_INCHES = 1.6, 0.25  # of a grid of images


def plot_curves(metrics: Sequence[Mapping[str, Any]], path: epath.Path) -> None:
    """Draws loss, accuracy and learning rate over the epochs.

    Args:
      metrics: lines of a workdir's metrics.jsonl.
      path: of the PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: no global state, no window system
    loss, accuracy, rate = figure.subplots(1, 3)
    average = _series(metrics, "test/average_accuracy")
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        axes.plot(*_series(metrics, f"train/{name}"), color=TRAIN, linewidth=1.2, label="training")
        axes.plot(*_series(metrics, f"test/{name}"), color=TEST, linewidth=1.8, marker=".", markersize=4, label="test")
        if average[0]:
            label = "test, moving average"
            axes.plot(*_series(metrics, f"test/average_{name}"), color=AVERAGE, linewidth=1.8, label=label)
    rate.plot(*_series(metrics, "learning_rate"), color=RATE, linewidth=1.8)

    loss.set_ylim(bottom=0)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    _, tests = _series(metrics, "test/accuracy")
    last = f", last {tests[-1]:.2%}" if tests else ""
    for axes, title in ((loss, "Loss"), (accuracy, f"Accuracy{last}"), (rate, "Learning rate")):
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("epoch")
        axes.set_xlim(left=0)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    rate.set_ylim(bottom=0)
    accuracy.legend(frameon=False, loc="lower right")

    _save(figure, path)


def plot_images(images: UInt8[np.ndarray, "n h w 3"], titles: Sequence[str], path: epath.Path) -> None:
    """Draws images in a grid, each below its title, so large that single pixels can be seen.

    Args:
      images: 0..255.
      titles: one for each image.
      path: of the PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(CELL_INCHES * columns, (CELL_INCHES + TITLE_INCHES) * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, image, title in zip(grid, images, titles, strict=False):  # the grid may have cells left over
        axes.imshow(image, interpolation="nearest")
        axes.set_title(title, fontsize=8)
    _save(figure, path)


def _save(figure: Any, path: epath.Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    path.write_bytes(picture.getvalue())


def _series(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float | int], list[float | int]]:
    points = [(line["epoch"], line[name]) for line in metrics if line.get(name) is not None]
    return [x for x, _ in points], [y for _, y in points]
