"""Draws docs/architecture.png: the three wirings of a section, and the gate.

    python scripts/draw_architecture.py [FILE]

The wirings come from `skipnet_jax.models.connectivity`, so the picture matches the code.
"""

import sys
from collections.abc import Callable

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from skipnet_jax.models.connectivity import dense_distances, own_distance, skip_distances

BLOCKS = 8
BRANCH, STATE, GATE, PALE = "#4477aa", "#228833", "#cc6677", "#f4f4f4"


def draw_wiring(axes: Axes, title: str, distances: Callable[[int], tuple[int, ...]], junction: str) -> None:
    """Draws a section: states below, junctions above, and an arrow from each state to the junctions that see it."""
    for i in range(BLOCKS):
        for distance in distances(i):
            curve = FancyArrowPatch(
                (i - distance, 0.15),
                (i, 0.85),
                arrowstyle="-|>",
                mutation_scale=8,
                connectionstyle=f"arc3,rad={-0.12 if distance else 0}",
                color=STATE if distance else "black",
                linewidth=1.3 if distance else 1.0,
                alpha=0.35 + 0.65 * (i == BLOCKS - 1 or distance == 0),
            )
            axes.add_patch(curve)
        axes.plot(i, 0, "o", color=STATE, markersize=13)
        axes.text(i, 0, f"$s_{i}$", color="white", ha="center", va="center", fontsize=8)
        axes.plot(i, 1, "s", color=GATE if junction != "+" else "#888888", markersize=13)
        axes.text(i, 1, junction, color="white", ha="center", va="center", fontsize=9, fontweight="bold")
    axes.text(-0.75, 1, "junctions", ha="right", va="center", fontsize=8)
    axes.text(-0.75, 0, "states", ha="right", va="center", fontsize=8)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlim(-2.4, BLOCKS - 0.4)
    axes.set_ylim(-0.45, 1.45)
    axes.axis("off")


def box(axes: Axes, x: float, y: float, width: float, text: str, color: str, *, height: float = 0.75) -> None:
    """Draws a labelled box with its centre at (x, y)."""
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0.02,rounding_size=0.12",
            facecolor=PALE,
            edgecolor=color,
            linewidth=1.4,
        )
    )
    axes.text(x, y, text, ha="center", va="center", fontsize=8.5)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = "black") -> None:
    """Draws a straight arrow."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color=color, linewidth=1.1))


def draw_gate(axes: Axes) -> None:
    """Draws a gate, from the branch and the states at the top to the block's output at the bottom."""
    inputs = [("branch $y$", BRANCH), ("state $s_i$", STATE), ("state $s_{i-1}$", STATE), ("state $s_{i-3}$", STATE)]
    for k, (text, color) in enumerate(inputs):
        x = 1.1 + 2.1 * k
        box(axes, x, 9.2, 1.8, text, color)
        arrow(axes, (x, 8.8), (x, 7.75), color)
        box(axes, x, 7.4, 1.8, "mean", color, height=0.6)
        arrow(axes, (x, 7.08), (4.25 + (x - 4.25) * 0.45, 6.25), color)
    axes.text(
        8.6,
        7.4,
        "over height and\nwidth; a state's is\ntaken once, when\nit is made",
        fontsize=7.5,
        va="center",
        color="#555555",
    )
    box(axes, 4.25, 5.9, 6.4, "concatenate, $W_1$, norm, activation", GATE)
    arrow(axes, (4.25, 5.5), (4.25, 4.95))
    box(axes, 4.25, 4.6, 6.4, "$W_2$: a number per input and channel", GATE)
    arrow(axes, (3.0, 4.2), (2.0, 3.65))
    arrow(axes, (5.5, 4.2), (6.0, 3.65))
    box(axes, 2.0, 3.3, 2.6, "sigmoid: $g$", BRANCH)
    box(axes, 6.0, 3.3, 4.2, "softmax over states: $p_k$", STATE)
    arrow(axes, (2.0, 2.9), (3.3, 2.15), BRANCH)
    arrow(axes, (6.0, 2.9), (5.2, 2.15), STATE)
    box(axes, 4.25, 1.7, 5.4, r"out $= g \cdot y + \sum_k\, p_k \cdot s_k$", "black", height=0.85)
    axes.set_title("The gate: weights for each sample and channel", fontsize=10, loc="left")
    axes.set_xlim(0.0, 10.4)
    axes.set_ylim(1.0, 9.8)
    axes.axis("off")


def main(path: str) -> None:
    """Writes the picture."""
    figure = plt.figure(figsize=(12, 5.2))
    grid = figure.add_gridspec(3, 2, width_ratios=(1.25, 1), hspace=0.3, wspace=0.02)
    rows = (
        ("ResNet: the junction adds the block's own state", own_distance, "+"),
        ("SkipResNet: a gate over the states at distance 0, 1, 3, 7, ...", skip_distances, "g"),
        ("DenseResNet: a gate over the states at distance 0, 1, 2, 3, 4", dense_distances, "g"),
    )
    for row, (title, distances, junction) in enumerate(rows):
        draw_wiring(figure.add_subplot(grid[row, 0]), title, distances, junction)
    draw_gate(figure.add_subplot(grid[:, 1]))
    figure.savefig(path, dpi=110, bbox_inches="tight", facecolor="white")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["docs/architecture.png"]))
