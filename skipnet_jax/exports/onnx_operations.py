"""The translation of each JAX operation to ONNX: two tables.

They cover only the operations that these networks use in evaluation, in the forms used there.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from skipnet_jax.exports.onnx_graph import Graph, Shape, Value, untranslatable, whole
from skipnet_jax.exports.onnx_layers import convolution, pool_as, product

_Translation = Callable[[Graph, Any, list[Value]], Value | list[Value]]  # a list for an operation with several results


def _same(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    return inputs[0]


def _square(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    return graph.add("Mul", [inputs[0], inputs[0]], inputs[0].shape)


def _reciprocal_root(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    return graph.add("Reciprocal", [graph.add("Sqrt", inputs, inputs[0].shape)], inputs[0].shape)


def _complementary_error(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    error = graph.add("Erf", inputs, inputs[0].shape)
    return graph.add("Sub", [np.ones((), np.float32), error], inputs[0].shape)


def _broadcast(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    """Adds axes of size 1, which may stand for longer ones: see `Value`."""
    [value, rank] = inputs[0], len(equation.params["shape"])
    if len(value.shape) == rank:
        return value
    shape = [1] * rank
    for axis, size in zip(equation.params["broadcast_dimensions"], value.shape, strict=True):
        shape[axis] = size
    return value.reshape(shape) if isinstance(value, np.ndarray) else graph.reshape(value, tuple(shape))


def _reshape(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    [value] = whole(equation, inputs)
    return graph.reshape(value, equation.outvars[0].aval.shape)


def _transpose(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    return graph.transpose(inputs[0], equation.params["permutation"])


def _concatenate(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    attributes = {"axis": int(equation.params["dimension"])}
    return graph.add("Concat", whole(equation, inputs), equation.outvars[0].aval.shape, attributes)


def _stack(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    shape, axis = equation.outvars[0].aval.shape, int(equation.params["axis"])
    layers = [graph.reshape(value, (*shape[:axis], 1, *shape[axis + 1 :])) for value in whole(equation, inputs)]
    return graph.add("Concat", layers, shape, {"axis": axis})


def _unstack(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    [value], axis = whole(equation, inputs), int(equation.params["axis"])
    before, after = value.shape[:axis], value.shape[axis + 1 :]
    none, ones = [0] * len(value.shape), [1] * len(value.shape)
    results: list[Value] = []
    for index, variable in enumerate(equation.outvars):
        starts, limits = [*none[:axis], index, *none[axis + 1 :]], [*before, index + 1, *after]
        layer = _sliced(graph, value, starts, limits, ones, (*before, 1, *after))
        results.append(graph.reshape(layer, variable.aval.shape))
    return results


def _pad(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    config = equation.params["padding_config"]
    if not any(low or high or interior for low, high, interior in config):
        return inputs[0]
    if any(interior or low < 0 or high < 0 for low, high, interior in config):
        raise untranslatable(f"the padding {config}, which is not at the ends alone")
    pads = np.asarray([low for low, _, _ in config] + [high for _, high, _ in config], np.int64)
    [value, _] = whole(equation, inputs)
    return graph.add("Pad", [value, pads, inputs[1]], equation.outvars[0].aval.shape)


def _slice(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    params, [value] = equation.params, whole(equation, inputs)
    strides = params["strides"] or (1,) * len(value.shape)
    starts, limits = params["start_indices"], params["limit_indices"]
    return _sliced(graph, value, starts, limits, strides, equation.outvars[0].aval.shape)


def _gather(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    """A slice, or elements at constant positions along neighbouring axes."""
    shape, numbers = equation.outvars[0].aval.shape, equation.params["dimension_numbers"]
    [value, _], sizes = whole(equation, inputs), equation.params["slice_sizes"]
    indices, axes = inputs[1], numbers.start_index_map
    first, after = axes[0], axes[-1] + 1
    if not isinstance(indices, np.ndarray) or axes != tuple(range(first, after)) or numbers.operand_batching_dims:
        raise untranslatable("look-ups that depend on the image")
    if indices.size == len(axes):
        starts = [0] * len(value.shape)
        starts[first:after] = [int(index) for index in indices.reshape(-1)]
        limits = [start + size for start, size in zip(starts, sizes, strict=True)]
        return graph.reshape(_sliced(graph, value, starts, limits, [1] * len(sizes), sizes), shape)
    if numbers.collapsed_slice_dims != axes or tuple(shape[:first]) != tuple(value.shape[:first]):
        raise untranslatable(f"the look-up {numbers}, which does not take whole rows")
    spans = value.shape[first:after]
    flat = np.ravel_multi_index(tuple(np.moveaxis(indices, -1, 0)), spans).reshape(-1)
    before, rest = value.shape[:first], value.shape[after:]
    rows = graph.reshape(value, (*before, math.prod(spans), *rest))
    found = graph.add("Gather", [rows, flat.astype(np.int64)], (*before, len(flat), *rest), {"axis": first})
    return graph.reshape(found, shape)


def _reduce(operation: str) -> _Translation:
    def reduce(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
        axes = np.asarray(equation.params["axes"], np.int64)
        [value] = whole(equation, inputs)
        return graph.add(operation, [value, axes], equation.outvars[0].aval.shape, {"keepdims": 0})

    return reduce


def _sliced(
    graph: Graph, value: Value, starts: Sequence[Any], limits: Sequence[Any], strides: Sequence[int], shape: Shape
) -> Value:
    """Slices only the axes that get shorter, so never the batch."""
    axes = [
        axis
        for axis, (start, limit, stride, size) in enumerate(zip(starts, limits, strides, value.shape, strict=True))
        if (start, limit, stride) != (0, size, 1)
    ]
    if not axes:
        return value
    starts, limits, strides = ([of[axis] for axis in axes] for of in (starts, limits, strides))
    vectors = [np.asarray(numbers, np.int64) for numbers in (starts, limits, axes, strides)]
    return graph.add("Slice", [value, *vectors], shape)


# The same operation in both. ONNX repeats axes of size 1 by itself.
ELEMENTWISE = {
    "add": "Add",
    "div": "Div",
    "exp": "Exp",
    "logistic": "Sigmoid",
    "max": "Max",
    "mul": "Mul",
    "neg": "Neg",
    "sub": "Sub",
}

OPERATIONS: dict[str, _Translation] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": convolution,
    "copy": _same,
    "dot_general": product,
    "erfc": _complementary_error,
    "gather": _gather,
    "pad": _pad,
    "reduce_max": _reduce("ReduceMax"),
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_window_max": pool_as("MaxPool"),
    "reduce_window_sum": pool_as("AveragePool"),
    "reshape": _reshape,
    "rsqrt": _reciprocal_root,
    "slice": _slice,
    "square": _square,
    "squeeze": _reshape,
    "stack": _stack,
    "stop_gradient": _same,
    "transpose": _transpose,
    "unstack": _unstack,
}
