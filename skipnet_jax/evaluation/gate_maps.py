"""Pictures of gate weights: over all images, by class, and for one image.

A weight has the same colour in all pictures, from light for 0 to dark for 1. Each function takes the picture's path
without suffix, and writes a .png and an .svg file.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from skipnet_jax.evaluation import plots
from skipnet_jax.evaluation.gates import Gates, GateWeights, Section
from skipnet_jax.evaluation.heat_maps import BAR_WIDTH, MARGIN, Maps, Scale, add_axes, colour_bar, titled_figure

WEIGHTS = Scale("YlGnBu", 0.0, 1.0, "weight")

# In inches.
MAPS_WIDTH, CLASS_WIDTH, IMAGE_SIDE = 10.0, 2.7, 2.0
LEFT, TOP, BOTTOM = 0.65, 0.9, 0.62
BAR_MARGIN = 0.75
CLASS_GAP, CLASS_TITLE, CLASS_SECTION_GAP = 0.35, 0.42, 0.12

CLASS_COLUMNS, MAX_CLASSES = 4, 12


def draw_gates(gates: Gates, title: str, path: epath.Path) -> None:
    """Draws the mean over all images.

    Args:
      title: the network and the images.
    """
    note = f"{_note(gates.sections, gates.overall)}{_variation(gates)}"
    _draw(gates.sections, gates.overall, title, note, path)


def draw_image(
    image: UInt8[np.ndarray, "h w 3"], sections: Sequence[Section], weights: GateWeights, title: str, path: epath.Path
) -> None:
    """Draws one image beside its map.

    Args:
      image: 0..255.
    """
    _draw(sections, weights, title, _note(sections, weights), path, image)


def draw_classes(gates: Gates, class_names: Sequence[str], title: str, path: epath.Path) -> None:
    """Draws how each class's mean differs from the mean over all images, for the `MAX_CLASSES` that differ most.

    Args:
      class_names: in the order of the labels.
      title: the network and the images.
    """
    differences = {k: _minus(of, gates.overall) for k, of in enumerate(gates.by_class) if of is not None}
    extents = {k: max(float(np.abs(each).max()) for each in _numbers(weights)) for k, weights in differences.items()}
    chosen = sorted(sorted(extents, key=lambda k: -extents[k])[:MAX_CLASSES])
    if len(chosen) < len(differences):
        title = f"{title}; the {len(chosen)} of {len(differences)} classes that differ most"
    extent = max(0.01, math.ceil(max(extents.values()) * 100) / 100)
    scale = Scale("RdBu_r", -extent, extent, "difference")

    maps = Maps(gates.sections, gates.overall.branch is not None, CLASS_WIDTH, gap=CLASS_SECTION_GAP)
    columns = min(CLASS_COLUMNS, len(chosen))
    step_x, step_y = maps.width + CLASS_GAP, maps.height + CLASS_TITLE
    height = step_y * math.ceil(len(chosen) / columns)
    width = MARGIN + columns * step_x + BAR_WIDTH + BAR_MARGIN + 0.1
    note = "the mean over each class minus the mean over all images; maps as in gates.png, grey: not seen"
    figure = titled_figure(width, CLASS_TITLE + height + MARGIN, title, note)
    for place, k in enumerate(chosen):
        row, column = divmod(place, columns)
        left, top = MARGIN + column * step_x, CLASS_TITLE + row * step_y + CLASS_TITLE
        panels = maps.draw(figure, differences[k], scale, left=left, top=top)
        name = f"{plots.shorten(class_names[k], 24)} ({gates.counts[k]} images)"
        panels[0].set_title(name, loc="left", fontsize=9, pad=4)
    colour_bar(figure, scale, left=MARGIN + columns * step_x, top=2 * CLASS_TITLE, height=height - CLASS_TITLE)
    _save(figure, path)


def _draw(
    sections: Sequence[Section],
    weights: GateWeights,
    title: str,
    note: str,
    path: epath.Path,
    image: np.ndarray | None = None,
) -> None:
    maps = Maps(sections, weights.branch is not None, MAPS_WIDTH)
    left, height = LEFT, maps.height
    if image is not None:
        left, height = MARGIN + IMAGE_SIDE + LEFT, max(height, IMAGE_SIDE)
    right = left + maps.width + MARGIN
    figure = titled_figure(right + BAR_WIDTH + BAR_MARGIN, TOP + height + BOTTOM, title, note)
    if image is not None:
        axes = add_axes(figure, MARGIN, TOP, IMAGE_SIDE, IMAGE_SIDE)
        axes.imshow(image, interpolation="nearest")
        axes.set_axis_off()
    maps.label(maps.draw(figure, weights, WEIGHTS, left=left, top=TOP))
    colour_bar(figure, WEIGHTS, left=right, top=TOP, height=maps.height)
    _save(figure, path)


def _note(sections: Sequence[Section], weights: GateWeights) -> str:
    """Explains the numbers in one line."""
    blocks = [block for section in sections for block, _ in section.links]
    one = np.allclose(np.bincount(blocks, weights.states), 1, atol=1e-3)
    parts = ["means over channels", "a row's states add up to 1" if one else "", "grey: not seen"]
    if weights.branch is not None:
        parts.insert(2, "its branch has its own factor")
    return "; ".join(part for part in parts if part)


def _variation(gates: Gates) -> str:
    """Says how much the means hide. A block that sees one state only has nothing to choose, so it is left out."""
    blocks = np.array([block for section in gates.sections for block, _ in section.links])
    choices = np.bincount(blocks)[blocks] > 1
    spread = gates.spread[choices].mean()
    return f"; between images one channel varies by \u00b1{spread:.2f} (std)" if spread > 5e-3 else ""


def _minus(weights: GateWeights, other: GateWeights) -> GateWeights:
    branch = None if weights.branch is None or other.branch is None else weights.branch - other.branch
    return GateWeights(weights.states - other.states, branch)


def _numbers(weights: GateWeights) -> list[np.ndarray]:
    return [weights.states] if weights.branch is None else [weights.states, weights.branch]


def _save(figure: Any, path: epath.Path) -> None:
    for suffix in (".png", ".svg"):
        plots.save(figure, path.parent / (path.name + suffix))
