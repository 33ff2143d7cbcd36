"""Pictures of a run: its learning curves, and grids of the images that it sees."""

import math
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from skipnet_jax.evaluation import plots

TRAIN, TEST, AVERAGE, RATE = "#8aa4c8", "#c0392b", "#1e8449", "#5d6d7e"
LEGEND_BESIDE, LEGEND_WIDTH = 36, 120  # longest label beside the graphs, and width of a wrapped label, in characters
LEGEND_MARK = 8  # width of a mark, in characters
LEGEND_CHARACTERS, LEGEND_LINE = 14.5, 0.19  # characters per inch, and height of a line in inches
CELL_INCHES, TITLE_INCHES = 1.6, 0.25  # of a grid of images


def plot_curves(metrics: Sequence[Mapping[str, Any]], path: epath.Path) -> None:
    """Draws loss, accuracy and learning rate over the epochs.

    Args:
      metrics: the lines of metrics.jsonl.
      path: ends in .png or .svg.
    """
    figure = plots.new_figure(12, 3.6)
    loss, accuracy, rate = figure.subplots(1, 3)
    judge = _judge(metrics)
    average = series(metrics, f"{judge}/average_accuracy")
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        axes.plot(*series(metrics, f"train/{name}"), color=TRAIN, linewidth=1.2, label="training")
        axes.plot(*series(metrics, f"{judge}/{name}"), color=TEST, linewidth=1.8, marker=".", markersize=4, label=judge)
        if average[0]:
            label = f"{judge}, moving average"
            axes.plot(*series(metrics, f"{judge}/average_{name}"), color=AVERAGE, linewidth=1.8, label=label)
    rate.plot(*series(metrics, "learning_rate"), color=RATE, linewidth=1.8)

    loss.set_ylim(bottom=0)
    plots.set_percent(accuracy)
    _, tests = series(metrics, f"{judge}/accuracy")
    last = f", last {tests[-1]:.2%}" if tests else ""
    for axes, title in ((loss, "Loss"), (accuracy, f"Accuracy{last}"), (rate, "Learning rate")):
        plots.set_frame(axes, title, "epoch")
        axes.set_xlim(left=0)
    rate.set_ylim(bottom=0)
    accuracy.legend(frameon=False, loc="lower right")

    plots.save(figure, path)


def _judge(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Which images were evaluated after each epoch: test or holdout."""
    return "holdout" if any("holdout/accuracy" in line for line in metrics) else "test"


def plot_runs(runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], path: epath.Path) -> None:
    """Draws loss and test accuracy of several runs over the epochs: thin lines for runs, thick ones for their medians.

    A median ends where its shortest run ends. Losses far above all medians are cut off. Where runs keep a moving
    average of the parameters, the average is tested.

    Args:
      runs: label -> the lines of metrics.jsonl of each run.
      path: ends in .png or .svg.
    """
    figure = plots.new_figure(12, 4.2)
    judges = {_judge(metrics) for group in runs.values() for metrics in group}
    tested = " or ".join(word for judge, word in (("test", "test"), ("holdout", "hold-out")) if judge in judges)
    names = {"train/loss": "Training loss", "test/loss": f"{tested} loss", "test/accuracy": f"{tested} accuracy"}
    for (name, title), axes in zip(names.items(), figure.subplots(1, 3), strict=True):
        highest = 0.0
        for i, (label, group) in enumerate(runs.items()):
            average = name.replace("test/", "test/average_")
            averages = {average, average.replace("test/", "holdout/")}
            averaged = any(averages & line.keys() for metrics in group for line in metrics)
            wanted = average if averaged else name
            curves = [series(metrics, wanted.replace("test/", f"{_judge(metrics)}/")) for metrics in group]
            color = plots.COLORS[i % len(plots.COLORS)]
            for curve in curves:
                axes.plot(*curve, color=color, linewidth=0.7, alpha=0.25)
            epochs, medians = _median(curves)
            marker = "." if len(epochs) == 1 else ""  # a line through one point is invisible
            axes.plot(epochs, medians, color=color, linewidth=1.8, marker=marker, label=label)
            highest = max([highest, *medians])
        plots.set_frame(axes, title[:1].upper() + title[1:], "epoch")
        axes.set_xlim(left=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if name == "test/accuracy":
            plots.set_percent(axes)
            add_legend(figure, axes.get_legend_handles_labels()[0])
        else:
            axes.set_ylim(0, 1.5 * highest or None)
    plots.save(figure, path)


def plot_images(images: UInt8[np.ndarray, "n h w 3"], titles: Sequence[str], path: epath.Path) -> None:
    """Draws images in a grid, each below its title and large enough to see single pixels.

    Args:
      images: 0..255.
      titles: one per image.
      path: ends in .png or .svg.
    """
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    figure = plots.new_figure(CELL_INCHES * columns, (CELL_INCHES + TITLE_INCHES) * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, image, title in zip(grid, images, titles, strict=False):  # the grid may have cells left over
        axes.imshow(image, interpolation="nearest")
        axes.set_title(title, fontsize=8)
    plots.save(figure, path)


def add_legend(figure: Any, handles: Sequence[Any]) -> None:
    """Puts a legend to the right of all graphs, or below them if its labels are long."""
    labels = [textwrap.fill(handle.get_label(), LEGEND_WIDTH) for handle in handles]
    longest = max(len(line) for label in labels for line in label.splitlines())
    if longest <= LEGEND_BESIDE:
        figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=9)
        return
    columns = max(1, int(figure.get_figwidth() * LEGEND_CHARACTERS) // (longest + LEGEND_MARK))
    lines = sum(label.count("\n") + 1 for label in labels)
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE * math.ceil(lines / columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def series(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float | int], list[float | int]]:
    """The epochs and values of one metric."""
    points = [(line["epoch"], line[name]) for line in metrics if line.get(name) is not None]
    return [x for x, _ in points], [y for _, y in points]


def _median(curves: Iterable[tuple[Sequence[float], Sequence[float]]]) -> tuple[list[float], list[float]]:
    """The median over the epochs that all curves have."""
    values = [dict(zip(*curve, strict=True)) for curve in curves]
    epochs = [epoch for epoch in values[0] if all(epoch in value for value in values)]
    return epochs, [statistics.median(value[epoch] for value in values) for epoch in epochs]
