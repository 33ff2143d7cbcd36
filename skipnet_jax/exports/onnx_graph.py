"""An ONNX graph under construction: its values, nodes and constants."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from skipnet_jax.errors import UserError
from skipnet_jax.exports import INPUT

Shape = tuple[Any, ...]  # integers, and symbolic dimensions where the batch is involved
_SHARED_UP_TO = 64  # numbers in a constant: equal constants of this size become one


@dataclasses.dataclass(frozen=True)
class Tensor:
    """The graph's input, or the result of a node."""

    name: str
    shape: Shape


Value = Tensor | np.ndarray  # an array is a constant


def is_static(shape: Iterable[Any]) -> bool:
    """Whether no axis depends on the batch size."""
    return all(isinstance(size, int | np.integer) for size in shape)


def broadcast(values: Sequence[Value]) -> Shape:
    """The shape of an elementwise result; the values have the same rank or are scalars."""
    rank = max(len(value.shape) for value in values)
    columns = zip(*(value.shape for value in values if len(value.shape) == rank), strict=True)
    return tuple(next((size for size in column if not (is_static([size]) and size == 1)), 1) for column in columns)


def untranslatable(what: str) -> UserError:
    """The error for a network that has no translation to ONNX.

    Args:
      what: the part of the network without one.
    """
    return UserError(
        "format", f"onnx for a network with {what}", "only what has a translation", "Choose another `format`."
    )


@dataclasses.dataclass
class Graph:
    """The nodes and constants so far.

    A value may be compact: its axes of size 1 stand for longer ones, as long as only operations read it that repeat
    such axes by themselves. `expand` makes it whole.

    Args:
      batch: the symbolic batch size.
    """

    batch: Any
    nodes: list[Any] = dataclasses.field(default_factory=list)
    initializers: list[Any] = dataclasses.field(default_factory=list)
    _shared: dict[tuple[Any, ...], str] = dataclasses.field(default_factory=dict)
    _batch_size: Tensor | None = None

    def add(
        self, operation: str, inputs: Sequence[Value], shape: Shape, attributes: Mapping[str, Any] | None = None
    ) -> Tensor:
        """Adds a node.

        Args:
          operation: its name in ONNX.
          inputs: its arguments; arrays become constants.
          shape: of the result.
          attributes: by name.
        """
        import onnx

        result = f"v{len(self.nodes)}"
        names = [self._name(value) for value in inputs]
        self.nodes.append(onnx.helper.make_node(operation, names, [result], **(attributes or {})))
        return Tensor(result, shape)

    def expand(self, value: Value, shape: Shape) -> Tensor:
        """Repeats the axes of a compact value until it has its whole shape."""
        if value.shape != shape:
            value = self.add("Expand", [value, self._shape_vector(shape)], shape)
        return value if isinstance(value, Tensor) else Tensor(self._name(value), shape)

    def expand_inputs(self, equation: Any, inputs: list[Value]) -> list[Value]:
        """The inputs of a traced operation, each in its whole shape."""
        pairs = [(value, atom.aval.shape) for value, atom in zip(inputs, equation.invars, strict=True)]
        return [value if value.shape == shape else self.expand(value, shape) for value, shape in pairs]

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

    def _shape_vector(self, shape: Shape) -> Value:
        if is_static(shape):
            return np.asarray(shape, np.int64)
        return self.add("Concat", list(self._sizes(shape)), (len(shape),), {"axis": 0})

    def _sizes(self, shape: Shape) -> Iterator[Value]:
        for size in shape:
            if is_static([size]):
                yield np.asarray([size], np.int64)
                continue
            if self._batch_size is None:
                self._batch_size = self.add("Shape", [Tensor(INPUT, ())], (1,), {"start": 0, "end": 1})
            batch = self._batch_size
            yield batch if size == self.batch else self.add("Mul", [batch, np.asarray([size // self.batch])], (1,))

    def _name(self, value: Value) -> str:
        """The name of a tensor, or of a constant, which is added if it is new."""
        if isinstance(value, Tensor):
            return value.name
        import onnx

        value = np.ascontiguousarray(value).reshape(value.shape)  # ascontiguousarray turns a scalar into a vector
        key = (value.dtype.str, value.shape, value.tobytes()) if value.size <= _SHARED_UP_TO else None
        if key in self._shared:
            return self._shared[key]
        name = f"c{len(self.initializers)}"
        self.initializers.append(onnx.numpy_helper.from_array(value, name))
        if key is not None:
            self._shared[key] = name
        return name
