"""Tables of results in the layout of the published tables: medians over seeds, beside the published figures.

Each table covers one test set (both CIFARs share one). Its rows are networks, its columns are image sizes.

Source: result tables of SkipResNet (Takeda, MIRU2020).
"""

import dataclasses
import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from skipnet_jax.analysis.eval_sets import Condition, EvalSet
from skipnet_jax.analysis.run_groups import Group, Run, Score
from skipnet_jax.errors import UserError
from skipnet_jax.models import complexity, model_info
from skipnet_jax.models.table import published_results
from skipnet_jax.specs import TrainSpec

# The published figures of each test set. ImageNet-A was scored over all 1000 classes.
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
class Cell:
    """The results of a network under one condition.

    Args:
      scores: by seed; empty = not tested.
    """

    scores: Mapping[int, Score]
    published: Published | None

    @property
    def median(self) -> float | None:
        return statistics.median(score.accuracy for score in self.scores.values()) if self.scores else None

    @property
    def difference(self) -> float | None:
        """The printed median minus the published figure, in percentage points."""
        if self.median is None or self.published is None:
            return None
        return round(round(100 * self.median, 2) - round(100 * self.published.accuracy, 2), 2)


@dataclasses.dataclass(frozen=True)
class Row:
    """The results of a network, with a cell for each column.

    Args:
      params, flops: as printed in the published tables if the table shows published figures, otherwise of the network
        as it was trained; None = unknown, because the network was changed.
    """

    network: str
    label: str
    params: int | None
    flops: int | None
    cells: tuple[Cell, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """The results on one test set, or on both CIFARs."""

    title: str
    columns: tuple[Condition, ...]
    rows: tuple[Row, ...]

    @property
    def has_published(self) -> bool:
        """Whether the test set has published figures, though perhaps not for every network."""
        return self.columns[0].eval_set in PUBLISHED


def published(network: str, condition: Condition) -> Published | None:
    """Looks up the published figure of a network under a condition."""
    result = published_results().get(model_info(network).published_name, {})
    value = result.get(PUBLISHED.get(condition.eval_set, ""))
    if isinstance(value, dict):
        value = value.get(str(condition.image_size))
    elif condition.image_size != result.get("image_size"):
        value = None
    return None if value is None else Published(value, result["runs"])


def published_size(network: str) -> tuple[int, int] | None:
    """Looks up the published parameters and FLOPs of a network; 40150000 where 40.15M is printed."""
    result = published_results().get(model_info(network).published_name)
    if result is None or "params" not in result:
        return None
    params, flops = (
        round(float(text[:-1]) * {"M": 1e6, "G": 1e9}[text[-1]]) for text in (result["params"], result["flops"])
    )
    return params, flops


def build(groups: Sequence[Group]) -> list[Table]:
    """Makes a table for every test set that the runs were tested on; those with published figures come first.

    Raises:
      UserError: the scores of one column are on different images.
    """
    measured = {condition for group in groups for run in group.runs for condition in run.scores}
    eval_sets = {condition.eval_set for condition in measured}
    known = [eval_set for eval_set in PUBLISHED if eval_set in eval_sets]
    others = sorted(eval_sets - PUBLISHED.keys(), key=lambda eval_set: eval_set.title)
    titles = dict.fromkeys(eval_set.table for eval_set in [*known, *others])
    return [_table(title, measured, groups) for title in titles]


def _table(title: str, measured: Iterable[Condition], groups: Sequence[Group]) -> Table:
    columns = [condition for condition in {*measured, *_published_conditions()} if condition.eval_set.table == title]
    columns.sort(key=lambda condition: (condition.eval_set.title, condition.image_size))
    members: dict[tuple[str, str], list[Run]] = {}  # label, training data -> runs; both CIFARs share a row
    for group in groups:
        if any(condition in run.scores for run in group.runs for condition in columns):
            members.setdefault((group.label, group.trained_on.table), []).extend(group.runs)
    labels = [label for label, _ in members]
    rows = []
    for (label, trained_on), runs in members.items():
        whole_label = label if labels.count(label) == 1 else f"{label}, trained on {trained_on}"
        rows.append(_row(whole_label, runs, columns))
    for i, condition in enumerate(columns):
        scores = [score for row in rows for score in row.cells[i].scores.values()]
        counts = sorted({score.count for score in scores if score.count is not None})
        if len(counts) > 1:
            raise UserError(
                condition.title,
                f"scores on {' and on '.join(map(str, counts))} images",
                "the same images for all runs",
                "Evaluate all of them with the same `data_dir`.",
            )
    return Table(title, tuple(columns), tuple(rows))


@functools.cache
def _published_conditions() -> frozenset[Condition]:
    """The conditions with published figures."""
    found = set()
    for result in published_results().values():
        for eval_set, key in PUBLISHED.items():
            value = result.get(key)
            sizes: Iterable[Any] = value if isinstance(value, dict) else [result["image_size"]] if value else []
            found |= {Condition(eval_set, int(size)) for size in sizes}
    return frozenset(found)


def _row(label: str, runs: Sequence[Run], columns: Sequence[Condition]) -> Row:
    spec = runs[0].spec
    cells = []
    for condition in columns:
        scores = {run.spec.seed: run.scores[condition] for run in runs if condition in run.scores}
        cells.append(Cell(scores, published(spec.model.name, condition)))
    return Row(spec.model.name, label, *_size(spec, columns[0].eval_set in PUBLISHED), tuple(cells))


def _size(spec: TrainSpec, as_published: bool) -> tuple[int | None, int | None]:
    """Parameters and FLOPs for a row."""
    name = spec.model.name
    if spec.model.gate_reduction:
        return None, None
    printed = published_size(name) if as_published else None
    if printed is not None:
        return printed
    size = count(name) if as_published else count(name, spec.data.image_size, spec.model.num_classes)
    return size.params, size.flops


@functools.cache
def count(
    network: str, image_size: int | None = None, num_classes: int | None = None, gate_reduction: int = 0
) -> complexity.Complexity:
    """`complexity.count`, cached, since it traces the network."""
    return complexity.count(network, image_size=image_size, num_classes=num_classes, gate_reduction=gate_reduction)
