"""Weights in a workdir: of a run, or converted from elsewhere.

A converted workdir holds checkpoints like a run's, and in place of the run's config

    model.json     the network, its number of classes, and where its weights are from
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath

from skipnet_jax import files
from skipnet_jax.errors import UserError
from skipnet_jax.models import abstract_variables, build_network, model_info
from skipnet_jax.runs import checkpoint, workdir
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
      UserError: the folder holds something, or cannot be written.
    """
    directory = workdir.locate(path)
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise UserError("workdir", f"{path}, which exists", "a new or empty folder", "Choose another `workdir`.")
    state = {
        "step": jnp.zeros((), jnp.int32),
        "params": variables["params"],
        "batch_stats": variables.get("batch_stats", {}),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with checkpoint.open_manager(directory / workdir.CHECKPOINTS) as manager:
            checkpoint.save(manager, 0, state, NO_RESULTS)
        files.write_json(directory / MODEL, dataclasses.asdict(origin))
    except OSError as error:
        raise UserError(
            "workdir", f"{path}, which cannot be written ({error.strerror or error})", "a folder that can be written"
        ) from error


def read_spec(path: epath.PathLike) -> TrainSpec:
    """The config of a run, or of the published run of converted weights, as far as evaluation asks for it.

    Weights from elsewhere tell neither their data nor their classes: those of the published tables are meant.

    Args:
      path: the workdir.

    Raises:
      UserError: the folder is neither, or what it says of itself cannot be read.
    """
    directory = workdir.locate(path)
    if not (directory / MODEL).exists():
        return workdir.read_spec(directory)
    name, num_classes = _read_network(directory / MODEL)
    image_size = model_info(name).image_size
    cifar = "cifar10" if num_classes == 10 else "cifar100"
    data = DataSpec(name=cifar if image_size == 32 else "imagenet2012", image_size=image_size)
    return TrainSpec(ModelSpec(name, num_classes), data, MixingSpec(), OptimSpec(), batch_size=1, epochs=1)


class Weights(NamedTuple):
    """The weights of a checkpoint.

    Args:
      spec: of the run, or `read_spec`'s for converted weights.
      step: of the checkpoint.
      variables: {"params": ..., "batch_stats": ...} for `model.apply`.
      averaged: the variables are the run's moving average.
    """

    spec: TrainSpec
    step: int
    variables: dict[str, Any]
    averaged: bool


def load(
    path: epath.PathLike,
    which: str = "best",
    *,
    averaged: bool | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> Weights:
    """Reads the weights of a run's workdir or of a converted one: the one way from disk to weights.

    Args:
      path: the workdir, local or gs://...
      which: best (by validation accuracy), latest, or a step.
      averaged: True = the moving average, False = the parameters beside it, None = the average where the run keeps one.
      sharding: where the arrays go; None = the first device.

    Raises:
      UserError: the folder is no workdir or has no such checkpoint, or the checkpoint is of another network.
      DamagedError: the checkpoint cannot be read.
    """
    directory = workdir.locate(path)
    spec = read_spec(directory)
    averaged = spec.ema_decay > 0 if averaged is None else averaged
    variables = abstract_variables(build_network(spec.model), spec.data.image_size)
    place = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})},
    )
    with checkpoint.open_manager(directory / workdir.CHECKPOINTS, read_only=True) as manager:
        step = checkpoint.find(manager, which)
        if averaged:
            return Weights(spec, step, checkpoint.restore(manager, step, {"average": target})["average"], True)
        return Weights(spec, step, checkpoint.restore(manager, step, target), False)


def _read_network(file: epath.Path) -> tuple[str, int]:
    """Name and number of classes, of model.json."""
    told = files.read_record(file, {"name": str, "num_classes": int}, mend="Convert the weights again.")
    if not 0 < told["num_classes"] < 2**31:
        raise UserError(f"{file}", f"num_classes {told['num_classes']}", "at least 1", "Convert the weights again.")
    return told["name"], told["num_classes"]
