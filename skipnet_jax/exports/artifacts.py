"""Exported networks, read back and run.

    artifact = load_artifact("runs/digits/export/onnx")
    artifact.logits(np.stack([load_image(file, artifact.preprocessing) for file in files]))

An exported folder holds the network in the form of its format, and

    preprocessing.json      how images are made, and what the classes are called
    export.json             which network, of which checkpoint, and how far its logits are from the original's

All of them compute in float32, whatever the run did.
"""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Float32, PyTree, UInt8

from skipnet_jax import files
from skipnet_jax.evaluation import preprocessing as preprocess
from skipnet_jax.evaluation.predictor import Predictor, load_workdir
from skipnet_jax.evaluation.preprocessing import Preprocessing
from skipnet_jax.exports import onnx_graph, saved_model
from skipnet_jax.interop import checkpoint_files, torch_weights
from skipnet_jax.models import build_network
from skipnet_jax.runs import workdir
from skipnet_jax.specs import ModelSpec

RECORD = "export.json"
STABLEHLO, ONNX, SAFETENSORS = "network.stablehlo", "network.onnx", "network.safetensors"
# Format -> what it needs beyond the project's own requirements.
NEEDS: dict[str, tuple[str, ...]] = {
    "orbax": (),
    "stablehlo": (),
    "savedmodel": (),
    "onnx": ("onnx", "onnxruntime"),
    "safetensors": ("safetensors",),
}

Run = Callable[[Float32[np.ndarray, "b h w 3"]], Any]


@dataclasses.dataclass(frozen=True)
class Artifact:
    """An exported network, which can be used wherever a `Predictor` can.

    Args:
      format: of the export.
      preprocessing: how its images are made and its classes called.
      run: from normalised images to logits.
    """

    format: str
    preprocessing: Preprocessing
    run: Run

    def logits(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float32[np.ndarray, "b k"]:
        """Classifies images as `preprocessing.load_image` makes them.

        Raises:
          ValueError: they are of another size, or there are none.
        """
        size = self.preprocessing.image_size
        if not len(images) or images.shape[1:] != (size, size, 3):
            raise ValueError(f"images: got {list(images.shape)}, expected [b, {size}, {size}, 3] with b >= 1.")
        logits = np.asarray(self.run(preprocess.normalize(images, self.preprocessing)), np.float32)
        if logits.shape != (len(images), len(self.preprocessing.class_names)):
            names = len(self.preprocessing.class_names)
            raise ValueError(
                f"{preprocess.FILE}: got {names} class_names for logits {list(logits.shape)}, expected one name per "
                f"class. Export the network again."
            )
        return logits


def load_artifact(path: epath.PathLike) -> Artifact:
    """Reads what `--mode=export` wrote, of any format.

    Args:
      path: the folder, local.

    Raises:
      ValueError: it is none, is damaged, or needs a library that is not installed.
    """
    folder = workdir.locate(path)
    record = read_record(folder)
    require_libraries(record["format"])
    told = folder / preprocess.FILE
    if not told.exists():
        raise ValueError(f"{folder}: got no {preprocess.FILE}, expected one beside {RECORD}. Export the network again.")
    made = Preprocessing.from_json(told.read_bytes())
    if made.model != record["network"]["name"]:
        raise ValueError(
            f"{told}: got model={made.model!r}, expected {record['network']['name']!r} as in {RECORD}. Export the "
            f"network again."
        )
    return Artifact(record["format"], made, _read(folder, record))


def read_record(folder: epath.Path) -> dict[str, Any]:
    """What export.json tells.

    Raises:
      ValueError: there is none, or it is something else.
    """
    file = folder / RECORD
    if not file.exists():
        raise ValueError(
            f"{folder}: got no {RECORD}, expected an exported folder. Make one: python -m skipnet_jax.main "
            f"--mode=export --workdir=WORKDIR --format=onnx."
        )
    record = files.read_json(file)
    whole = isinstance(record, dict) and isinstance(record.get("network"), dict) and "name" in record["network"]
    if not whole or record.get("format") not in NEEDS:
        raise ValueError(f"{file}: got other JSON, expected what an export wrote. Export the network again.")
    return record


def require_libraries(name: str) -> None:
    """Raises unless the libraries of a format are installed.

    Args:
      name: of the format.

    Raises:
      ValueError: one is missing; the message says how to install it.
    """
    missing = [library for library in NEEDS[name] if importlib.util.find_spec(library) is None]
    if missing:
        raise ValueError(
            f"--format: got {name}, expected {' and '.join(missing)} to be installed, which it needs. "
            f'Run: pip install -e ".[export]"'
        )


def in_float32(predictor: Predictor) -> Predictor:
    """The same network with parameters and computation in float32, on whichever device it is used."""
    arrays = jax.tree.map(lambda array: np.asarray(array, np.float32), predictor.variables)
    model: Any = predictor.model  # a Network
    model = model.clone(spec=dataclasses.replace(model.spec, dtype="float32"))
    return dataclasses.replace(predictor, model=model, variables=arrays)


def apply(model: nn.Module, variables: PyTree, images: Float[Array, "b h w 3"]) -> Float[Array, "b k"]:
    """What is exported: from normalised images to logits."""
    logits: Any = model.apply(jax.tree.map(jnp.asarray, variables), images, train=False)
    return logits.astype(jnp.float32)


def _read(folder: epath.Path, record: Mapping[str, Any]) -> Run:
    try:
        return _READERS[record["format"]](folder, record)
    except ValueError:
        raise
    except Exception as error:  # each library has its own ways to say that a file is missing or broken
        told = str(error).strip().splitlines()
        raise ValueError(
            f"{folder}: got a {record['format']} export that cannot be read ({told[0] if told else error!r}), expected "
            f"whole files. Export the network again."
        ) from error


def _read_orbax(folder: epath.Path, record: Mapping[str, Any]) -> Run:
    read = in_float32(load_workdir(folder))
    return jax.jit(lambda images: apply(read.model, read.variables, images))


def _read_stablehlo(folder: epath.Path, record: Mapping[str, Any]) -> Run:
    from jax import export

    return jax.jit(export.deserialize(bytearray((folder / STABLEHLO).read_bytes())).call)


def _read_saved_model(folder: epath.Path, record: Mapping[str, Any]) -> Run:
    return saved_model.load(str(folder))


def _read_onnx(folder: epath.Path, record: Mapping[str, Any]) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / ONNX), providers=["CPUExecutionProvider"])
    return lambda images: session.run([onnx_graph.OUTPUT], {onnx_graph.INPUT: images})[0]


def _read_safetensors(folder: epath.Path, record: Mapping[str, Any]) -> Run:
    network = record["network"]
    state_dict = checkpoint_files.read(str(folder / SAFETENSORS)).state_dict
    variables = torch_weights.from_state_dict(network["name"], state_dict, num_classes=network["num_classes"])
    model = build_network(ModelSpec(**network))
    return jax.jit(lambda images: apply(model, variables, images))


_READERS: dict[str, Callable[[epath.Path, Mapping[str, Any]], Run]] = {
    "orbax": _read_orbax,
    "stablehlo": _read_stablehlo,
    "savedmodel": _read_saved_model,
    "onnx": _read_onnx,
    "safetensors": _read_safetensors,
}
