"""Numbers do not depend on how many devices there are: whole runs, runs that move, and exact evaluation."""

import dataclasses
import hashlib
import os
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax import specs, train
from skipnet_jax.data import pipeline, sources
from skipnet_jax.evaluation import scoring
from skipnet_jax.models import layers
from skipnet_jax.runs import signals, workdir
from skipnet_jax.training import sharding, steps

GROUP = 4  # examples; of a batch of 16, eight devices hold 2 each, four 4, two 8: less than a group, one, two
STEPS = 89  # 1437 // 16
SPEC = specs.TrainSpec(
    model=specs.ModelSpec(name="skip_resnet20", num_classes=10),
    data=specs.DataSpec(name="digits", image_size=8, pad_crop=1, flip=False, lighting=0.1, rand_augment_ops=1),
    mixing=specs.MixingSpec(cutmix_prob=0.4, mixup_prob=0.3, erasing_prob=0.25, label_smoothing=0.1),
    optim=specs.OptimSpec(lr=0.05, warmup_epochs=0),
    batch_size=16,
    epochs=1,
    ema_decay=0.9,
    log_every_steps=10,
)


class GroupedNet(nn.Module):
    """The project's batch norm at a hundredth of its networks' compile time, with dropout.

    Smooth: rounding may move the input of a ReLU across zero, which is no rounding of its gradient.
    """

    group_size: int = GROUP

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(8, (3, 3), strides=2, name="conv")(images)
        x = nn.gelu(layers.BatchNorm(self.group_size, name="norm")(x, train=train))
        x = nn.Dropout(0.1, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(10, name="classifier")(x)


def run(path, devices, *, model=None, stop_at=None):
    """Trains on so many devices, up to a step or to the end; returns the digest of each batch, by step."""
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


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_any_number_of_devices_gives_the_same_curve(on_one_device, tmp_path, devices):
    expected, batches = on_one_device
    assert run(tmp_path, devices) == batches and len(batches) == STEPS
    require_same_curve(tmp_path, expected)


def test_the_groups_of_batch_norm_do_matter(on_one_device, tmp_path):
    """Or the test above would prove nothing of them."""
    run(tmp_path, 8, model=GroupedNet(group_size=2))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        require_same_curve(tmp_path, on_one_device[0])


def test_a_run_may_move_from_two_devices_to_one_to_four(on_one_device, tmp_path):
    """The order of the examples, their augmentation and the noise go on as if it had not moved."""
    expected, batches = on_one_device
    parts = [run(tmp_path, 2, stop_at=33), run(tmp_path, 1, stop_at=58), run(tmp_path, 4)]
    assert [(min(part), max(part)) for part in parts] == [(1, 33), (34, 58), (59, STEPS)]
    assert parts[0] | parts[1] | parts[2] == batches
    require_same_curve(tmp_path, expected)


def test_counts_are_equal_for_any_batch_size_and_number_of_devices():
    source = sources.load(SPEC.data, "test")
    model = GroupedNet()
    variables = model.init(jax.random.key(0), jnp.zeros((GROUP, 8, 8, 3)), train=False)
    found = {}
    for devices in (1, 2, 4, 8):
        mesh = sharding.make_mesh(jax.devices()[:devices])
        eval_step = steps.make_eval_step(model, statistics=source.statistics, mesh=mesh)
        state = steps.TrainState(step=0, opt_state={}, **sharding.replicate(variables, mesh))
        for batch_size in (1, 7, 64, 256):
            spec = dataclasses.replace(SPEC, eval_batch_size=batch_size)
            found[devices, batch_size], _ = scoring.evaluate_state(eval_step, state, source, spec, mesh)
    expected = found[1, 256]
    assert expected["count"] == 360 and 0 < expected["accuracy"] < expected["top5_accuracy"] < 1
    for where, results in found.items():
        for name in ("accuracy", "top5_accuracy", "count"):
            assert results[name] == expected[name], where
        np.testing.assert_allclose(results["loss"], expected["loss"], rtol=1e-6)
