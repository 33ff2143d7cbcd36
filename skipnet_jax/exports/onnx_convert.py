"""A JAX function as an ONNX model, for any batch size.

JAX traces the function with a symbolic batch size into a few dozen kinds of operations, and each of these becomes one
or a few operations of ONNX (`onnx_operations.py`). Whatever depends on parameters alone is computed at conversion.

Considered instead:
- jax2onnx brings fifteen packages and refuses the version of Orbax that this project uses.
- tf2onnx cannot read the SavedModels that JAX writes, except by way of TFLite: two more converters to trust.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import export
from jaxtyping import Array, Float

from skipnet_jax.exports import INPUT, OUTPUT
from skipnet_jax.exports.onnx_graph import Graph, Tensor, Value, broadcast, is_static, untranslatable
from skipnet_jax.exports.onnx_operations import ELEMENTWISE, OPERATIONS

OPSET, IR_VERSION = 18, 10  # runtimes since 2023 read these
BATCH = "b"  # name of the free axis
_CALLS = {"jit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
_EXTERNAL_FROM = 1 << 30  # bytes of weights; a protobuf file must not exceed 2 GB


def convert(function: Callable[[Float[Array, "b h w 3"]], Float[Array, "b k"]], image_size: int) -> Any:
    """Makes an onnx.ModelProto from a function of images; the parameters that it closes over become constants.

    Args:
      function: from normalised images to logits, in float32.
      image_size: side of the images, in pixels.

    Raises:
      UserError: an operation of the function has no translation.
    """
    import onnx

    [batch] = export.symbolic_shape(BATCH)
    images = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), np.float32)
    traced = jax.make_jaxpr(function)(images)
    graph = Graph()
    [logits] = _add_function(graph, traced, [Tensor(INPUT, images.shape)])
    [shape] = (variable.aval.shape for variable in traced.jaxpr.outvars)
    if not isinstance(logits, Tensor) or logits.shape != shape:
        raise untranslatable("logits that do not depend on the images")
    graph.nodes.append(onnx.helper.make_node("Identity", [logits.name], [OUTPUT]))
    proto = onnx.helper.make_graph(
        graph.nodes,
        "network",
        [onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, [BATCH, *images.shape[1:]])],
        [onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, [BATCH, *shape[1:]])],
        graph.initializers,
    )
    opset = onnx.helper.make_opsetid("", OPSET)
    return onnx.helper.make_model(proto, opset_imports=[opset], ir_version=IR_VERSION, producer_name="skipnet_jax")


def save(model: Any, path: str) -> None:
    """Writes an onnx.ModelProto; the weights of a very large one go into a file beside it."""
    import onnx

    size = sum(len(weights.raw_data) for weights in model.graph.initializer)
    onnx.save(model, path, save_as_external_data=size > _EXTERNAL_FROM, location="weights.bin")


def _add_function(graph: Graph, traced: Any, inputs: Sequence[Value]) -> list[Value]:
    """Adds all operations of a traced function; returns its results."""
    constants = [np.asarray(constant) for constant in traced.consts]
    values = dict(zip((*traced.jaxpr.constvars, *traced.jaxpr.invars), (*constants, *inputs), strict=True))

    def read(atom: Any) -> Value:
        return np.asarray(atom.val, atom.aval.dtype) if hasattr(atom, "val") else values[atom]

    for equation in traced.jaxpr.eqns:
        results = _add_operation(graph, equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in traced.jaxpr.outvars]


def _add_operation(graph: Graph, equation: Any, inputs: list[Value]) -> Sequence[Value]:
    name = equation.primitive.name
    if name in _CALLS:
        return _add_function(graph, equation.params[_CALLS[name]], inputs)
    if name == "platform_index":  # one branch per platform: ONNX takes the default
        return [np.asarray(equation.params["platforms"].index(None), np.int32)]
    if name == "cond" and isinstance(inputs[0], np.ndarray):
        return _add_function(graph, equation.params["branches"][int(inputs[0])], inputs[1:])
    if _is_constant(equation, inputs):
        results = equation.primitive.bind(*inputs, **equation.params)
        return [np.asarray(result) for result in (results if equation.primitive.multiple_results else [results])]
    if name in ELEMENTWISE:
        return [graph.add(ELEMENTWISE[name], inputs, broadcast(inputs))]
    if name not in OPERATIONS:
        raise untranslatable(f"the operation {name!r}")
    results = OPERATIONS[name](graph, equation, inputs)
    return results if isinstance(results, list) else [results]


def _is_constant(equation: Any, inputs: list[Value]) -> bool:
    """Whether the result can be computed now: all inputs are whole constants, and no batch size is involved."""
    pairs = zip(inputs, equation.invars, strict=True)
    return all(isinstance(value, np.ndarray) and value.shape == atom.aval.shape for value, atom in pairs) and all(
        is_static(variable.aval.shape) for variable in equation.outvars
    )
