"""The steps of a run, as the trainer takes them and as `--mode=plan` compiles them without any data."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from skipnet_jax.models import zoo
from skipnet_jax.models.initializers import abstract_variables
from skipnet_jax.optim import optimizers, schedules
from skipnet_jax.specs import DataSpec, Statistics, TrainSpec
from skipnet_jax.training import steps

Shapes = dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class RunSteps:
    """The optimiser and the two steps of a run; JAX compiles a step when it is first called.

    Args:
      optimizer: whose state `steps.TrainState` holds.
      train_step: of `steps.make_train_step`.
      eval_step: of `steps.make_eval_step`.
    """

    optimizer: optax.GradientTransformation
    train_step: Callable[..., Any]
    eval_step: Callable[..., Any]


def make_run_steps(
    model: nn.Module,
    spec: TrainSpec,
    *,
    steps_per_epoch: int,
    statistics: Statistics,
    mesh: Mesh,
    classes: tuple[int, ...] | None = None,
) -> RunSteps:
    """Makes the optimiser and the two steps of a run.

    Args:
      statistics: for normalising the images.
      classes: the only classes that evaluation may predict; None = all.

    Raises:
      UserError: a part of the batch cannot be split evenly over the devices, or into batch norm's groups.
    """
    zoo.require_trainable(spec)
    schedule = schedules.make_schedule(
        spec.optim, batch_size=spec.batch_size, epochs=spec.epochs, steps_per_epoch=steps_per_epoch
    )
    optimizer = optimizers.make_optimizer(spec.optim, schedule)
    train_step = steps.make_train_step(
        model, optimizer, schedule, spec, steps_per_epoch=steps_per_epoch, statistics=statistics, mesh=mesh
    )
    eval_step = steps.make_eval_step(model, statistics=statistics, mesh=mesh, classes=classes)
    return RunSteps(optimizer, train_step, eval_step)


def eval_batch_size(spec: TrainSpec, mesh: Mesh) -> int:
    """Examples per evaluation step: rounded up to a multiple of the number of devices; no result depends on it."""
    return -(-spec.eval_batch_size // mesh.size) * mesh.size


def abstract_state(
    model: nn.Module, optimizer: optax.GradientTransformation, image_size: int, *, average: bool
) -> steps.TrainState:
    """Shapes and types of what `steps.init_state` returns; draws nothing."""
    variables = abstract_variables(model, image_size)
    state: steps.TrainState = jax.eval_shape(
        lambda variables: steps.new_state(variables, optimizer, average=average), variables
    )
    return state


def abstract_train_batch(spec: TrainSpec) -> Shapes:
    """Shapes and types of a global batch of `pipeline.train_batches`."""
    batch = {"image": _images(spec.data, spec.batch_size), "label": _vector(spec.batch_size, jnp.int32)}
    if spec.data.lighting:
        batch["lighting"] = jax.ShapeDtypeStruct((spec.batch_size, 3), jnp.float32)
    return batch


def abstract_eval_batch(spec: TrainSpec, mesh: Mesh) -> Shapes:
    """Shapes and types of a global batch of `pipeline.eval_batches`, for data with one label per image."""
    size = eval_batch_size(spec, mesh)
    return {"image": _images(spec.data, size), "label": _vector(size, jnp.int32), "mask": _vector(size, jnp.bool_)}


def _images(data: DataSpec, batch_size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch_size, data.image_size, data.image_size, 3), jnp.uint8)


def _vector(size: int, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((size,), dtype)
