"""The table of networks, as text, markdown or JSON: sizes and published accuracy."""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from skipnet_jax.models import model_info
from skipnet_jax.models.complexity import count, xla_flops

ACCURACIES = {"imagenet_top1": "ImageNet", "cifar10_top1": "CIFAR-10", "cifar100_top1": "CIFAR-100"}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One of the outputs of `method="features"`.

    Args:
      stride: pixels of the image per pixel of this output.
    """

    channels: int
    stride: int


@dataclasses.dataclass(frozen=True)
class Row:
    """What the table says of a network.

    Args:
      image_size: of the published training and of the counts, in pixels.
      published_top1: data set -> accuracy in 0..1, the median of several runs, at `image_size`; empty where none
        was published.
      features: the outputs of `method="features"`, in order.
      xla_flops: see `complexity.xla_flops`; None = not asked for, or not known.
    """

    name: str
    published_name: str
    params: int
    flops: int
    image_size: int
    num_classes: int
    published_top1: dict[str, float]
    features: tuple[Stage, ...]
    xla_flops: int | None


@functools.cache
def published_results() -> dict[str, dict[str, Any]]:
    """The published tables: published name -> printed parameters and FLOPs, accuracies in 0..1, number of runs.

    Source: result tables of SkipResNet (Takeda, MIRU2020).
    """
    return json.loads(importlib.resources.files(__package__).joinpath("published_results.json").read_text())


def published_top1(published_name: str) -> dict[str, float]:
    """Data set -> published accuracy in 0..1; ImageNet's at 224 pixels, where several sizes were measured."""
    result = published_results().get(published_name, {})
    values = {data: result[key] for key, data in ACCURACIES.items() if key in result}
    return {data: value["224"] if isinstance(value, dict) else value for data, value in values.items()}


def make_row(name: str, *, xla: bool) -> Row:
    """Traces a network and puts its facts together; takes up to a second or two.

    Args:
      xla: ask XLA for its estimate as well.

    Raises:
      ValueError: the name is unknown; the message lists the nearest ones.
    """
    info, size = model_info(name), count(name)
    return Row(
        name,
        info.published_name,
        size.params,
        size.flops,
        info.image_size,
        info.num_classes,
        published_top1(info.published_name),
        tuple(Stage(channels, info.image_size // height) for height, _, channels in size.features),
        xla_flops(name) if xla else None,
    )


def format_count(value: int) -> str:
    """Four significant digits, as the published tables print them: 40.15M, 257.9M, 4.201G."""
    digits, exponent = f"{value:.3e}".split("e")
    thousands, shift = divmod(int(exponent), 3)
    return f"{float(digits) * 10**shift:.{3 - shift}f}{('', 'k', 'M', 'G', 'T')[thousands]}"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the printed tables.

    Args:
      width: in a terminal; no cell is wider.
      cell: what a row shows in it.
      number: numbers stand to the right, all else to the left.
    """

    head: str
    width: int
    cell: Callable[[Row], str]
    number: bool = False


NAME = Column("name", 26, lambda row: row.name)
PUBLISHED_NAME = Column("published name", 28, lambda row: row.published_name)
PARAMETERS = Column("parameters", 10, lambda row: format_count(row.params), number=True)
FLOPS = Column("FLOPs", 6, lambda row: format_count(row.flops), number=True)
XLA_FLOPS = Column(
    "XLA's FLOPs", 11, lambda row: "" if row.xla_flops is None else format_count(row.xla_flops), number=True
)
IMAGE_SIZE = Column("image size", 10, lambda row: str(row.image_size), number=True)
PUBLISHED_TOP1 = Column(
    "published top-1", 33, lambda row: ", ".join(f"{data} {top1:.2%}" for data, top1 in row.published_top1.items())
)
FEATURES = Column(
    "features: channels/stride", 31, lambda row: ", ".join(f"{stage.channels}/{stage.stride}" for stage in row.features)
)


def columns(*, xla: bool, features: bool) -> list[Column]:
    """The columns of the table, in order.

    Args:
      xla, features: whether these are among them.
    """
    return [
        *(NAME, PUBLISHED_NAME, PARAMETERS, FLOPS),
        *([XLA_FLOPS] if xla else []),
        *(IMAGE_SIZE, PUBLISHED_TOP1),
        *([FEATURES] if features else []),
    ]


def text_lines(rows: Iterable[Row], columns: Sequence[Column]) -> Iterator[str]:
    """Yields the lines of a table for the terminal, each as soon as its row is there."""

    def line(cells: Iterable[str]) -> str:
        pairs = zip(cells, columns, strict=True)
        return "  ".join(c.rjust(column.width) if column.number else c.ljust(column.width) for c, column in pairs)

    yield line(column.head for column in columns).rstrip()
    for row in rows:
        yield line(column.cell(row) for column in columns).rstrip()


def markdown_lines(rows: Iterable[Row], columns: Sequence[Column]) -> Iterator[str]:
    """Yields the lines of a table for a README, each as soon as its row is there."""
    yield f"| {' | '.join(column.head for column in columns)} |"
    yield f"| {' | '.join('---:' if column.number else '---' for column in columns)} |"
    for row in rows:
        yield f"| {' | '.join(column.cell(row) for column in columns)} |"


def json_lines(rows: Iterable[Row]) -> Iterator[str]:
    """Yields a JSON array of all that is known, with exact numbers, a line per row."""
    yield "["
    for i, row in enumerate(rows):
        yield f"{',' if i else ' '}{json.dumps(dataclasses.asdict(row))}"
    yield "]"
