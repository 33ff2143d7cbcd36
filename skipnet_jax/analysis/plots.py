"""Pictures of a run."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

TRAIN, TEST, RATE = "#8aa4c8", "#c0392b", "#5d6d7e"


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
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        axes.plot(*_series(metrics, f"train/{name}"), color=TRAIN, linewidth=1.2, label="training")
        axes.plot(*_series(metrics, f"test/{name}"), color=TEST, linewidth=1.8, marker=".", markersize=4, label="test")
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

    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    path.write_bytes(picture.getvalue())


def _series(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float | int], list[float | int]]:
    points = [(line["epoch"], line[name]) for line in metrics if line.get(name) is not None]
    return [x for x, _ in points], [y for _, y in points]
