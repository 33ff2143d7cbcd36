"""Pictures of an evaluation: what is taken for what, and accuracy over confidence."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from skipnet_jax.analysis import curves

WITH_NUMBERS, WITH_NAMES = 20, 100  # classes, at most, that a matrix has room for
MISTAKES = 30  # shown where there are more
NAME_LENGTH = 28
RIGHT, WRONG = "#0072b2", "#d55e00"


def plot_confusion(confusion: Int[np.ndarray, "c c"], class_names: Sequence[str], path: epath.Path) -> None:
    """Draws which classes are taken for which.

    A matrix, each row in shares of its class; of more than `WITH_NAMES` classes, whose names and cells nobody could
    read, the most frequent mistakes.

    Args:
      confusion: images by answer (row) and prediction (column).
      path: of the picture, .png or .svg.
    """
    names = [name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…" for name in class_names]
    figure = _matrix(confusion, names) if len(names) <= WITH_NAMES else _mistakes(confusion, names)
    curves.save(figure, path)


def _matrix(confusion: Int[np.ndarray, "c c"], names: Sequence[str]) -> Any:
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import PercentFormatter

    classes = len(names)
    cell, font = (0.42, 8) if classes <= WITH_NUMBERS else (0.15, 7)
    margin = 0.075 * max(map(len, names)) + 1.2
    figure = curves.new_figure(max(4.5, cell * classes + margin + 0.8), max(3.5, cell * classes + margin))
    axes = figure.subplots()
    shares = confusion / np.maximum(1, confusion.sum(axis=1, keepdims=True))
    # The square root: a class that is taken for another once in a hundred images can be told from one that never is.
    picture = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    axes.set_xticks(range(classes), names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=font)
    axes.set_yticks(range(classes), names, fontsize=font)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(f"{np.trace(confusion)} of {confusion.sum()} images right", loc="left", fontsize=11)
    if classes <= WITH_NUMBERS:
        for row, column in np.argwhere(confusion):
            color = "white" if shares[row, column] > 0.4 else "black"
            text = str(confusion[row, column])
            axes.text(column, row, text, ha="center", va="center", fontsize=min(8, 28 / len(text)), color=color)
    bar = figure.colorbar(picture, ax=axes, shrink=0.7, aspect=30, pad=0.02)
    bar.set_label("share of the true class's images", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    bar.outline.set_visible(False)
    axes.spines[:].set_color("#cccccc")
    return figure


def _mistakes(confusion: Int[np.ndarray, "c c"], names: Sequence[str]) -> Any:
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MISTAKES]
    pairs = [(int(row), int(column)) for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True)]
    pairs = [pair for pair in pairs if wrong[pair]]
    figure = curves.new_figure(9, 1.1 + 0.24 * max(1, len(pairs)))
    axes = figure.subplots()
    counts = [int(wrong[pair]) for pair in pairs]
    axes.barh(range(len(pairs)), counts, color=WRONG, height=0.7)
    axes.set_yticks(
        range(len(pairs)), [f"{names[row]}  taken for  {names[column]}" for row, column in pairs], fontsize=8
    )
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    for place, (row, column) in enumerate(pairs):
        text = f" {wrong[row, column]} of {confusion[row].sum()}"
        axes.text(wrong[row, column], place, text, va="center", fontsize=8)
    right = f"{np.trace(confusion)} of {confusion.sum()} images right"
    curves.set_frame(axes, f"The most frequent mistakes ({right}, {len(names)} classes)", "images")
    axes.set_xlim(0, 1.12 * max(counts, default=1))
    axes.grid(visible=False, axis="y")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def plot_calibration(
    images: Int[np.ndarray, "m"],
    hits: Int[np.ndarray, "m"],
    confidence: Float[np.ndarray, "m"],
    *,
    error: float,
    path: epath.Path,
) -> None:
    """Draws a reliability diagram: the accuracy of the images of each bin of confidence, and how many they are.

    Args:
      images, hits: by confidence, in bins of equal width: all, and those predicted rightly.
      confidence: summed over the images of each bin.
      error: the expected calibration error, 0..1.
      path: of the picture, .png or .svg.
    """
    from matplotlib.ticker import PercentFormatter

    figure = curves.new_figure(5.2, 6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    left, width = np.arange(len(images)) / len(images), 1 / len(images)
    some = images > 0
    count = images[some]
    accuracy, mean = hits[some] / count, confidence[some] / count
    above.bar(left[some], accuracy, width, align="edge", color=RIGHT, edgecolor="white", label="accuracy")
    above.plot([0, 1], [0, 1], color="#777777", linestyle="--", linewidth=1, label="as confident as right")
    above.plot(mean, accuracy, "o", color="black", markersize=3.5, clip_on=False, label="mean confidence of the bin")
    above.vlines(mean, accuracy, mean, color=WRONG, linewidth=2, label="gap")
    curves.set_frame(above, f"Expected calibration error {error:.2%}", "")
    above.set_ylim(0, 1)
    above.set_ylabel("accuracy")
    handles = above.get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)  # off the bars
    below.bar(left[some], count / max(1, images.sum()), width, align="edge", color="#8aa4c8", edgecolor="white")
    curves.set_frame(below, "", "confidence")
    below.set_xlim(0, 1)
    below.set_ylabel("share of images")
    below.xaxis.set_major_formatter(PercentFormatter(1.0))
    curves.set_percent(above)
    curves.set_percent(below)
    curves.save(figure, path)
