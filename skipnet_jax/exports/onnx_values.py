"""Values of an ONNX graph in the making."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from skipnet_jax.exports.onnx_graph import Graph

Shape = tuple[Any, ...]  # of integers, and of symbolic dimensions where the batch is involved


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A result of a node, or the graph's input."""

    name: str
    shape: Shape


Value = Tensor | np.ndarray  # an array: known already


def is_static(shape: Iterable[Any]) -> bool:
    """Whether no axis depends on the batch."""
    return all(isinstance(size, int | np.integer) for size in shape)


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """The shape of an elementwise result, of shapes of one rank, or scalars."""
    rank = max(len(shape) for shape in shapes)
    columns = zip(*(shape for shape in shapes if len(shape) == rank), strict=True)
    return tuple(next((size for size in column if not (is_static([size]) and size == 1)), 1) for column in columns)


def whole(graph: "Graph", equation: Any, inputs: list[Value]) -> list[Value]:
    """The inputs, each with every axis as long as it stands for."""
    pairs = zip(inputs, equation.invars, strict=True)
    return [value if value.shape == atom.aval.shape else graph.full(value, atom.aval.shape) for value, atom in pairs]


def permuted(graph: "Graph", value: Value, axes: Sequence[int]) -> Value:
    """The value with its axes in another order."""
    axes = [int(axis) for axis in axes]
    if isinstance(value, np.ndarray):
        return value.transpose(axes)
    return graph.add("Transpose", [value], tuple(value.shape[axis] for axis in axes), {"perm": axes})
