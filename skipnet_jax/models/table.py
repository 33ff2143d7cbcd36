"""Facts about each network, singly and as a table: its size and its published accuracy."""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from skipnet_jax.models import complexity, zoo

ACCURACIES = {"imagenet_top1": "ImageNet", "cifar10_top1": "CIFAR-10", "cifar100_top1": "CIFAR-100"}


@functools.cache
def published_results() -> dict[str, dict[str, Any]]:
    """The published tables: published name -> printed parameters and FLOPs, accuracies in 0..1, number of runs.

    The tables have no parameters and no FLOPs for Swin, and measure it at 224 pixels only.

    Source: result tables of SkipResNet (Takeda, MIRU2020, and of his PyTorch code).
    """
    return json.loads(importlib.resources.files(__package__).joinpath("published_results.json").read_text())


@functools.cache
def counts() -> dict[str, complexity.Complexity]:
    """The counts of each network, written by `python -m scripts.count_networks`: tracing them all takes minutes."""
    text = importlib.resources.files(__package__).joinpath("counts.json").read_text()
    return {
        name: complexity.Complexity(params, flops, tuple(map(tuple, features)))
        for name, (params, flops, features) in json.loads(text).items()
    }


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """The facts about a network, known without drawing its weights.

    Args:
      published_name: as in the papers.
      image_size: side of the published training images in pixels; the counts are for this size.
      num_classes: of the data set in the published tables; the counts are for this number.
    """

    name: str
    published_name: str
    image_size: int
    num_classes: int

    @functools.cached_property
    def _complexity(self) -> complexity.Complexity:
        return counts().get(self.name) or complexity.count(self.name)  # not in the file: a network that a user added

    @property
    def params(self) -> int:
        """Number of parameters, running statistics excluded."""
        return self._complexity.params

    @property
    def flops(self) -> int:
        """FLOPs of classifying one image, as the published tables count: see `complexity`."""
        return self._complexity.flops

    @property
    def features(self) -> list[dict[str, int]]:
        """Channels and stride (image pixels per map pixel) of each output of `method="features"`, in order."""
        maps = self._complexity.features
        return [{"channels": channels, "stride": self.image_size // height} for height, _, channels in maps]

    @property
    def published_top1(self) -> dict[str, float]:
        """Data set -> published accuracy in 0..1; for ImageNet at 224 pixels if several sizes were measured."""
        result = published_results().get(self.published_name, {})
        values = {data: result[key] for key, data in ACCURACIES.items() if key in result}
        return {data: value["224"] if isinstance(value, dict) else value for data, value in values.items()}


def model_info(name: str) -> ModelInfo:
    """Looks up a network by name.

    Raises:
      UserError: the name is unknown; the message lists the nearest ones.
    """
    architecture, junction = zoo.find(name)
    published_name = junction.published_prefix + architecture.published_name
    return ModelInfo(name, published_name, architecture.image_size, architecture.num_classes)


def format_count(value: int) -> str:
    """Four significant digits, as the published tables print them: 40.15M, 257.9M, 4.201G."""
    digits, exponent = f"{value:.3e}".split("e")
    thousands, shift = divmod(int(exponent), 3)
    return f"{float(digits) * 10**shift:.{3 - shift}f}{('', 'k', 'M', 'G', 'T')[thousands]}"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the printed table.

    Args:
      width: of the widest cell, for the terminal.
      cell: the text for a network.
      number: align to the right.
    """

    head: str
    width: int
    cell: Callable[[ModelInfo], str]
    number: bool = False


def columns(*, xla: bool, features: bool) -> list[Column]:
    """The columns of the table, in order.

    Args:
      xla, features: include XLA's estimate of the FLOPs, and the feature pyramid.
    """
    return [
        Column("name", 26, lambda info: info.name),
        Column("published name", 28, lambda info: info.published_name),
        Column("parameters", 10, lambda info: format_count(info.params), number=True),
        Column("FLOPs", 6, lambda info: format_count(info.flops), number=True),
        *([Column("XLA's FLOPs", 11, _xla_flops, number=True)] if xla else []),
        Column("image size", 10, lambda info: str(info.image_size), number=True),
        Column("published top-1", 33, _published_top1),
        *([Column("features: channels/stride", 30, _features)] if features else []),
    ]


def _xla_flops(info: ModelInfo) -> str:
    flops = complexity.xla_flops(info.name)
    return "" if flops is None else format_count(flops)


def _published_top1(info: ModelInfo) -> str:
    return ", ".join(f"{data} {top1:.2%}" for data, top1 in info.published_top1.items())


def _features(info: ModelInfo) -> str:
    return ", ".join(f"{stage['channels']}/{stage['stride']}" for stage in info.features)


def text_lines(infos: Iterable[ModelInfo], columns: Sequence[Column]) -> Iterator[str]:
    """Yields the table for the terminal, line by line."""

    def line(cells: Iterable[str]) -> str:
        pairs = zip(cells, columns, strict=True)
        return "  ".join(c.rjust(column.width) if column.number else c.ljust(column.width) for c, column in pairs)

    yield line(column.head for column in columns).rstrip()
    for info in infos:
        yield line(column.cell(info) for column in columns).rstrip()


def markdown_lines(infos: Iterable[ModelInfo], columns: Sequence[Column]) -> Iterator[str]:
    """Yields the table for a README, line by line."""
    yield f"| {' | '.join(column.head for column in columns)} |"
    yield f"| {' | '.join('---:' if column.number else '---' for column in columns)} |"
    for info in infos:
        yield f"| {' | '.join(column.cell(info) for column in columns)} |"


def json_lines(infos: Iterable[ModelInfo], *, xla: bool) -> Iterator[str]:
    """Yields a JSON array of all facts, with exact numbers, one network per line.

    Args:
      xla: ask XLA for its estimate of the FLOPs; otherwise `xla_flops` is null.
    """
    yield "["
    for i, info in enumerate(infos):
        facts = {
            "name": info.name,
            "published_name": info.published_name,
            "params": info.params,
            "flops": info.flops,
            "image_size": info.image_size,
            "num_classes": info.num_classes,
            "published_top1": info.published_top1,
            "features": info.features,
            "xla_flops": complexity.xla_flops(info.name) if xla else None,
        }
        yield f"{',' if i else ' '}{json.dumps(facts)}"
    yield "]"
