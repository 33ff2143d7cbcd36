"""Weights in a workdir: of a run, or converted from elsewhere.

A converted workdir holds checkpoints like a run's, and in place of the run's config

    model.json     the network, its number of classes, and where its weights are from
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
from etils import epath

from skipnet_jax import checkpoint, json_files, workdir
from skipnet_jax.interop.torch_weights import variable_shapes
from skipnet_jax.models import model_info
from skipnet_jax.specs import DataSpec, MixingSpec, ModelSpec, OptimSpec, TrainSpec

MODEL = "model.json"

# Every checkpoint carries the results of its network. These weights have not been evaluated here.
NO_RESULTS = {"accuracy": float("nan")}


@dataclasses.dataclass(frozen=True)
class Origin:
    """What model.json tells.

    Args:
      name, num_classes: of the network.
      source: the file that the weights are from.
      fresh: the arrays that the file does not cover, joined with slashes: they hold random initial numbers.
    """

    name: str
    num_classes: int
    source: str
    fresh: tuple[str, ...] = ()


def save(path: epath.PathLike, origin: Origin, variables: Mapping[str, Any]) -> None:
    """Writes a converted workdir, with one checkpoint of step 0 that has no optimizer's state.

    Args:
      path: a new or empty folder, local or in a bucket.
      origin: of the weights.
      variables: "params" and, where the network has any, "batch_stats".

    Raises:
      ValueError: the folder holds something, or cannot be written.
    """
    directory = workdir.locate(path)
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise ValueError(
            f"--workdir: got {path}, which is there already, expected a new folder. Choose another --workdir."
        )
    state = {
        "step": jnp.zeros((), jnp.int32),
        "params": variables["params"],
        "batch_stats": variables.get("batch_stats", {}),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with checkpoint.open_manager(directory / workdir.CHECKPOINTS) as manager:
            checkpoint.save(manager, 0, state, NO_RESULTS)
        json_files.write(directory / MODEL, dataclasses.asdict(origin))
    except OSError as error:
        raise ValueError(
            f"--workdir: got {path}, which cannot be written ({error.strerror or error}), expected a folder that can."
        ) from error


def read_spec(path: epath.PathLike) -> TrainSpec:
    """The config of a run, or of the published run of converted weights, as far as evaluation asks for it.

    Weights from elsewhere tell neither their data nor their classes: those of the published tables are meant.

    Args:
      path: the workdir.

    Raises:
      ValueError: the folder is neither, or what it says of itself cannot be read.
    """
    directory = workdir.locate(path)
    if not (directory / MODEL).exists():
        return workdir.read_spec(directory)
    name, num_classes = _read_network(directory / MODEL)
    image_size = model_info(name).image_size
    cifar = "cifar10" if num_classes == 10 else "cifar100"
    data = DataSpec(name=cifar if image_size == 32 else "imagenet2012", image_size=image_size)
    return TrainSpec(ModelSpec(name, num_classes), data, MixingSpec(), OptimSpec(), batch_size=1, epochs=1)


def load(path: epath.PathLike, which: str = "best") -> tuple[str, dict[str, Any]]:
    """Reads the weights of a run's workdir or of a converted one, onto the first device.

    Args:
      path: the workdir.
      which: best (by validation accuracy), latest, or a step.

    Returns:
      Name of the network, and {"params": ..., "batch_stats": ...} for `model.apply`.

    Raises:
      ValueError: the folder is neither, has no such checkpoint, or the checkpoint is of another network.
    """
    directory = workdir.locate(path)
    if (directory / MODEL).exists():
        name, num_classes = _read_network(directory / MODEL)
    else:
        model = workdir.read_spec(directory).model
        if model.gate_reduction or model.dtype == "float64":
            raise ValueError(
                f"{directory}: got model.gate_reduction={model.gate_reduction} and model.dtype={model.dtype}, expected "
                f"the network's own gate_reduction (0) and parameters in float32, which alone have a form in torch."
            )
        name, num_classes = model.name, model.num_classes
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = flax.traverse_util.unflatten_dict(
        {
            key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
            for key, leaf in variable_shapes(name, num_classes).items()
        }
    )
    with checkpoint.open_manager(directory / workdir.CHECKPOINTS, read_only=True) as manager:
        step = checkpoint.find(manager, which)
        return name, checkpoint.restore(manager, step, shapes)


def _read_network(file: epath.Path) -> tuple[str, int]:
    """Name and number of classes, of model.json."""
    told = json_files.read(file)
    if not isinstance(told, dict) or type(told.get("name")) is not str or type(told.get("num_classes")) is not int:
        raise ValueError(
            f"{file}: got no name and num_classes of a network, expected what scripts/convert_torch.py writes. Convert "
            f"the weights again."
        )
    if not 0 < told["num_classes"] < 2**31:
        raise ValueError(
            f"{file}: got num_classes {told['num_classes']}, expected at least 1. Convert the weights again."
        )
    return told["name"], told["num_classes"]
