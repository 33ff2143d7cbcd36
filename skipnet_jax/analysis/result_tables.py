"""Tables of results as the published ones are laid out: medians over seeds, beside the published figures.

A table is of one test set (both CIFARs share one): its rows are networks, its columns sizes of the test images.

Source: result tables of SkipResNet (Takeda, MIRU2020).
"""

import dataclasses
import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from skipnet_jax.analysis.runs import EvalSet, Group, Run, Score
from skipnet_jax.analysis.tables import published_results
from skipnet_jax.models import model_info
from skipnet_jax.models.complexity import Complexity, count
from skipnet_jax.specs import TrainSpec

# Which of the published figures are of which test set. ImageNet-A was scored over all 1000 classes.
PUBLISHED = {
    EvalSet("imagenet2012"): "imagenet_top1",
    EvalSet("imagenet_a"): "imagenet_a_top1",
    EvalSet("cifar10"): "cifar10_top1",
    EvalSet("cifar100"): "cifar100_top1",
}


@dataclasses.dataclass(frozen=True)
class Published:
    """A published figure.

    Args:
      accuracy: 0..1, the median of `runs` runs.
    """

    accuracy: float
    runs: int


@dataclasses.dataclass(frozen=True)
class Column:
    """What the cells of a column were tested on.

    Args:
      image_size: in pixels.
    """

    eval_set: EvalSet
    image_size: int


@dataclasses.dataclass(frozen=True)
class Cell:
    """The scores of a group of runs in one column; none where it was not tested there.

    Args:
      scores: by seed.
    """

    scores: Mapping[int, Score]
    published: Published | None

    @property
    def median(self) -> float | None:
        return statistics.median(score.accuracy for score in self.scores.values()) if self.scores else None

    @property
    def difference(self) -> float | None:
        """Percentage points that the printed figure is above the published one."""
        if self.median is None or self.published is None:
            return None
        return round(round(100 * self.median, 2) - round(100 * self.published.accuracy, 2), 2)


@dataclasses.dataclass(frozen=True)
class Row:
    """A network's results, with a cell for each column.

    Args:
      label: see `runs.Group`.
      params, flops: in a table with published figures as they are printed there, for its image size and classes; else
        of the network as it was trained. None = a changed network, which nobody counts.
    """

    network: str
    label: str
    params: int | None
    flops: int | None
    cells: tuple[Cell, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """Results on a test set, or on both CIFARs."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def has_published(self) -> bool:
        """There are published figures for what it shows, if not for every network."""
        return self.columns[0].eval_set in PUBLISHED


def published(network: str, column: Column) -> Published | None:
    """The published figure of a network in a column; None where there is none."""
    result = published_results().get(model_info(network).published_name, {})
    value = result.get(PUBLISHED.get(column.eval_set, ""))
    if isinstance(value, dict):
        value = value.get(str(column.image_size))
    elif column.image_size != result.get("image_size"):
        value = None
    return None if value is None else Published(value, result["runs"])


def published_size(network: str) -> tuple[int, int] | None:
    """Parameters and FLOPs of a network as they are printed in the published tables; None where it is not there.

    That is the inverse of `tables.format_count`: of 40.15M it makes 40150000.
    """
    result = published_results().get(model_info(network).published_name)
    if result is None:
        return None
    params, flops = (
        round(float(text[:-1]) * {"M": 1e6, "G": 1e9}[text[-1]]) for text in (result["params"], result["flops"])
    )
    return params, flops


def build(groups: Sequence[Group]) -> list[Table]:
    """Makes a table for every test set that runs were scored on, the published ones first and in their order.

    Args:
      groups: of finished runs.

    Raises:
      ValueError: what one column would compare was scored on different images.
    """
    measured = {Column(*where) for group in groups for run in group.runs for where in run.scores}
    known = [eval_set for eval_set in PUBLISHED if any(column.eval_set == eval_set for column in measured)]
    other = sorted({column.eval_set for column in measured} - {*PUBLISHED}, key=lambda eval_set: eval_set.title)
    titles = dict.fromkeys(eval_set.table for eval_set in [*known, *other])
    return [_table(title, measured, groups) for title in titles]


def _table(title: str, measured: Iterable[Column], groups: Sequence[Group]) -> Table:
    published_columns = {
        Column(eval_set, size)
        for eval_set in PUBLISHED
        for result in published_results().values()
        for size in _sizes(result, PUBLISHED[eval_set])
    }
    columns = [column for column in {*measured, *published_columns} if column.eval_set.table == title]
    columns.sort(key=lambda column: (column.eval_set.title, column.image_size))
    bundles: dict[tuple[str, str], list[Run]] = {}
    for group in groups:
        tested = any((column.eval_set, column.image_size) in run.scores for run in group.runs for column in columns)
        if tested:
            bundles.setdefault((group.label, group.runs[0].learnt.table), []).extend(group.runs)
    labels = [label for label, _ in bundles]
    rows = []
    for (label, learnt), members in bundles.items():
        whole_label = label if labels.count(label) == 1 else f"{label}, trained on {learnt}"
        rows.append(_row(whole_label, members, columns))
    for i, column in enumerate(columns):
        scores = [score for row in rows for score in row.cells[i].scores.values()]
        counts = sorted({score.count for score in scores if score.count is not None})
        if len(counts) > 1:
            raise ValueError(
                f"{title} at {column.image_size} px: got scores on {' and on '.join(map(str, counts))} images, "
                f"expected the same images for all runs. Evaluate all of them on the same --data_dir."
            )
    return Table(title, tuple(columns), tuple(rows))


def _sizes(result: Mapping[str, Any], key: str) -> list[int]:
    """The image sizes for which a network has published figures."""
    value = result.get(key)
    return [int(size) for size in value] if isinstance(value, dict) else [result["image_size"]] if value else []


def _row(label: str, runs: Sequence[Run], columns: Sequence[Column]) -> Row:
    cells = []
    for column in columns:
        where = (column.eval_set, column.image_size)
        scores = {run.spec.seed: run.scores[where] for run in runs if where in run.scores}
        cells.append(Cell(scores, published(runs[0].spec.model.name, column)))
    return Row(runs[0].spec.model.name, label, *_size(runs[0].spec, columns[0].eval_set in PUBLISHED), tuple(cells))


def _size(spec: TrainSpec, as_published: bool) -> tuple[int | None, int | None]:
    """Parameters and FLOPs of a row."""
    name = spec.model.name
    if spec.model.gate_reduction:
        return None, None
    printed = published_size(name) if as_published else None
    if printed is not None:
        return printed
    size = _count(name, None, None) if as_published else _count(name, spec.data.image_size, spec.model.num_classes)
    return size.params, size.flops


@functools.cache
def _count(network: str, image_size: int | None, num_classes: int | None) -> Complexity:
    return count(network, image_size=image_size, num_classes=num_classes)
