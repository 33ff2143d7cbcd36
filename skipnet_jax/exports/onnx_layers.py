"""Convolutions, pooling and matrix products in ONNX."""

import math
import string
from collections.abc import Callable
from typing import Any

import numpy as np

from skipnet_jax.exports.onnx_graph import Graph, Value, untranslatable, whole


def product(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    """A product of matrices, or of batches of matrices with the axes in any order."""
    (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
    left, right = whole(equation, inputs)
    shape, rank = equation.outvars[0].aval.shape, len(left.shape)
    if not left_batch and len(right.shape) == 2 and tuple(left_sum) == (rank - 1,) and tuple(right_sum) == (0,):
        return graph.add("MatMul", [left, right], shape)
    left_letters, right_letters = list(string.ascii_lowercase[:rank]), list(string.ascii_uppercase[: len(right.shape)])
    for left_axis, right_axis in zip((*left_batch, *left_sum), (*right_batch, *right_sum), strict=True):
        right_letters[right_axis] = left_letters[left_axis]
    result = [left_letters[axis] for axis in left_batch]
    result += [letter for axis, letter in enumerate(left_letters) if axis not in (*left_batch, *left_sum)]
    result += [letter for axis, letter in enumerate(right_letters) if axis not in (*right_batch, *right_sum)]
    einsum = f"{''.join(left_letters)},{''.join(right_letters)}->{''.join(result)}"
    return graph.add("Einsum", [left, right], shape, {"equation": einsum})


def convolution(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    """A convolution between two transpositions, since ONNX puts the channels before the pixels."""
    params, numbers = equation.params, equation.params["dimension_numbers"]
    if params["batch_group_count"] != 1 or any(step != 1 for step in params["lhs_dilation"]):
        raise untranslatable("a transposed convolution")
    image, kernel = whole(equation, inputs)
    attributes = {
        "strides": list(params["window_strides"]),
        "pads": [low for low, _ in params["padding"]] + [high for _, high in params["padding"]],
        "dilations": list(params["rhs_dilation"]),
        "group": params["feature_group_count"],
    }
    image = graph.transpose(image, numbers.lhs_spec)
    kernel = graph.transpose(kernel, numbers.rhs_spec)
    shape = tuple(equation.outvars[0].aval.shape[axis] for axis in numbers.out_spec)
    result = graph.add("Conv", [image, kernel], shape, attributes)
    return graph.transpose(result, np.argsort(numbers.out_spec).tolist())


def pool_as(operation: str) -> Callable[[Graph, Any, list[Value]], Value]:
    """Returns the translation of a pooling.

    Args:
      operation: its name in ONNX: MaxPool, or AveragePool for a sum.
    """

    def pool(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
        params, [image] = equation.params, whole(equation, inputs)
        window, strides, padding = params["window_dimensions"], params["window_strides"], params["padding"]
        if len(window) != 4 or (window[0], window[3]) != (1, 1):
            raise untranslatable(f"pooling over {window}, not over the pixels alone")
        attributes: dict[str, Any] = {
            "kernel_shape": list(window[1:3]),
            "strides": list(strides[1:3]),
            "pads": [low for low, _ in padding[1:3]] + [high for _, high in padding[1:3]],
        }
        if operation == "AveragePool":
            attributes["count_include_pad"] = 1
        batch, height, width, channels = equation.outvars[0].aval.shape
        image = graph.transpose(image, (0, 3, 1, 2))
        result = graph.add(operation, [image], (batch, channels, height, width), attributes)
        if operation == "AveragePool":  # JAX asked for the sum
            result = graph.add("Mul", [result, np.asarray(math.prod(window), np.float32)], result.shape)
        return graph.transpose(result, (0, 2, 3, 1))

    return pool
