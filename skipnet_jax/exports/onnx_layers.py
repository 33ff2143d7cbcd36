"""Convolutions, pooling and products of matrices in ONNX."""

import math
import string
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from skipnet_jax.exports.onnx_values import Value, permuted, whole

if TYPE_CHECKING:
    from skipnet_jax.exports.onnx_graph import Graph


def product(graph: "Graph", equation: Any, inputs: list[Value]) -> Value:
    """A product of matrices, or of stacks of them in any order of axes."""
    (left_sum, right_sum), (left_stack, right_stack) = equation.params["dimension_numbers"]
    left, right = whole(graph, equation, inputs)
    shape, rank = equation.outvars[0].aval.shape, len(left.shape)
    if not left_stack and len(right.shape) == 2 and tuple(left_sum) == (rank - 1,) and tuple(right_sum) == (0,):
        return graph.add("MatMul", [left, right], shape)
    left_letters, right_letters = list(string.ascii_lowercase[:rank]), list(string.ascii_uppercase[: len(right.shape)])
    for ours, theirs in zip((*left_stack, *left_sum), (*right_stack, *right_sum), strict=True):
        right_letters[theirs] = left_letters[ours]
    result = [left_letters[axis] for axis in left_stack]
    result += [letter for axis, letter in enumerate(left_letters) if axis not in (*left_stack, *left_sum)]
    result += [letter for axis, letter in enumerate(right_letters) if axis not in (*right_stack, *right_sum)]
    equation_text = f"{''.join(left_letters)},{''.join(right_letters)}->{''.join(result)}"
    return graph.add("Einsum", [left, right], shape, {"equation": equation_text})


def convolution(graph: "Graph", equation: Any, inputs: list[Value]) -> Value:
    """ONNX has the channels before the pixels, so there is a transposition on each side."""
    params, numbers = equation.params, equation.params["dimension_numbers"]
    if params["batch_group_count"] != 1 or any(step != 1 for step in params["lhs_dilation"]):
        raise ValueError("--format: got onnx for a network with a transposed convolution, expected none.")
    image, kernel = whole(graph, equation, inputs)
    attributes = {
        "strides": list(params["window_strides"]),
        "pads": [low for low, _ in params["padding"]] + [high for _, high in params["padding"]],
        "dilations": list(params["rhs_dilation"]),
        "group": params["feature_group_count"],
    }
    image = permuted(graph, image, numbers.lhs_spec)
    kernel = permuted(graph, kernel, numbers.rhs_spec)
    shape = tuple(equation.outvars[0].aval.shape[axis] for axis in numbers.out_spec)
    result = graph.add("Conv", [image, kernel], shape, attributes)
    return permuted(graph, result, np.argsort(numbers.out_spec).tolist())


def pool_as(operation: str) -> Callable[["Graph", Any, list[Value]], Value]:
    """The translation of a pooling whose name in ONNX is given: MaxPool, or AveragePool for a sum."""

    def pool(graph: "Graph", equation: Any, inputs: list[Value]) -> Value:
        params, [image] = equation.params, whole(graph, equation, inputs)
        window, strides, padding = (params[f"{name}"] for name in ("window_dimensions", "window_strides", "padding"))
        if len(window) != 4 or (window[0], window[3]) != (1, 1):
            raise ValueError(f"--format: got onnx for a network that pools over {window}, expected [1, i, j, 1].")
        attributes: dict[str, Any] = {
            "kernel_shape": list(window[1:3]),
            "strides": list(strides[1:3]),
            "pads": [low for low, _ in padding[1:3]] + [high for _, high in padding[1:3]],
        }
        if operation == "AveragePool":
            attributes["count_include_pad"] = 1
        batch, height, width, channels = equation.outvars[0].aval.shape
        image = permuted(graph, image, (0, 3, 1, 2))
        result = graph.add(operation, [image], (batch, channels, height, width), attributes)
        if operation == "AveragePool":  # what is asked for is the sum
            result = graph.add("Mul", [result, np.asarray(math.prod(window), np.float32)], result.shape)
        return permuted(graph, result, (0, 2, 3, 1))

    return pool
