"""Reads the weights of a run or converted ones, and writes converted ones. `load` is the only way to read them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath

from skipnet_jax import files
from skipnet_jax.errors import UserError
from skipnet_jax.interop.hub_config import UNKNOWN, Preparation
from skipnet_jax.models import abstract_variables, build_network
from skipnet_jax.runs import checkpoint
from skipnet_jax.runs import workdir as workdirs
from skipnet_jax.specs import TrainSpec

# A checkpoint without progress needs results (`checkpoint_damage`); these are for weights that nobody evaluated here.
NO_RESULTS = {"accuracy": float("nan")}


class Weights(NamedTuple):
    """The weights of a checkpoint.

    Args:
      spec: as `workdir.read_spec` gives it.
      variables: {"params": ..., "batch_stats": ...} for `model.apply`.
      averaged: whether the variables are the run's moving average.
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
    """Reads the weights in a workdir, of a run or converted.

    Args:
      path: local or gs://...
      which: best (by validation accuracy), latest, or a step.
      averaged: True = the moving average, False = the parameters beside it, None = the average if the run keeps one.
      sharding: where to put the arrays; None = on the first device.

    Raises:
      UserError: the folder is no workdir, has no such checkpoint, or the checkpoint is of another network.
      DamagedError: the checkpoint cannot be read.
    """
    workdir = workdirs.locate(path)
    spec = workdirs.read_spec(workdir)
    averaged = spec.ema_decay > 0 if averaged is None else averaged
    variables = abstract_variables(build_network(spec.model), spec.data.image_size)
    place = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})},
    )
    step, read = checkpoint.read(workdir / workdirs.CHECKPOINTS, which, {"average": target} if averaged else target)
    return Weights(spec, step, read["average"] if averaged else read, averaged)


@dataclasses.dataclass(frozen=True)
class Origin:
    """The content of model.json.

    Args:
      name: of the network, as in `models.list_models`.
      num_classes: width of the classifier.
      source: the file that the weights come from.
      fresh: arrays that the file does not have, as paths with slashes: they hold random initial numbers.
      preparation: how images were prepared for the weights, as far as that is known.
      class_names: in the order of the logits; empty = unknown. They go into data.json.
    """

    name: str
    num_classes: int
    source: str
    fresh: tuple[str, ...] = ()
    preparation: Preparation = UNKNOWN
    class_names: tuple[str, ...] = ()


def require_new(path: epath.PathLike) -> epath.Path:
    """Checks that a folder is new or empty, and returns its absolute path.

    Raises:
      UserError: it is not, or a checkpoint there could not be read.
    """
    workdirs.require_plain(path)
    workdir = workdirs.locate(path)
    if workdir.exists() and not (workdir.is_dir() and not any(workdir.iterdir())):
        raise UserError("workdir", f"{path}, which exists", "a new or empty folder", "Choose another `workdir`.")
    return workdir


def save(path: epath.PathLike, origin: Origin, variables: Mapping[str, Any]) -> None:
    """Writes converted weights as a workdir with one checkpoint, of step 0 and without an optimiser's state.

    Args:
      path: a new or empty folder, local or gs://...
      variables: "params" and, if the network has any, "batch_stats".

    Raises:
      UserError: the folder is not empty, or cannot be written.
    """
    workdir = require_new(path)
    state = {"step": jnp.zeros((), jnp.int32), "params": variables["params"], "batch_stats": {}, **variables}
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with checkpoint.open_manager(workdir / workdirs.CHECKPOINTS) as manager:
            checkpoint.save(manager, 0, state, NO_RESULTS)
        record = dataclasses.asdict(origin)
        names = record.pop("class_names")
        record |= {name: value for name, value in record.pop("preparation").items() if value is not None}
        if names:
            files.write_json(workdir / workdirs.DATA, {"class_names": names, "training_images": 0})
        files.write_json(workdir / workdirs.MODEL, record)
    except OSError as error:
        raise files.unwritable("workdir", path, error) from error
