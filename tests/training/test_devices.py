"""The numbers do not depend on how many devices there are: in whole runs, in runs that move, and in evaluation."""

import dataclasses
import hashlib
import os
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from skipnet_jax import specs, train
from skipnet_jax.data import pipeline, sources
from skipnet_jax.evaluation import scoring
from skipnet_jax.models import layers
from skipnet_jax.runs import signals, workdir
from skipnet_jax.training import sharding, steps

GROUP = 4  # examples; from a batch of 16 eight devices get 2 each, four get 4, two get 8: half a group, one, two
STEPS = 26  # 430 training images of three digits, in batches of 16
SPEC = specs.TrainSpec(
    model=specs.ModelSpec(name="skip_resnet20", num_classes=3),
    data=specs.DataSpec(
        name="digits", classes=(0, 1, 2), image_size=8, pad_crop=1, flip=False, lighting=0.1, rand_augment_ops=1
    ),
    mixing=specs.MixingSpec(cutmix_prob=0.4, mixup_prob=0.3, erasing_prob=0.25, label_smoothing=0.1),
    optim=specs.OptimSpec(lr=0.05, warmup_epochs=0),
    batch_size=16,
    epochs=1,
    ema_decay=0.9,
    log_every_steps=10,
)


class GroupedNet(nn.Module):
    """Has the project's batch norm, and dropout, and compiles a hundred times faster than its networks.

    It is smooth, because rounding may move the input of a ReLU across zero, where its gradient jumps.
    """

    group_size: int = GROUP
    classes: int = 3

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(8, (3, 3), strides=2, name="conv")(images)
        x = nn.gelu(layers.BatchNorm(self.group_size, name="norm")(x, train=train))
        x = nn.Dropout(0.1, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(self.classes, name="classifier")(x)


def run(path, devices, *, model=None, stop_at=None):
    """Trains on some devices, to the end or up to a step; returns the digest of each step's batch."""
    made, original = {}, pipeline.train_batches

    def batches(*args, start_step, **kwargs):
        for step, batch in enumerate(original(*args, start_step=start_step, **kwargs), start_step + 1):
            made[step] = hashlib.sha256(batch["image"].tobytes() + batch["label"].tobytes()).hexdigest()
            if step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    mesh = sharding.make_mesh(jax.devices()[:devices])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "build_network", lambda _: model or GroupedNet())
        patch.setattr(pipeline, "train_batches", batches)
        patch.setattr(sharding, "make_mesh", lambda: mesh)
        if stop_at is None:
            train.train_and_evaluate(SPEC, path)
        else:
            with pytest.raises(signals.Stopped, match=f"the last checkpoint is step {stop_at} "):
                train.train_and_evaluate(SPEC, path)
    return made


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory):
    """The workdir of a run on one device, and the digests of its batches."""
    path = tmp_path_factory.mktemp("devices") / "one"
    return path, run(path, 1)


def losses(path):
    return [(line["step"], name, line[name]) for line in workdir.read_metrics(path) for name in line if "loss" in name]


def require_same_curve(path, expected):
    for (*where, loss), (*expected_where, expected_loss) in zip(losses(path), losses(expected), strict=True):
        assert where == expected_where
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-5, err_msg=str(where))


def test_eight_devices_give_the_same_curve_as_one(on_one_device, tmp_path):
    expected, batches = on_one_device
    assert run(tmp_path, 8) == batches and len(batches) == STEPS
    require_same_curve(tmp_path, expected)


@pytest.mark.slow
def test_the_curve_depends_on_the_groups_of_batch_norm(on_one_device, tmp_path):
    """Otherwise the test above would prove nothing about groups."""
    run(tmp_path, 8, model=GroupedNet(group_size=2))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        require_same_curve(tmp_path, on_one_device[0])


@pytest.mark.slow
def test_a_run_may_move_from_two_devices_to_one_to_four(on_one_device, tmp_path):
    """The order of the examples, their augmentation and the noise continue as on one device."""
    expected, batches = on_one_device
    parts = [run(tmp_path, 2, stop_at=8), run(tmp_path, 1, stop_at=17), run(tmp_path, 4)]
    assert [(min(part), max(part)) for part in parts] == [(1, 8), (9, 17), (18, STEPS)]
    assert parts[0] | parts[1] | parts[2] == batches
    require_same_curve(tmp_path, expected)


@pytest.mark.slow
def test_results_are_equal_for_any_batch_size_and_number_of_devices():
    split = sources.load(dataclasses.replace(SPEC.data, classes=()), "test")
    model = GroupedNet(classes=10)
    variables = model.init(jax.random.key(0), jnp.zeros((GROUP, 8, 8, 3)), train=False)

    def evaluate(devices, batch_size):
        mesh = sharding.make_mesh(jax.devices()[:devices])
        state = steps.state_from_variables(variables, optax.identity(), mesh=mesh)
        eval_step = steps.make_eval_step(model, statistics=split.statistics, mesh=mesh)
        spec = dataclasses.replace(SPEC, eval_batch_size=batch_size)
        results, _ = scoring.evaluate_state(eval_step, state, split, spec, mesh)
        return results

    expected = evaluate(1, 256)
    assert expected["count"] == 360 and 0 < expected["accuracy"] < expected["top5_accuracy"] < 1
    for devices, batch_size in ((1, 100), (2, 25), (8, 64)):
        results = evaluate(devices, batch_size)
        np.testing.assert_allclose(results.pop("loss"), expected["loss"], rtol=1e-6)
        assert results.items() <= expected.items(), (devices, batch_size)
