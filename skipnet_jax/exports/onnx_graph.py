"""An ONNX graph under construction: its values, nodes and constants."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from skipnet_jax.errors import UserError

Shape = tuple[Any, ...]  # integers, and symbolic dimensions where the batch is involved


@dataclasses.dataclass(frozen=True)
class Tensor:
    """The graph's input, or the result of a node."""

    name: str
    shape: Shape


# An array is a constant. A value may be compact: its axes of size 1 stand for longer ones, since elementwise operations
# repeat such axes by themselves. `whole` refuses compact values for all other operations; no network has any there.
Value = Tensor | np.ndarray


def is_static(shape: Iterable[Any]) -> bool:
    """Whether no axis depends on the batch size."""
    return all(isinstance(size, int | np.integer) for size in shape)


def broadcast(values: Sequence[Value]) -> Shape:
    """The shape of an elementwise result; the values have the same rank or are scalars."""
    rank = max(len(value.shape) for value in values)
    columns = zip(*(value.shape for value in values if len(value.shape) == rank), strict=True)
    return tuple(next((size for size in column if not (is_static([size]) and size == 1)), 1) for column in columns)


def whole(equation: Any, inputs: list[Value]) -> list[Value]:
    """The inputs of a traced operation that needs them in their whole shapes."""
    for value, atom in zip(inputs, equation.invars, strict=True):
        if value.shape != atom.aval.shape:
            raise untranslatable(f"the operation {equation.primitive.name!r} on repeated values")
    return inputs


def untranslatable(part: str) -> UserError:
    """The error for a network with a part that has no translation to ONNX."""
    return UserError(
        "format", f"onnx for a network with {part}", "operations that have a translation", "Choose another `format`."
    )


class Graph:
    """The nodes and constants (`initializers`) so far."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def add(
        self, operation: str, inputs: Sequence[Value], shape: Shape, attributes: Mapping[str, Any] | None = None
    ) -> Tensor:
        """Adds a node.

        Args:
          operation: its name in ONNX.
          inputs: its arguments; arrays become constants.
          shape: of the result.
        """
        import onnx

        result = f"v{len(self.nodes)}"
        names = [value.name if isinstance(value, Tensor) else self._add_constant(value) for value in inputs]
        self.nodes.append(onnx.helper.make_node(operation, names, [result], **(attributes or {})))
        return Tensor(result, shape)

    def reshape(self, value: Value, shape: Shape) -> Tensor:
        """The same numbers in another shape; at most one of its axes depends on the batch size."""
        sizes = np.asarray([size if is_static([size]) else -1 for size in shape], np.int64)
        if (sizes < 0).sum() > 1:
            raise untranslatable(f"the shape {shape}, which has more than one free axis")
        return self.add("Reshape", [value, sizes], shape)

    def transpose(self, value: Value, axes: Sequence[int]) -> Value:
        """The value with its axes in another order."""
        axes = [int(axis) for axis in axes]
        if isinstance(value, np.ndarray):
            return value.transpose(axes)
        return self.add("Transpose", [value], tuple(value.shape[axis] for axis in axes), {"perm": axes})

    def _add_constant(self, array: np.ndarray) -> str:
        import onnx

        name = f"c{len(self.initializers)}"
        array = np.ascontiguousarray(array).reshape(array.shape)  # ascontiguousarray turns a scalar into a vector
        self.initializers.append(onnx.numpy_helper.from_array(array, name))
        return name
