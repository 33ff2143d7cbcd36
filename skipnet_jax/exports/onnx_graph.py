"""A JAX function as an ONNX graph, for any batch size.

The function is traced with a symbolic batch, and each of the few dozen operations of what JAX makes of it becomes one
of ONNX's or a few (`onnx_operations.py`). What depends on parameters alone is computed here and now.

Considered instead:
- jax2onnx: brings fifteen packages, and refuses the version of Orbax that this project has.
- tf2onnx: does not read what JAX writes into a SavedModel, only by way of TFLite: two more converters to trust.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export
from jaxtyping import Array, Float

from skipnet_jax.exports.onnx_operations import ELEMENTWISE, OPERATIONS
from skipnet_jax.exports.onnx_values import Shape, Tensor, Value, broadcast, is_static

OPSET, IR_VERSION = 18, 10  # what runtimes since 2023 read
INPUT, OUTPUT = "images", "logits"
BATCH = "b"  # name of the free axis
_CALLS = {"jit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
_EXTERNAL_FROM = 1 << 30  # bytes of weights; a file of protobuf must not exceed 2 GB


def convert(function: Callable[[Float[Array, "b h w 3"]], Float[Array, "b k"]], image_size: int) -> Any:
    """Makes an onnx.ModelProto from a function of images, with all that it closes over inside.

    Args:
      function: from normalised images to logits; float32.
      image_size: side of the images, in pixels.

    Raises:
      ValueError: the function has an operation that has no translation here.
    """
    import onnx

    [batch] = export.symbolic_shape(BATCH)
    images = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), np.float32)
    traced = jax.make_jaxpr(function)(images)
    graph = Graph(batch)
    [logits] = graph.run(traced.jaxpr, [np.asarray(const) for const in traced.consts], [Tensor(INPUT, images.shape)])
    [shape] = (variable.aval.shape for variable in traced.jaxpr.outvars)
    graph.nodes.append(onnx.helper.make_node("Identity", [graph.full(logits, shape).name], [OUTPUT]))
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
    """Writes a model; of a very large one the weights go into a file beside it.

    Args:
      model: of `convert`.
      path: of the file.
    """
    import onnx

    size = sum(len(weights.raw_data) for weights in model.graph.initializer)
    onnx.save(model, path, save_as_external_data=size > _EXTERNAL_FROM, location="weights.bin")


@dataclasses.dataclass
class Graph:
    """Nodes and constants, as they are added.

    A value may have fewer numbers than it stands for: axes of size 1 in place of the whole, as long as only operations
    look at it that repeat such axes by themselves. `full` makes it whole.

    Args:
      batch: the symbolic dimension.
    """

    batch: Any
    nodes: list[Any] = dataclasses.field(default_factory=list)
    initializers: list[Any] = dataclasses.field(default_factory=list)
    _small: dict[tuple[Any, ...], str] = dataclasses.field(default_factory=dict)
    _batch_size: str = ""

    def run(self, jaxpr: Any, consts: Sequence[Value], inputs: Sequence[Value]) -> list[Value]:
        """Adds all operations of a traced function; returns its results."""
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))

        def read(atom: Any) -> Value:
            return np.asarray(atom.val, atom.aval.dtype) if hasattr(atom, "val") else values[atom]

        for equation in jaxpr.eqns:
            results = self._apply(equation, [read(atom) for atom in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _call(self, called: Any, inputs: Sequence[Value]) -> list[Value]:
        return self.run(called.jaxpr, [np.asarray(const) for const in called.consts], inputs)

    def _apply(self, equation: Any, inputs: list[Value]) -> Sequence[Value]:
        name = equation.primitive.name
        if name in _CALLS:
            return self._call(equation.params[_CALLS[name]], inputs)
        if name == "platform_index":  # which of several programs for the same: ONNX takes the one for any platform
            platforms = equation.params["platforms"]
            return [np.asarray(platforms.index(None), np.int32)]
        if name == "cond" and isinstance(inputs[0], np.ndarray):
            return self._call(equation.params["branches"][int(inputs[0])], inputs[1:])
        shapes = [atom.aval.shape for atom in equation.invars]
        whole = all(isinstance(value, np.ndarray) for value in inputs) and all(
            value.shape == shape for value, shape in zip(inputs, shapes, strict=True)
        )
        if whole and all(is_static(variable.aval.shape) for variable in equation.outvars):
            results = equation.primitive.bind(*inputs, **equation.params)
            results = results if equation.primitive.multiple_results else [results]
            return [np.asarray(result) for result in results]
        if name in ELEMENTWISE:
            return [self.add(ELEMENTWISE[name], inputs, broadcast([value.shape for value in inputs]))]
        if name not in OPERATIONS:
            raise ValueError(f"--format: got onnx for a network with the operation {name!r}, which has no translation.")
        return [OPERATIONS[name](self, equation, inputs)]

    def add(
        self, operation: str, inputs: Sequence[Value], shape: Shape, attributes: Mapping[str, Any] | None = None
    ) -> Tensor:
        """Adds one node.

        Args:
          operation: of ONNX.
          inputs: its arguments; arrays become constants.
          shape: of the result.
          attributes: by name.
        """
        import onnx

        result = f"v{len(self.nodes)}"
        self.nodes.append(
            onnx.helper.make_node(operation, [self._name(value) for value in inputs], [result], **(attributes or {}))
        )
        return Tensor(result, shape)

    def full(self, value: Value, shape: Shape) -> Tensor:
        """The value with every axis as long as it stands for.

        Args:
          shape: that it stands for.
        """
        if value.shape != shape:
            value = self.add("Expand", [value, self._shape_vector(shape)], shape)
        return value if isinstance(value, Tensor) else Tensor(self._name(value), shape)

    def reshape(self, value: Value, shape: Shape) -> Tensor:
        """The same numbers in another shape, of which at most one axis depends on the batch."""
        sizes = np.asarray([size if is_static([size]) else -1 for size in shape], np.int64)
        if (sizes < 0).sum() > 1:
            raise ValueError(f"--format: got onnx for a network with a shape {shape}, expected one free axis at most.")
        return self.add("Reshape", [value, sizes], shape)

    def _shape_vector(self, shape: Shape) -> Value:
        if is_static(shape):
            return np.asarray(shape, np.int64)
        return self.add("Concat", list(self._sizes(shape)), (len(shape),), {"axis": 0})

    def _sizes(self, shape: Shape) -> Iterator[Value]:
        for size in shape:
            if is_static([size]):
                yield np.asarray([size], np.int64)
                continue
            if not self._batch_size:
                vector = self.add("Shape", [Tensor(INPUT, ())], (1,), {"start": 0, "end": 1})
                self._batch_size = vector.name
            whole = Tensor(self._batch_size, (1,))
            yield whole if size == self.batch else self.add("Mul", [whole, np.asarray([size // self.batch])], (1,))

    def _name(self, value: Value) -> str:
        if isinstance(value, Tensor):
            return value.name
        import onnx

        value = np.ascontiguousarray(value).reshape(value.shape)  # of a scalar it would make a vector
        key = (value.dtype.str, value.shape, value.tobytes()) if value.size <= 64 else ()
        if key and key in self._small:
            return self._small[key]
        name = f"c{len(self.initializers)}"
        self.initializers.append(onnx.numpy_helper.from_array(value, name))
        if key:
            self._small[key] = name
        return name
