"""Heat maps of gate weights: one triangle per section, with a row per block and a column per state that it sees.

All cells of a picture have the same size. States that a block does not see are grey.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from skipnet_jax.evaluation import plots
from skipnet_jax.evaluation.gates import GateWeights, Section

UNSEEN, INK, FAINT, PALE = "#dedede", "#222222", "#666666", "#ffffff"
LUMINANCE = (0.299, 0.587, 0.114)  # red, green, blue. Source: ITU-R BT.601
CHARACTERS = 115  # per inch at a font size of one point
LARGEST_CELL, NUMBERED_CELL, LABELLED_CELL = 0.6, 0.36, 0.15  # inches; a smaller cell has no number or label
BRANCH_GAP = 0.35  # between states and branch, in cells
# In inches.
SECTION_GAP = 0.65
MARGIN, NARROWEST = 0.3, 7.5
BAR_WIDTH, LONGEST_BAR = 0.16, 2.5


@dataclasses.dataclass(frozen=True)
class Scale:
    """How numbers become colours.

    Args:
      colours: a colour map's name in matplotlib.
      low, high: the numbers at its ends.
      label: text beside the colour bar.
    """

    colours: str
    low: float
    high: float
    label: str


@dataclasses.dataclass(frozen=True)
class Maps:
    """The layout of the sections' maps, side by side.

    Args:
      with_branch: a last column, set apart from the states, shows the factors of the branches.
      room: the largest width, in inches.
      gap: between two maps, in inches.
    """

    sections: Sequence[Section]
    with_branch: bool
    room: float
    gap: float = SECTION_GAP

    @property
    def cell(self) -> float:
        """Side of a cell, in inches."""
        columns = sum(self._columns(section) for section in self.sections)
        return min(LARGEST_CELL, (self.room - self.gap * (len(self.sections) - 1)) / columns)

    @property
    def width(self) -> float:
        """In inches."""
        columns = sum(self._columns(section) for section in self.sections)
        return self.cell * columns + self.gap * (len(self.sections) - 1)

    @property
    def height(self) -> float:
        """In inches."""
        return self.cell * max(len(section.seen) for section in self.sections)

    def draw(self, figure: Any, weights: GateWeights, scale: Scale, *, left: float, top: float) -> list[Any]:
        """Draws the maps and returns their axes.

        Args:
          left, top: inches from the figure's upper left corner to the maps'.
        """
        panels, first = [], 0
        for section in self.sections:
            width, height = self._columns(section) * self.cell, len(section.seen) * self.cell
            axes = add_axes(figure, left, top, width, height)
            links = len(section.links)
            rows = slice(section.first, section.first + len(section.seen))
            branch = None if weights.branch is None else weights.branch[rows]
            numbered = self.cell >= NUMBERED_CELL
            _draw_section(axes, section, weights.states[first : first + links], branch, scale, numbered=numbered)
            panels.append(axes)
            left, first = left + width + self.gap, first + links
        return panels

    def label(self, panels: Sequence[Any]) -> None:
        """Labels sections, blocks and states."""
        small = self.cell < LARGEST_CELL / 2
        every = math.ceil(LABELLED_CELL / self.cell)
        for number, (axes, section) in enumerate(zip(panels, self.sections, strict=True), 1):
            count = len(section.seen)
            chosen = range(0, count, every)
            ticks = [i + 0.5 for i in chosen]
            states = [state_name(section.first + i) for i in chosen]
            if self.with_branch:
                axes.set_xticks([*ticks, count + BRANCH_GAP + 0.5], [*states, "branch"])
            else:
                axes.set_xticks(ticks, states)
            axes.set_yticks(ticks, [str(section.first + i) for i in chosen])
            axes.tick_params(labelsize=8, length=0, pad=3)
            axes.tick_params(axis="x", rotation=90 if small else 0)
            axes.set_title(f"Section {number}", loc="left", fontsize=9, pad=5)
            axes.set_xlabel("output of block", fontsize=8)
        panels[0].set_ylabel("block", fontsize=8)

    def _columns(self, section: Section) -> float:
        return len(section.seen) + (1 + BRANCH_GAP if self.with_branch else 0.0)


def titled_figure(width: float, height: float, title: str, note: str) -> Any:
    """Makes a figure with a title and a note below it, both shortened to the figure's width.

    Args:
      width, height: in inches; a figure too narrow for words is made wider.
    """
    width = max(width, NARROWEST)
    figure = plots.new_figure(width, height, layout=None)
    for text, size, colour, top in ((title, 11, INK, 0.14), (note, 8, FAINT, 0.37)):
        shown = plots.shorten(text, round((width - MARGIN) * CHARACTERS / size))
        figure.text(MARGIN / width, 1 - top / height, shown, va="top", fontsize=size, color=colour)
    return figure


def add_axes(figure: Any, left: float, top: float, width: float, height: float) -> Any:
    """Adds axes at a place in inches from the figure's upper left corner, with a size in inches."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def colour_bar(figure: Any, scale: Scale, *, left: float, top: float, height: float) -> None:
    """Draws a scale, at most `height` inches high, at a place in inches from the figure's upper left corner."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    axes = add_axes(figure, left, top, BAR_WIDTH, min(height, LONGEST_BAR))
    bar = figure.colorbar(ScalarMappable(Normalize(scale.low, scale.high), scale.colours), cax=axes)
    bar.outline.set_visible(False)
    bar.set_label(scale.label, fontsize=8)
    axes.tick_params(labelsize=8, length=2)


def _draw_section(
    axes: Any, section: Section, states: np.ndarray, branch: np.ndarray | None, scale: Scale, *, numbered: bool
) -> None:
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import Normalize
    from matplotlib.patches import Polygon

    count = len(section.seen)
    right = count if branch is None else count + BRANCH_GAP + 1
    cells: list[tuple[float, int]] = [(state - section.first, block - section.first) for block, state in section.links]
    weights = list(states)
    if branch is not None:
        cells += [(count + BRANCH_GAP, row) for row in range(count)]
        weights += list(branch)
    stairs = [(0, 0), *((i + step, i + rise) for i in range(count) for step, rise in ((1, 0), (1, 1))), (0, count)]
    axes.add_patch(Polygon(np.asarray(stairs), facecolor=UNSEEN, edgecolor="none"))
    squares = [[(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1)] for x, y in cells]
    axes.set_xlim(0, right)
    axes.set_ylim(count, 0)
    inches = axes.get_position().height * axes.figure.get_figheight() / count
    colours = PolyCollection(squares, cmap=scale.colours, edgecolors=PALE, linewidths=min(0.8, 2.5 * inches))
    colours.set_norm(Normalize(scale.low, scale.high))
    colours.set_array(np.asarray(weights))
    axes.add_collection(colours)
    for (x, y), weight in zip(cells, weights, strict=True):
        if numbered:
            dark = np.dot(colours.to_rgba(weight)[:3], LUMINANCE) < 0.5
            ink = PALE if dark else INK
            axes.text(x + 0.5, y + 0.5, f"{weight:.2f}", ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def state_name(state: int) -> str:
    """Names a state by its origin: the number of the block whose output it is, or the stem."""
    return str(state - 1) if state else "stem"
