"""Pictures that compare networks: accuracy against image size, and against the size of the network.

The marker shows the junction, the colour the network. A plain network and its relatives share a colour, unless all
networks are relatives. Measured results are filled and solid, published figures are hollow and dashed.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from skipnet_jax.analysis import curves
from skipnet_jax.analysis.eval_sets import Condition, EvalSet
from skipnet_jax.analysis.result_tables import Cell, Row, Table, published, published_size
from skipnet_jax.analysis.run_groups import Group
from skipnet_jax.evaluation import plots
from skipnet_jax.models import list_models, model_info
from skipnet_jax.models.zoo import find

GREY = "#777777"
LONGEST_NAME = 80  # of a file, in characters: titles may contain class names
# By the prefix of the published name.
MARKERS = {"": "o", "Skip-": "^", "Dense-": "s", "Dynamic-": "D", "Static-": "v", "Mean-": "P", "Sum-": "X"}
FILLED: dict[str, Any] = {"linestyle": "-", "linewidth": 1.8, "markersize": 6, "zorder": 3}
HOLLOW: dict[str, Any] = {
    **{"linestyle": "--", "linewidth": 1.0, "markersize": 9, "zorder": 2},
    **{"markerfacecolor": "white"},
}


@dataclasses.dataclass(frozen=True)
class _Point:
    """A network's size (parameters or FLOPs) and its accuracy."""

    network: str
    color: str
    size: int
    accuracy: float


def draw(groups: Sequence[Group], tables: Sequence[Table], folder: epath.Path, form: str) -> list[epath.Path]:
    """Draws all pictures that have something to show.

    Args:
      groups: all runs, including unfinished ones, for the curves.
      folder: is created if missing.
      form: png or svg.

    Returns:
      The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[epath.Path] = []

    def file(kind: str, title: str) -> epath.Path:
        stem = re.sub("[^a-z0-9]+", "_", f"{kind} {title}".lower())[:LONGEST_NAME].strip("_")
        path, number = folder / f"{stem}.{form}", 2
        while path in drawn:  # titles that differ only in characters that the name leaves out
            path, number = folder / f"{stem}_{number}.{form}", number + 1
        drawn.append(path)
        return path

    by_title: dict[str, dict[str, list[Sequence[Mapping[str, Any]]]]] = {}
    for group in groups:
        title, name = group.trained_on.title, f"{group.label}, {len(group.runs)} run{'s' * (len(group.runs) > 1)}"
        by_title.setdefault(title, {})[name] = [run.metrics for run in group.runs]
    for title, runs in by_title.items():
        curves.plot_runs(runs, file("curves", title))
    for table in tables:
        for eval_set in dict.fromkeys(condition.eval_set for condition in table.columns):
            conditions = [condition for condition in table.columns if condition.eval_set == eval_set]
            measured = {
                condition: sum(bool(cell.scores) for cell in _cells(table, condition)) for condition in conditions
            }
            if sum(number > 0 for number in measured.values()) > 1:
                plot_resolutions(table, eval_set, file("resolutions", eval_set.title))
            most = max(conditions, key=lambda condition: measured[condition])  # of equals, the smallest images
            if measured[most] > (0 if table.has_published else 1):
                plot_trade_off(table, most, file("trade_off", eval_set.title))
    return drawn


def plot_resolutions(table: Table, eval_set: EvalSet, path: epath.Path) -> None:
    """Draws accuracy against the size of the test images: a line per network, with bars over the range of its runs.

    Args:
      eval_set: one of the table's.
      path: ends in .png or .svg.
    """
    figure = plots.new_figure(9, 5)
    axes = figure.subplots()
    chosen = [i for i, condition in enumerate(table.columns) if condition.eval_set == eval_set]
    colors = _colors(table.rows)
    for row in table.rows:
        cells = {table.columns[i].image_size: row.cells[i] for i in chosen}
        medians = {size: cell.median for size, cell in cells.items() if cell.median is not None}
        known = {size: cell.published.accuracy for size, cell in cells.items() if cell.published is not None}
        for points, style in ((known, HOLLOW), (medians, FILLED)):
            marker = _marker(row.network)
            axes.plot([*points], [*points.values()], color=colors[row.label], marker=marker, **style)
        for size, cell in cells.items():
            accuracies = [score.accuracy for score in cell.scores.values()]
            if accuracies:
                axes.vlines(size, min(accuracies), max(accuracies), color=colors[row.label], linewidth=1.2)
    plots.set_frame(
        axes, f"{eval_set.title}: top-1 accuracy, bars from lowest to highest run", "side of the test images, pixels"
    )
    axes.set_xticks([table.columns[i].image_size for i in chosen])
    plots.set_percent(axes)
    curves.add_legend(figure, _handles(table))
    plots.save(figure, path)


def plot_trade_off(table: Table, condition: Condition, path: epath.Path) -> None:
    """Draws accuracy against parameters and against FLOPs, with arrows from plain networks to their relatives.

    The published figures of these networks and of their plain and Skip- counterparts are shown too.

    Args:
      condition: a column of the table.
      path: ends in .png or .svg.
    """
    from matplotlib.ticker import EngFormatter

    figure = plots.new_figure(12, 4.6)
    for number, axes in enumerate(figure.subplots(1, 2, sharey=True)):
        _draw_points(axes, _published_points(table, condition, number), HOLLOW)
        _draw_points(axes, _measured_points(table, condition, number), FILLED)
        title = f"{condition.title}: top-1 accuracy"
        plots.set_frame(axes, title if number == 0 else "", ("parameters", "FLOPs")[number])
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlim(0, 1.05 * axes.get_xlim()[1])  # from zero: 1 % more must not look like twice as much
        axes.margins(y=0.08)
        plots.set_percent(axes)
    curves.add_legend(figure, _handles(table))
    plots.save(figure, path)


def _cells(table: Table, condition: Condition) -> list[Cell]:
    return [row.cells[table.columns.index(condition)] for row in table.rows]


def _measured_points(table: Table, condition: Condition, number: int) -> list[_Point]:
    """The measured results.

    Args:
      number: 0 = against parameters, 1 = against FLOPs.
    """
    colors = _colors(table.rows)
    points = []
    for row, cell in zip(table.rows, _cells(table, condition), strict=True):
        size, median = (row.params, row.flops)[number], cell.median
        if size is not None and median is not None:
            points.append(_Point(row.network, colors[row.label], size, median))
    return points


def _published_points(table: Table, condition: Condition, number: int) -> list[_Point]:
    colors = _colors(table.rows)
    by_network = {row.network: colors[row.label] for row in reversed(table.rows)}
    by_plain = {_plain(row.network): colors[row.label] for row in reversed(table.rows)}
    points = []
    for network in list_models():
        known, size = published(network, condition), published_size(network)
        if known is not None and size is not None and _plain(network) in by_plain:
            color = by_network.get(network, by_plain[_plain(network)])
            points.append(_Point(network, color, size[number], known.accuracy))
    return points


def _draw_points(axes: Any, points: Sequence[_Point], style: dict[str, Any]) -> None:
    """Draws markers, and arrows from plain networks to their relatives."""
    for point in points:
        marker = _marker(point.network)
        axes.plot(point.size, point.accuracy, color=point.color, marker=marker, **style | {"linestyle": "none"})
        for start in points:
            if _marker(start.network) == MARKERS[""] != marker and _plain(start.network) == _plain(point.network):
                arrow = {"arrowstyle": "->", "color": point.color, "shrinkA": 5, "shrinkB": 5}
                arrow |= {name: style[name] for name in ("linestyle", "zorder")}
                places = ((point.size, point.accuracy), (start.size, start.accuracy))
                axes.annotate("", *places, arrowprops=arrow)


def _plain(network: str) -> str:
    """The published name of the network without its junction."""
    return find(network)[0].published_name


def _marker(network: str) -> str:
    return MARKERS[find(network)[1].published_prefix]


def _colors(rows: Sequence[Row]) -> dict[str, str]:
    """Label -> colour. Relatives with the same config share a colour, unless all rows are relatives."""
    families = {}
    for row in rows:
        difference = row.label.removeprefix(model_info(row.network).published_name)
        families[row.label] = _plain(row.network) + difference
    if len(set(families.values())) == 1:
        families = {label: label for label in families}
    order = [*dict.fromkeys(families.values())]
    return {label: plots.COLORS[order.index(family) % len(plots.COLORS)] for label, family in families.items()}


def _handles(table: Table) -> list[Any]:
    """Legend entries for the networks, and for filled and hollow markers."""
    from matplotlib.lines import Line2D

    colors = _colors(table.rows)
    handles = [
        Line2D([], [], color=colors[row.label], marker=_marker(row.network), label=row.label, **FILLED)
        for row in table.rows
    ]
    if table.has_published:
        handles.append(Line2D([], [], color=GREY, marker="o", label="measured: median", **FILLED))
        handles.append(Line2D([], [], color=GREY, marker="o", label="published: median", **HOLLOW))
    return handles
