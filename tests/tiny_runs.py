"""A run that takes seconds, and the comparison of two runs."""

import dataclasses
import math
import pathlib
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from skipnet_jax import specs
from skipnet_jax.runs import checkpoint, workdir
from skipnet_jax.training import steps

TIMINGS = {"images_per_second"}
STEPS_PER_EPOCH = 5  # 1437 training images in batches of 256


class TinyNet(nn.Module):
    """Has the interface of the project's networks, with dropout, and compiles a hundred times faster."""

    classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Conv(8, (3, 3), strides=2, name="conv")(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x))
        x = nn.Dropout(0.1, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(self.classes, name="classifier")(x)


def make_loss_nan(patch: pytest.MonkeyPatch, bad: int) -> None:
    """Makes the loss of training step `bad` NaN, by its images."""
    prepared = steps.prepare

    def prepare(batch, step, **kwargs):
        images, targets, key = prepared(batch, step, **kwargs)
        return images * jax.numpy.where(step == bad - 1, math.nan, 1.0), targets, key

    patch.setattr(steps, "prepare", prepare)


def make_spec(**changes: Any) -> specs.TrainSpec:
    """Three epochs on the digits."""
    spec = specs.TrainSpec(
        model=specs.ModelSpec(name="skip_resnet20", num_classes=10),
        data=specs.DataSpec(name="digits", image_size=8, pad_crop=1, flip=False),
        mixing=specs.MixingSpec(cutmix_prob=0.5),
        optim=specs.OptimSpec(lr=0.05, warmup_epochs=1),
        batch_size=256,
        epochs=3,
        log_every_steps=2,
    )
    return dataclasses.replace(spec, **changes)


def use_network(patch: pytest.MonkeyPatch, network: nn.Module | None = None) -> None:
    """Trains, plans, evaluates and predicts with this network, whatever a spec names, until the patch is undone.

    Args:
      network: None = a `TinyNet` with the spec's number of classes.
    """
    for module in ("train", "plan", "runs.weights", "evaluate", "evaluation.chosen", "evaluation.predictor"):
        patch.setattr(f"skipnet_jax.{module}.build_network", lambda spec: network or TinyNet(spec.num_classes))


def last_checkpoint(path: pathlib.Path) -> tuple[int, dict[str, Any] | None, Any]:
    """Step, results and arrays of the newest checkpoint."""
    with checkpoint.open_manager(path / workdir.CHECKPOINTS, read_only=True) as manager:
        step = checkpoint.find(manager, "latest")
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        state = checkpoint.restore(manager, step, checkpoint.stored_shapes(manager, step, device))
        return step, checkpoint.results(manager, step), jax.tree.map(np.asarray, state)


def untimed(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the numbers that depend on the machine."""
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in workdir.read_metrics(path)]


def require_equal(path: pathlib.Path, expected: pathlib.Path) -> None:
    """Two runs ended with the same bits, and logged the same numbers on the way."""
    (step, results, state), (expected_step, expected_results, expected_state) = map(last_checkpoint, (path, expected))
    assert (step, results) == (expected_step, expected_results)
    assert {"params", "batch_stats", "opt_state", "step"} <= state.keys()
    jax.tree.map(np.testing.assert_array_equal, state, expected_state)
    assert untimed(path) == untimed(expected)
