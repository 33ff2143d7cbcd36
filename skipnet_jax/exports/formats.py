"""The formats of exports: how each is written and read.

    orbax           parameters and statistics alone, as a workdir: to evaluate, to start from, to use in Python
    stablehlo       a program for CPU, CUDA and TPU in one file, by `jax.export`
    savedmodel      a program for TensorFlow and its servers
    onnx            a program for ONNX Runtime and others that read ONNX
    safetensors     the parameters under the names of the original, for PyTorch

Programs hold their parameters, take normalised float32 images [b, h, w, 3] for any b, and return float32 logits [b, k].
"""

import dataclasses
import functools
import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import export
from jaxlib.mlir.dialects import stablehlo
from jaxtyping import Array, Float, Float32, PyTree

from skipnet_jax import files
from skipnet_jax.errors import UserError
from skipnet_jax.exports import INPUT, OUTPUT, onnx_convert
from skipnet_jax.interop import checkpoint_files, torch_weights
from skipnet_jax.models import build_network
from skipnet_jax.models.network import Network
from skipnet_jax.runs import checkpoint
from skipnet_jax.runs import workdir as workdirs
from skipnet_jax.runs.weights import NO_RESULTS, Weights, load
from skipnet_jax.specs import ModelSpec

STABLEHLO, ONNX, SAFETENSORS = "network.stablehlo", "network.onnx", "network.safetensors"
PLATFORMS = ("cpu", "cuda", "tpu")
STABLEHLO_VERSION = "1.0.0"  # every later reader accepts it for five years: openxla.org/stablehlo/compatibility

Program = Callable[[Float32[np.ndarray, "b h w 3"]], Any]  # from normalised images to logits


@dataclasses.dataclass(frozen=True)
class Format:
    """How a format is written and read.

    Args:
      write: takes the workdir, its weights as they were trained, and an existing folder to write into.
      read: takes the folder and the settings in export.json, and returns the program.
      libraries: those that the project itself does not need.
    """

    write: Callable[[epath.Path, Weights, pathlib.Path], None]
    read: Callable[[epath.Path, ModelSpec], Program]
    libraries: tuple[str, ...] = ()


def in_float32(trained: Weights) -> Weights:
    """The same weights in float32, for a network that computes in float32 and has no backward pass.

    They are NumPy arrays, which JAX puts on whichever device computes.
    """
    model = dataclasses.replace(trained.spec.model, dtype="float32", remat=False)
    arrays = jax.tree.map(lambda array: np.asarray(array, np.float32), trained.variables)
    return trained._replace(spec=dataclasses.replace(trained.spec, model=model), variables=arrays)


def _apply(model: Network, variables: PyTree, images: Float[Array, "b h w 3"]) -> Float[Array, "b k"]:
    """The program that all formats hold."""
    logits: Any = model.apply(jax.tree.map(jnp.asarray, variables), images, train=False)
    return logits.astype(jnp.float32)


def _program(trained: Weights) -> Callable[[Float[Array, "b h w 3"]], Float[Array, "b k"]]:
    weights = in_float32(trained)
    return functools.partial(_apply, build_network(weights.spec.model), weights.variables)


def _write_orbax(workdir: epath.Path, trained: Weights, folder: pathlib.Path) -> None:
    """Writes a workdir with one checkpoint, which has neither an optimiser state nor an average."""
    for name in (workdirs.DATA, workdirs.MODEL):
        if (workdir / name).exists():
            (folder / name).write_bytes((workdir / name).read_bytes())
    if not (folder / workdirs.MODEL).exists():
        config = files.read_json(workdir / workdirs.CONFIG) | {"ema_decay": 0.0}
        files.write_json(folder / workdirs.CONFIG, config)
    state = {"step": jnp.asarray(trained.step, jnp.int32), "params": {}, "batch_stats": {}} | trained.variables
    with checkpoint.open_manager(epath.Path(folder / workdirs.CHECKPOINTS)) as manager:
        checkpoint.save(manager, trained.step, state, NO_RESULTS)


def _read_orbax(folder: epath.Path, spec: ModelSpec) -> Program:
    return jax.jit(_program(load(folder)))


def _write_stablehlo(workdir: epath.Path, trained: Weights, folder: pathlib.Path) -> None:
    [batch] = export.symbolic_shape("b")
    size = trained.spec.data.image_size
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    exported = export.export(jax.jit(_program(trained)), platforms=PLATFORMS)(images)
    (folder / STABLEHLO).write_bytes(exported.serialize())


def _read_stablehlo(folder: epath.Path, spec: ModelSpec) -> Program:
    return jax.jit(export.deserialize(bytearray((folder / STABLEHLO).read_bytes())).call)


def _write_saved_model(workdir: epath.Path, trained: Weights, folder: pathlib.Path) -> None:
    """Writes one signature, from images to logits. It needs neither JAX nor this project to run.

    JAX's own `jax2tf` is deprecated, and always writes the newest version of StableHLO. TensorFlow lags behind JAX, and
    would refuse such a program.
    """
    import tensorflow as tf
    from tensorflow.compiler.tf2xla.python import xla  # no public name calls a StableHLO program

    weights = in_float32(trained)
    [batch] = export.symbolic_shape("b")
    size = trained.spec.data.image_size
    arguments = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), weights.variables)
    program = jax.jit(functools.partial(_apply, build_network(weights.spec.model)))
    exported = export.export(program, platforms=PLATFORMS)(
        arguments, jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    )
    module = tf.Module()
    # As variables of the model, the weights lie in its variable files and not in the program.
    module.weights = tf.nest.map_structure(lambda array: tf.Variable(array, trainable=False), weights.variables)

    def run(images: Any) -> dict[str, Any]:
        values = [*tf.nest.flatten(module.weights), images]
        [logits] = xla.call_module(
            [values[index] for index in exported.module_kept_var_idx],
            version=exported.calling_convention_version,
            module=stablehlo.serialize_portable_artifact_str(exported.mlir_module(), STABLEHLO_VERSION),
            Sout=[[None, *exported.out_avals[0].shape[1:]]],
            Tout=[tf.float32],
            platforms=[platform.upper() for platform in PLATFORMS],
            has_token_input_output=False,
        )
        return {OUTPUT: logits}

    signature = [tf.TensorSpec([None, size, size, 3], tf.float32, name=INPUT)]
    module.run = tf.function(run, input_signature=signature, autograph=False)
    tf.saved_model.save(module, str(folder), signatures=module.run)


def _read_saved_model(folder: epath.Path, spec: ModelSpec) -> Program:
    import tensorflow as tf

    model = tf.saved_model.load(str(folder))

    def run(images: Any) -> Any:
        return model.signatures["serving_default"](**{INPUT: tf.constant(images)})[OUTPUT].numpy()

    return run


def _write_onnx(workdir: epath.Path, trained: Weights, folder: pathlib.Path) -> None:
    onnx_convert.save(onnx_convert.convert(_program(trained), trained.spec.data.image_size), str(folder / ONNX))


def _read_onnx(folder: epath.Path, spec: ModelSpec) -> Program:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / ONNX), providers=["CPUExecutionProvider"])
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]


def _write_safetensors(workdir: epath.Path, trained: Weights, folder: pathlib.Path) -> None:
    name = trained.spec.model.name
    state_dict = torch_weights.to_state_dict(name, in_float32(trained).variables)
    checkpoint_files.write(folder / SAFETENSORS, state_dict, name)


def _read_safetensors(folder: epath.Path, spec: ModelSpec) -> Program:
    state_dict = checkpoint_files.read(str(folder / SAFETENSORS)).state_dict
    variables = torch_weights.from_state_dict(spec.name, state_dict, num_classes=spec.num_classes)
    return jax.jit(functools.partial(_apply, build_network(spec), variables))


FORMATS = {
    "orbax": Format(_write_orbax, _read_orbax),
    "stablehlo": Format(_write_stablehlo, _read_stablehlo),
    "savedmodel": Format(_write_saved_model, _read_saved_model),
    "onnx": Format(_write_onnx, _read_onnx, ("onnx", "onnxruntime")),
    "safetensors": Format(_write_safetensors, _read_safetensors, ("safetensors",)),
}


def require_libraries(format: str) -> None:
    """Checks that the libraries of a format are installed.

    Raises:
      UserError: one is missing; the message says how to install it.
    """
    missing = [library for library in FORMATS[format].libraries if importlib.util.find_spec(library) is None]
    if missing:
        expected = f"{' and '.join(missing)} to be installed, which this format needs"
        raise UserError("format", format, expected, 'Run: pip install -e ".[export]"')
