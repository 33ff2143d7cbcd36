"""The style of all pictures, and the two pictures of an evaluation: confusion and calibration."""

import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from skipnet_jax.errors import UserError

# Okabe and Ito's colours, which colour-blind readers can tell apart, without their yellow; then two of Paul Tol's.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#000000", "#882255", "#999933")
RIGHT, WRONG = COLORS[:2]
DPI = 120

# Limits of a confusion matrix.
MAX_NUMBERED, MAX_NAMED = 20, 100  # the most classes for which its cells show numbers, and its rows names
MISTAKES = 30  # shown instead of a larger matrix
NAME_LENGTH = 28


def new_figure(width: float | int, height: float | int, layout: Literal["constrained"] | None = "constrained") -> Any:
    """Makes an empty matplotlib figure, without pyplot: no global state, no window system.

    Args:
      width, height: in inches.
      layout: "constrained" = matplotlib places the axes; None = the caller does.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def set_frame(axes: Any, title: str, label: str) -> None:
    """Gives a graph the style of all graphs here."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(label)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def set_percent(axes: Any) -> None:
    """Labels the y axis, whose values are shares in 0..1, in %."""
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.6g}%")


def shorten(text: str, length: int) -> str:
    """Cuts a text to a number of characters, and marks the cut."""
    return text if len(text) <= length else f"{text[: length - 1]}\u2026"


def save(figure: Any, path: epath.Path) -> None:
    """Writes a picture; equal figures give equal bytes.

    Raises:
      UserError: the path ends neither in .png nor in .svg.
    """
    import matplotlib
    from matplotlib.text import Text

    kind = path.suffix.removeprefix(".")
    if kind not in ("png", "svg"):
        raise UserError(f"{path}", f"a picture of type {kind!r}", "a name that ends in .png or .svg")
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a dollar sign in a class or file name must not start a formula
    picture = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "skipnet_jax", "svg.fonttype": "path"}):
        figure.savefig(picture, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
    path.write_bytes(picture.getvalue())


def plot_confusion(confusion: Int[np.ndarray, "c c"], class_names: Sequence[str], path: epath.Path) -> None:
    """Draws which classes are taken for which.

    Up to `MAX_NAMED` classes make a matrix, each row in shares of its class. With more classes nobody could read the
    cells, so the picture shows the most frequent mistakes instead.

    Args:
      confusion: images by answer (row) and prediction (column).
      path: ends in .png or .svg.
    """
    names = [shorten(name, NAME_LENGTH) for name in class_names]
    save(_matrix(confusion, names) if len(names) <= MAX_NAMED else _mistakes(confusion, names), path)


def _matrix(confusion: Int[np.ndarray, "c c"], names: Sequence[str]) -> Any:
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import PercentFormatter

    classes = len(names)
    cell, font = (0.42, 8) if classes <= MAX_NUMBERED else (0.15, 7)
    margin = 0.075 * max(map(len, names)) + 1.2
    figure = new_figure(max(4.5, cell * classes + margin + 0.8), max(3.5, cell * classes + margin))
    axes = figure.subplots()
    shares = confusion / np.maximum(1, confusion.sum(axis=1, keepdims=True))
    # On a square root scale, a mistake in 1 % of the images can be told from none.
    picture = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    axes.set_xticks(range(classes), names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=font)
    axes.set_yticks(range(classes), names, fontsize=font)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(f"{np.trace(confusion)} of {confusion.sum()} images right", loc="left", fontsize=11)
    if classes <= MAX_NUMBERED:
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
    figure = new_figure(9, 1.1 + 0.24 * max(1, len(pairs)))
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
    set_frame(axes, f"The most frequent mistakes ({right}, {len(names)} classes)", "images")
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
    """Draws a reliability diagram: the accuracy in each bin of confidence, and below it the share of images there.

    Args:
      images, hits: all images and the correctly predicted ones, in equally wide bins of confidence.
      confidence: summed over the images of each bin.
      error: the expected calibration error, 0..1.
      path: ends in .png or .svg.
    """
    from matplotlib.ticker import PercentFormatter

    figure = new_figure(5.2, 6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    left, width = np.arange(len(images)) / len(images), 1 / len(images)
    filled = images > 0
    count = images[filled]
    accuracy, mean = hits[filled] / count, confidence[filled] / count
    above.bar(left[filled], accuracy, width, align="edge", color=RIGHT, edgecolor="white", label="accuracy")
    above.plot([0, 1], [0, 1], color="#777777", linestyle="--", linewidth=1, label="as confident as right")
    above.plot(mean, accuracy, "o", color="black", markersize=3.5, clip_on=False, label="mean confidence of the bin")
    above.vlines(mean, accuracy, mean, color=WRONG, linewidth=2, label="gap")
    set_frame(above, f"Expected calibration error {error:.2%}", "")
    above.set_ylim(0, 1)
    above.set_ylabel("accuracy")
    handles = above.get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)  # off the bars
    below.bar(left[filled], count / max(1, images.sum()), width, align="edge", color="#8aa4c8", edgecolor="white")
    set_frame(below, "", "confidence")
    below.set_xlim(0, 1)
    below.set_ylabel("share of images")
    below.xaxis.set_major_formatter(PercentFormatter(1.0))
    set_percent(above)
    set_percent(below)
    save(figure, path)
