import dataclasses
import gc
import math
import os
import shutil
import signal

import jax
import numpy as np
import PIL.Image
import pytest

from skipnet_jax import config, errors, files, models, specs, train
from skipnet_jax.data import pipeline, sources
from skipnet_jax.evaluation import scoring
from skipnet_jax.models import zoo
from skipnet_jax.runs import checkpoint, events, saver, signals, workdir
from skipnet_jax.training import precision, steps
from tests.tiny_runs import (
    STEPS_PER_EPOCH,
    TinyNet,
    last_checkpoint,
    make_loss_nan,
    make_spec,
    require_equal,
    use_network,
)

pytestmark = pytest.mark.usefixtures("compile_once")

SPEC = make_spec(ema_decay=0.9)  # of the fixture `finished_run`


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    use_network(monkeypatch, TinyNet())


@pytest.fixture
def finished(finished_run, tmp_path):
    """A copy of a run that nothing interrupted."""
    return shutil.copytree(finished_run, tmp_path / "finished")


def interrupt_in(monkeypatch, step, number=signal.SIGINT):
    """Sends one signal while the host waits for the batch of a step."""
    original, sent = pipeline.train_batches, []

    def batches(*args, start_step, **kwargs):
        for i, batch in enumerate(original(*args, start_step=start_step, **kwargs), start_step + 1):
            if i == step and not sent:  # the batch is made again if the run diverges
                sent.append(number)
                os.kill(os.getpid(), number)
            yield batch

    monkeypatch.setattr(pipeline, "train_batches", batches)


def train_until(step, spec, path, number=signal.SIGINT):
    """Trains, and stops after a step because of a signal; returns the exception."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt_in(patch, step, number)
        with pytest.raises(signals.Stopped, match=f"the last checkpoint is step {step} ") as stop:
            train.train_and_evaluate(spec, path)
    return stop.value


def poison_after(monkeypatch, step):
    """The update of a step turns the parameters to NaN."""
    original = steps.make_train_step

    def make(*args, **kwargs):
        train_step = original(*args, **kwargs)

        def poisoned(state, batch):
            state, sums = train_step(state, batch)
            if state.step == step:
                state = state.replace(params=jax.tree.map(lambda x: x * math.nan, state.params))
            return state, sums

        return poisoned

    monkeypatch.setattr(steps, "make_train_step", make)


def test_a_run_learns_and_fills_its_workdir(finished_run):
    step, results, _ = last_checkpoint(finished_run)
    assert step == 15 and results["epoch"] == 3 and results["count"] == 360
    lines = workdir.read_metrics(finished_run)
    assert [line["step"] for line in lines if "train/loss" in line] == [2, 4, 5, 6, 8, 10, 12, 14, 15]
    tests = [line for line in lines if "test/loss" in line]
    assert [line["step"] for line in tests] == [5, 10, 15]
    assert tests[-1]["test/accuracy"] == results["accuracy"] > 2 * 0.1  # chance is 0.1
    assert tests[-1]["test/loss"] < 0.9 * tests[0]["test/loss"]
    for name in (workdir.CURVES, workdir.PARAMETERS, workdir.CONFIG, workdir.EVENTS, workdir.TENSORBOARD):
        assert (finished_run / name).exists()


def test_a_finished_run_is_not_trained_again(finished, capsys, monkeypatch):
    """It takes a recipe's ConfigDict as well."""
    lines = workdir.read_metrics(finished)
    (finished / workdir.CURVES).unlink()  # as if the run had been killed before it drew them
    monkeypatch.setattr(steps, "make_train_step", None)
    assert train.train_and_evaluate(config.to_config_dict(SPEC), finished) == last_checkpoint(finished)[1]
    assert capsys.readouterr().out.startswith("already complete: 3 epochs, test accuracy")
    assert workdir.read_metrics(finished) == lines
    assert (finished / workdir.CURVES).exists()


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(1, marks=pytest.mark.slow),
        7,  # between two logged steps
        10,  # the last step of an epoch
        pytest.param(15, marks=pytest.mark.slow),  # the last step of the run
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(finished_run, tmp_path, step, capsys):
    number = signal.SIGTERM if step % 2 else signal.SIGINT
    stop = train_until(step, SPEC, tmp_path, number)
    assert stop.exit_status == 128 + number
    assert f"stopped at step {step} of 15; the last checkpoint is step {step} (epoch {step / 5:g})" in str(stop)
    assert {name for line in workdir.read_metrics(tmp_path) for name in line if line["step"] == step} <= {
        name for line in workdir.read_metrics(finished_run) for name in line if line["step"] == step
    }
    capsys.readouterr()
    assert train.train_and_evaluate(SPEC, tmp_path) == last_checkpoint(finished_run)[1]
    assert f"resuming from step {step} of 15" in capsys.readouterr().out
    require_equal(tmp_path, finished_run)
    assert [(event["event"], event["step"], event.get("why")) for event in events.read(tmp_path)] == [
        ("start", 0, None),
        ("stop", step, signal.Signals(number).name),
        ("start", step, None),
        ("stop", 15, "finished"),
    ]


@pytest.mark.slow
def test_interrupted_twice_with_every_random_operation(tmp_path):
    """With dropout, mixing, colour noise and a moving average."""
    spec = make_spec(
        data=dataclasses.replace(make_spec().data, lighting=0.1, color_jitter=0.4, rand_augment_ops=2),
        mixing=specs.MixingSpec(cutmix_prob=0.3, mixup_prob=0.3, erasing_prob=0.25, label_smoothing=0.1),
        optim=specs.OptimSpec(name="adamw", lr=0.01, warmup_epochs=1),
        ema_decay=0.9,
        epochs=1,
        log_every_steps=3,
    )
    expected = train.train_and_evaluate(spec, tmp_path / "whole")
    for step in (2, 3):
        train_until(step, spec, tmp_path / "parts")
    assert train.train_and_evaluate(spec, tmp_path / "parts") == expected
    require_equal(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
def test_a_network_of_the_project_with_drop_path_resumes_bit_for_bit(tmp_path, monkeypatch, one_device):
    """With gates, drop path, dropout, CutMix and the shuffling of two epochs, in the first two blocks of a network."""
    monkeypatch.setattr(train, "build_network", models.build_network)
    whole = zoo.NETWORKS["resnet20"]
    monkeypatch.setitem(zoo.NETWORKS, "resnet20", dataclasses.replace(whole, blocks=whole.blocks[:2]))
    spec = make_spec(
        model=specs.ModelSpec(name="skip_resnet20", num_classes=10, dropout=0.1, drop_path=0.3),
        optim=specs.OptimSpec(lr=0.05, warmup_epochs=1),
        ema_decay=0.9,
        epochs=2,
    )
    expected = train.train_and_evaluate(spec, tmp_path / "whole")
    train_until(5, spec, tmp_path / "parts", signal.SIGTERM)
    assert train.train_and_evaluate(spec, tmp_path / "parts") == expected
    require_equal(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # from the reads that failed
@pytest.mark.parametrize("part", ["arrays", pytest.param("results", marks=pytest.mark.slow)])
def test_a_damaged_last_checkpoint_costs_only_its_steps(finished_run, finished, capsys, part):
    """Even of a finished run, whose small files say that it is complete."""
    folder = finished / workdir.CHECKPOINTS / "15"
    if part == "arrays":
        for file in (folder / "state").rglob("d/*"):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        (folder / "metrics/metrics").unlink()
    assert train.train_and_evaluate(SPEC, finished) == last_checkpoint(finished_run)[1]
    said = capsys.readouterr()
    gc.collect()  # the failed reads report their errors when they are collected: here, and not in another test
    assert f"WARNING: checkpoint {folder} is damaged" in said.err and "resuming from step 10 of 15" in said.out
    require_equal(finished, finished_run)


def test_a_signal_during_the_evaluation_saves_and_evaluates_after_resuming(finished_run, tmp_path):
    original = scoring.batches

    def batches(*args):
        for batch in original(*args):
            os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "batches", batches)
        with pytest.raises(signals.Stopped, match="the last checkpoint is step 5"):
            train.train_and_evaluate(SPEC, tmp_path)
    assert not any("test/loss" in line for line in workdir.read_metrics(tmp_path))
    with checkpoint.open_manager(tmp_path / workdir.CHECKPOINTS) as manager:
        assert checkpoint.results(manager, 5) is None
    assert train.train_and_evaluate(SPEC, tmp_path) == last_checkpoint(finished_run)[1]
    require_equal(tmp_path, finished_run)


def test_a_signal_after_the_time_to_save_stops_the_next_step(tmp_path, monkeypatch):
    original, calls = saver.Saver.poll, []

    def poll(self):
        calls.append(self)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    monkeypatch.setattr(saver.Saver, "poll", poll)
    with pytest.raises(signals.Stopped, match=r"stopped at step 3 of .*the last checkpoint is step 3 "):
        train.train_and_evaluate(SPEC, tmp_path)


# the next training loss shows the update of step 7, and only the evaluation that of step 10, an epoch's last
@pytest.mark.parametrize(("step", "found", "number"), [(7, 8, "loss nan"), (10, 10, "test loss nan")])
def test_numbers_that_are_not_finite_are_never_saved(tmp_path, monkeypatch, step, found, number):
    poison_after(monkeypatch, step)
    with pytest.raises(errors.DivergedError, match=f"at step {found} got .*{number} .*expected finite") as error:
        train.train_and_evaluate(SPEC, tmp_path)
    assert "the last checkpoint is step 5 (epoch 1)" in str(error.value)
    assert "(learning rate 0.0375" in str(error.value)
    assert "`optim.lr` (now 0.05)" in str(error.value)
    saved, _, state = last_checkpoint(tmp_path)
    assert saved == 5
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert events.read(tmp_path)[-1]["why"].startswith(f"DivergedError: training diverged: at step {found}")

    split = sources.load(SPEC.data, "train")
    batch = next(pipeline.train_batches(split, SPEC.data, batch_size=256, seed=0, start_step=found - 1))
    with np.load(tmp_path / f"nonfinite_step_{found}.npz") as report:
        np.testing.assert_array_equal(report["image"], batch["image"])
        np.testing.assert_array_equal(report["label"], batch["label"])
        assert report["learning_rate"] == np.float32(0.0375) and report["step"] == found


def test_a_signal_after_an_update_that_is_not_finite_saves_nothing(tmp_path):
    """The loss of step 7 is finite, but its update is not."""
    with pytest.MonkeyPatch.context() as patch:
        poison_after(patch, 7)
        interrupt_in(patch, 7)
        with pytest.raises(errors.DivergedError, match="the last checkpoint is step 5"):
            train.train_and_evaluate(SPEC, tmp_path)
    assert last_checkpoint(tmp_path)[0] == 5


def test_an_update_that_is_not_finite_can_be_skipped(tmp_path, monkeypatch, capsys):
    """The batch of one step makes the loss NaN. The run continues, and so does its schedule."""
    bad = 7

    make_loss_nan(monkeypatch, bad)
    results = train.train_and_evaluate(dataclasses.replace(SPEC, on_nonfinite="skip"), tmp_path)
    assert results["epoch"] == 3 and all(math.isfinite(value) for value in results.values())
    lines = {line["step"]: line for line in workdir.read_metrics(tmp_path) if "train/skipped" in line}
    assert {step: line["train/skipped"] for step, line in lines.items() if line["train/skipped"]} == {8: 1}
    assert "1 of 2 updates" in capsys.readouterr().out
    step, _, state = last_checkpoint(tmp_path)
    assert step == state["step"] == 15


def test_saves_by_the_clock_and_by_epochs_but_the_best_is_an_evaluated_one(tmp_path, monkeypatch):
    monkeypatch.setattr(saver, "now", iter(range(0, 10_000, 25)).__next__)  # seconds: every third step is due
    train.train_and_evaluate(
        dataclasses.replace(SPEC, checkpoint_every_minutes=1.0, checkpoint_every_epochs=2), tmp_path
    )
    with checkpoint.open_manager(tmp_path / workdir.CHECKPOINTS) as manager:
        kept = sorted(manager.all_steps())
        evaluated = [step for step in kept if checkpoint.results(manager, step)]
        assert kept[-1] == 15 and any(step % STEPS_PER_EPOCH for step in kept)
        assert int(checkpoint.find(manager, "best")) in evaluated


def test_saves_every_few_epochs_and_at_the_end(tmp_path):
    train.train_and_evaluate(dataclasses.replace(SPEC, checkpoint_every_epochs=2), tmp_path)
    with checkpoint.open_manager(tmp_path / workdir.CHECKPOINTS) as manager:
        assert set(manager.all_steps()) == {10, 15}


def test_the_config_of_a_run_may_change_where_the_user_allows_it(finished):
    before = workdir.read_metrics(finished)
    longer, shorter = dataclasses.replace(SPEC, epochs=4), dataclasses.replace(SPEC, epochs=2)
    with pytest.raises(errors.UserError, match="config: got seed=1, expected seed=0"):
        train.train_and_evaluate(dataclasses.replace(SPEC, seed=1), finished)
    with pytest.raises(errors.UserError, match="allow_change=epochs"):
        train.train_and_evaluate(longer, finished)
    with pytest.raises(errors.UserError, match="allow_change: got the unknown field epoch,"):
        train.train_and_evaluate(longer, finished, allow_change=["epoch"])
    with pytest.raises(errors.UserError, match=r"epochs: got 2, which .* step 10, expected more.*at step 15 already"):
        train.train_and_evaluate(shorter, finished, allow_change=["epochs"])
    assert workdir.read_metrics(finished) == before
    assert train.train_and_evaluate(longer, finished, allow_change=["epochs"])["epoch"] == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": specs.ModelSpec(name="skip_resnet20", num_classes=7)},
            r"num_classes: got 7, expected 10.*num_classes=10",
        ),
        ({"batch_size": 100}, r"batch_size: got 100, expected a multiple of the number of devices \(8\)"),
        ({"batch_size": 2048}, "batch_size: got 2048, expected at most the 1437 training images"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_before_anything_is_compiled(tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(steps, "init_state", None)
    with pytest.raises(errors.UserError, match=message):
        train.train_and_evaluate(make_spec(**changes), tmp_path)


def test_the_moving_average_is_evaluated_and_decides_which_checkpoint_is_the_best(finished_run):
    _, results, _ = last_checkpoint(finished_run)
    assert results["average_accuracy"] != results["accuracy"]
    tests = [line for line in workdir.read_metrics(finished_run) if "test/accuracy" in line]
    assert tests[-1]["test/average_accuracy"] == results["average_accuracy"]
    with checkpoint.open_manager(finished_run / workdir.CHECKPOINTS, read_only=True) as manager:
        best = max(tests, key=lambda line: line["test/average_accuracy"])
        assert (
            checkpoint.results(manager, checkpoint.find(manager, "best"))["average_accuracy"]
            == best["test/average_accuracy"]
        )


@pytest.mark.slow
def test_every_option_of_the_recipes_trains_together(tmp_path):
    spec = make_spec(
        optim=specs.OptimSpec(name="sam", lr=0.05, warmup_epochs=1, clip_norm=1.0, clip_value=0.5, lr_scale="linear"),
        mixing=specs.MixingSpec(cutmix_prob=0.3, mixup_prob=0.3, erasing_prob=0.25, label_smoothing=0.1),
        accumulate_steps=2,
        ema_decay=0.5,
        epochs=1,
    )
    results = train.train_and_evaluate(spec, tmp_path)
    assert all(math.isfinite(value) for value in results.values())


def test_a_run_may_start_from_the_weights_of_another_and_say_so(finished_run, tmp_path, monkeypatch, capsys):
    """Its workdir may be relative to the current directory."""
    monkeypatch.chdir(tmp_path)
    spec = dataclasses.replace(SPEC, epochs=1, init_from=str(finished_run))
    tuned = train.train_and_evaluate(spec, "runs/relative")
    assert (tmp_path / "runs" / "relative" / "checkpoints" / str(STEPS_PER_EPOCH)).is_dir()
    assert tuned["loss"] < next(line["test/loss"] for line in workdir.read_metrics(finished_run) if "test/loss" in line)
    out = capsys.readouterr().out
    assert "1,437 training and 360 test images" in out and str(finished_run) in out
    assert f"test accuracy {tuned['accuracy']:.2%}" in out.splitlines()[-1]


def test_a_run_resumes_only_with_the_same_data(finished):
    """The data may move to another folder, but they must be the same data."""
    file = finished / workdir.DATA
    record = files.read_json(file)
    assert record == {"class_names": list("0123456789"), "training_images": 1437}
    longer = dataclasses.replace(SPEC, epochs=4)
    for name, other in {"training_images": 1436, "class_names": list("1023456789")}.items():
        files.write_json(file, record | {name: other})
        with pytest.raises(errors.UserError, match=rf"data: got {name} .*, expected .*data\.dir"):
            train.train_and_evaluate(longer, finished, allow_change=["epochs"])


def test_a_hold_out_chooses_the_checkpoint_and_the_test_images_are_seen_once(tmp_path, capsys, monkeypatch):
    spec = make_spec(epochs=2)
    spec = dataclasses.replace(spec, data=dataclasses.replace(spec.data, holdout="0.2"))
    seen = []
    evaluate = scoring.evaluate_state
    monkeypatch.setattr(
        scoring, "evaluate_state", lambda step, state, split, *rest, **more: (
            seen.append(split.num_examples), evaluate(step, state, split, *rest, **more)
        )[1],
    )  # fmt: skip
    results = train.train_and_evaluate(spec, tmp_path)
    assert seen == [287, 287, 360] and results["count"] == 287 and results["test_count"] == 360
    told = capsys.readouterr().out
    assert "1,150 training, 287 held out, and 360 test images" in told and "\nbest by: hold-out\n" in told
    assert f"hold-out accuracy {results['accuracy']:.2%} (" in told
    lines = [line for line in workdir.read_metrics(tmp_path) if "holdout/accuracy" in line]
    assert len(lines) == 2 and not any("test/accuracy" in line for line in workdir.read_metrics(tmp_path))
    best = max(lines, key=lambda line: line["holdout/accuracy"])
    [record] = files.read_records(tmp_path / workdir.RESULTS, {})
    assert record["step"] == best["step"] and record["accuracy"] == results["test_accuracy"]
    assert f"best by hold-out: step {best['step']}, test accuracy {results['test_accuracy']:.2%}" in told
    assert train.train_and_evaluate(spec, tmp_path) == results and seen == [287, 287, 360]  # is complete


def test_training_images_that_are_also_tested_are_tested_once(tmp_path, capsys):
    """As of class folders without test images."""
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for k in range(40):
            pixels = rng.integers(level - 50, level + 50, (8, 8, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(tmp_path / "images" / name / f"{k}.png")
    data = specs.DataSpec(name="folder", dir=str(tmp_path / "images"), image_size=8, pad_crop=1, holdout="0.25")
    spec = make_spec(epochs=1, data=data, batch_size=16, model=specs.ModelSpec(name="resnet20", num_classes=2))
    with pytest.MonkeyPatch.context() as patch:
        use_network(patch, TinyNet(classes=2))
        results = train.train_and_evaluate(spec, tmp_path / "run")
    assert results["count"] == 20 and not any(name.startswith("test_") for name in results)
    assert "images: part of all class folders" in capsys.readouterr().out


def test_a_run_chooses_its_precision_once(tmp_path, capsys):
    """On CPUs float32; and a run that began in bfloat16 on a TPU stays so here."""
    automatic = precision.with_dtype(make_spec(epochs=1), "auto")
    train.train_and_evaluate(automatic, tmp_path / "run")
    assert workdir.read_spec(tmp_path / "run").model.dtype == "float32"
    stored = files.read_json(tmp_path / "run" / "config.json", mend="")
    stored["model"]["dtype"] = "bfloat16"
    files.write_json(tmp_path / "run" / "config.json", stored)
    capsys.readouterr()
    longer = dataclasses.replace(automatic, epochs=2)
    train.train_and_evaluate(longer, tmp_path / "run", allow_change=["epochs"])
    assert workdir.read_spec(tmp_path / "run").model.dtype == "bfloat16"
    assert "parameters, bfloat16" in capsys.readouterr().out
