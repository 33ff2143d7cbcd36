"""Runs whose numbers are no longer finite."""

import dataclasses
import json
import math
import pathlib
import re
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from skipnet_jax import errors, specs
from skipnet_jax.data import pipeline, sources
from skipnet_jax.runs import divergence, events, workdir
from skipnet_jax.training import steps

ROOT = pathlib.Path(__file__).parents[2]
SPEC = specs.TrainSpec(
    model=specs.ModelSpec(name="skip_resnet20", num_classes=10, dtype="bfloat16"),
    data=specs.DataSpec(name="digits", image_size=8, pad_crop=1),
    mixing=specs.MixingSpec(),
    optim=specs.OptimSpec(lr=0.3, warmup_epochs=2),
    batch_size=4,
    epochs=1,
)
GOOD = {"loss": 2.5, "grad_norm": 7.0, "learning_rate": 0.125, "count": 4}


def batch_of(step):
    return {"image": np.full((4, 8, 8, 3), step, np.uint8), "label": np.full(4, step, np.int32)}


@pytest.fixture
def guard(tmp_path):
    def batches_from(step):
        while True:
            step += 1
            yield batch_of(step)

    return divergence.Guard(
        SPEC, epath.Path(tmp_path), batches_from=batches_from, saved=lambda: "the last checkpoint is step 5 (epoch 1)"
    )


def test_finite_numbers_pass(guard, tmp_path):
    guard.check_steps([GOOD, GOOD], 7)
    guard.check_results({"accuracy": 0.5, "loss": 1e30}, 7)
    guard.check_state(steps.TrainState(jnp.asarray(7), {"w": jnp.ones(3)}, {}, ()), 7)
    assert not list(tmp_path.iterdir())


def test_the_first_bad_step_of_several_is_named_with_its_rate_norm_and_batch(guard, tmp_path):
    bad = {**GOOD, "loss": math.inf, "grad_norm": 9.0}
    with pytest.raises(errors.DivergedError) as error:
        guard.check_steps([GOOD, bad, {**GOOD, "loss": math.nan}], 9)
    text = str(error.value)
    file = tmp_path / "nonfinite_step_8.npz"
    assert "at step 8 got loss inf (learning rate 0.125, gradient norm 9)" in text
    assert str(file) in text and "the last checkpoint is step 5 (epoch 1)" in text
    for remedy in ("`optim.lr` (now 0.3)", "`optim.warmup_epochs`, now 2", "`model.dtype`=float32"):
        assert remedy in text
    assert "`on_nonfinite`=skip `allow_change`=on_nonfinite" in text
    with np.load(file, allow_pickle=False) as report:
        assert (report["step"], report["loss"], report["grad_norm"]) == (8, math.inf, 9.0)
        assert report["learning_rate"] == 0.125
        for name, array in batch_of(8).items():
            np.testing.assert_array_equal(report[name], array)
            assert report[name].dtype == array.dtype


def test_a_full_disk_does_not_hide_that_training_diverged(guard, tmp_path):
    (tmp_path / "nonfinite_step_3.npz").symlink_to("/dev/full")
    with pytest.raises(errors.DivergedError, match=r"at step 3 got loss nan .*; the disk has no room for its batch; "):
        guard.check_steps([{**GOOD, "loss": math.nan}], 3)
    assert not list(tmp_path.iterdir())


def test_a_gradient_that_is_not_finite_is_found_behind_a_finite_loss(guard):
    with pytest.raises(errors.DivergedError, match=r"at step 3 got gradient norm nan \(learning rate 0.125\)"):
        guard.check_steps([{**GOOD, "grad_norm": math.nan}], 3)


def test_a_bad_result_of_the_evaluation_is_reported_with_the_last_step(guard, tmp_path):
    guard.check_steps([GOOD], 10)
    with pytest.raises(
        errors.DivergedError, match=r"at step 10 got test loss nan \(learning rate 0.125, gradient norm"
    ):
        guard.check_results({"accuracy": 0.1, "loss": math.nan}, 10)
    with np.load(tmp_path / "nonfinite_step_10.npz", allow_pickle=False) as report:
        assert math.isnan(report["test_loss"]) and report["test_accuracy"] == 0.1
    with pytest.raises(errors.DivergedError, match="at step 10 got holdout loss nan"):
        guard.check_results({"held_out": 5, "loss": math.nan}, 10)


def test_a_run_that_skips_already_is_not_told_to(guard, tmp_path):
    skipping = dataclasses.replace(SPEC, on_nonfinite="skip")
    guard = divergence.Guard(skipping, epath.Path(tmp_path), batches_from=lambda _: iter([batch_of(1)]), saved=str)
    with pytest.raises(errors.DivergedError) as error:
        guard.check_results({"loss": math.nan}, 1)
    assert "on_nonfinite" not in str(error.value)


@pytest.mark.parametrize("field", ["params", "batch_stats", "opt_state", "average"])
def test_a_bad_number_anywhere_in_the_state_is_found(guard, field):
    state = steps.TrainState(jnp.asarray(7), {"w": jnp.ones(3)}, {"m": jnp.ones(2)}, (), {"w": jnp.ones(2)})
    guard.check_state(state, 7)
    with pytest.raises(errors.DivergedError, match="at step 7 got a parameter or statistic nan"):
        guard.check_state(state.replace(**{field: {"w": jnp.asarray([1.0, jnp.inf])}}), 7)


TINY = [
    "--config=configs/digits.py",
    "--config.data.image_size=8",
    "--config.data.pad_crop=1",
    "--config.batch_size=256",
    "--config.model.bn_group_size=0",
    "--config.optim.warmup_epochs=0",
    "--config.log_every_steps=2",
    "--config.checkpoint_every_epochs=1",
]


def call(python, path, *flags):
    command = [python, "-m", "tests.tiny_main", *TINY, f"--workdir={path}", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_run_that_diverges_keeps_its_last_checkpoint_and_its_message_helps(tmp_path, warm_python):
    """After a good epoch, a huge rate ends the run and leaves the checkpoint alone; then a lower rate resumes."""
    path = tmp_path / "run"
    assert call(warm_python, path, "--config.epochs=1").returncode == 0
    checkpoints = sorted(file.relative_to(path) for file in (path / workdir.CHECKPOINTS).rglob("*"))
    content = {file: (path / file).read_bytes() for file in checkpoints if (path / file).is_file()}

    wild = ["--config.optim.lr=1e30", "--config.epochs=3"]
    done = call(warm_python, path, *wild, "--allow_change=epochs,optim.lr")
    assert done.returncode == 2 and done.stderr.startswith("error: training diverged: at step "), done.stderr
    assert "Traceback" not in done.stderr and "the last checkpoint is step 5 (epoch 1)" in done.stderr
    assert {file: (path / file).read_bytes() for file in content} == content
    step = int(re.search(r"at step (\d+)", done.stderr)[1])
    assert step > 5 and events.read(path)[-1]["why"].startswith("DivergedError: training diverged")
    with np.load(path / f"nonfinite_step_{step}.npz", allow_pickle=False) as report:
        assert report["step"] == step and f"learning rate {report['learning_rate']:g}" in done.stderr
        spec = workdir.read_spec(path)
        source = sources.load(spec.data, "train")
        batch = next(pipeline.train_batches(source, spec.data, batch_size=256, seed=spec.seed, start_step=step - 1))
        np.testing.assert_array_equal(report["image"], batch["image"])
        np.testing.assert_array_equal(report["label"], batch["label"])

    resumed = call(warm_python, path, "--config.optim.lr=0.1", "--config.epochs=2", "--allow_change=epochs,optim.lr")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming from step 5 of 10" in resumed.stdout
    lines = workdir.read_metrics(path)
    assert [line["step"] for line in lines if "test/loss" in line] == [5, 10]
    assert all(value is not None for line in lines for value in line.values())
    assert json.loads((path / workdir.CONFIG).read_text())["optim"]["lr"] == 0.1
