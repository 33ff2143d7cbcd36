"""Resuming with another config: what may change, what may not, and that a refusal does no harm."""

import dataclasses
import shutil

import pytest

from skipnet_jax import errors, main, specs, train
from skipnet_jax.runs import signals, workdir
from skipnet_jax.runs.console import Console
from tests.tiny_runs import TinyNet, last_checkpoint, make_loss_nan, make_spec, require_equal

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compile_once")]

SPEC = make_spec(epochs=2)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(train, "build_network", lambda _: TinyNet())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("changes") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "build_network", lambda _: TinyNet())
        train.train_and_evaluate(SPEC, path)
    return path


def stop_after(monkeypatch, step):
    """Sends SIGTERM after a step."""

    class Stopping(Console):
        def step(self, sums):
            super().step(sums)
            if self.done == step:
                signals.signal.raise_signal(signals.signal.SIGTERM)

    monkeypatch.setattr(train, "Console", Stopping)


def files_of(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def changed(**fields):
    return dataclasses.replace(SPEC, **fields)


def test_longer_and_shorter(finished, tmp_path, capsys):
    """The schedule follows the new length; the steps so far stay."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    assert train.train_and_evaluate(changed(epochs=4), tmp_path, allow_change=["epochs"])["epoch"] == 4
    assert "resuming from step 10 of 20, epoch 2 of 4" in capsys.readouterr().out
    rates = {line["step"]: line["learning_rate"] for line in workdir.read_metrics(tmp_path) if "learning_rate" in line}
    assert rates[12] == pytest.approx(0.05 * 0.5)  # in the third of four epochs, halfway down the cosine
    with pytest.raises(ValueError, match=r"epochs: got 3, which end at step 15, expected more.*step 20 already"):
        train.train_and_evaluate(changed(epochs=3), tmp_path, allow_change=["epochs"])
    assert workdir.read_spec(tmp_path).epochs == 4

    shorter = tmp_path / "shorter"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(signals.Stopped):
            train.train_and_evaluate(changed(epochs=9), shorter)
    assert train.train_and_evaluate(SPEC, shorter, allow_change=["epochs"])["epoch"] == 2
    assert last_checkpoint(shorter)[0] == 10 and workdir.read_spec(shorter) == SPEC


@pytest.mark.parametrize(
    ("spec", "allowed", "message"),
    [
        (
            changed(epochs=3, batch_size=128),
            "epochs,batch_size",
            r"batch_size: got 128, expected 256 .*accumulate_steps",
        ),
        (changed(epochs=1), "epochs", r"epochs: got 1, which end at step 5, expected more"),
        (changed(epochs=3, seed=1), "epochs", "config: got seed=1, expected seed=0 .*allow_change=seed"),
    ],
)
def test_a_refusal_leaves_every_file_as_it_was(finished, spec, allowed, message):
    before = files_of(finished)
    with pytest.raises(errors.UserError, match=message):
        train.train_and_evaluate(spec, finished, allow_change=allowed.split(","))
    assert files_of(finished) == before


def test_another_network_is_refused_by_its_arrays_and_the_run_can_resume(finished, tmp_path, monkeypatch, capsys):
    """Even with `allow_change`, since its parameters have nothing to continue from."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    before = files_of(tmp_path)
    monkeypatch.undo()  # the networks of the project
    other = changed(model=dataclasses.replace(SPEC.model, name="resnet20"), epochs=3)
    monkeypatch.setattr(main, "_check_flags", lambda argv: None)
    monkeypatch.setattr(
        main, "_dispatch", lambda: train.train_and_evaluate(other, tmp_path, allow_change=["epochs", "model.name"])
    )
    assert main.main(["main"]) == 2
    error = capsys.readouterr().err
    assert "got a checkpoint of another network (" in error and "expected one of this config's" in error
    assert "unknown to the network: " in error and "another --workdir" in error
    assert files_of(tmp_path) == before
    monkeypatch.setattr(train, "build_network", lambda _: TinyNet())
    assert train.train_and_evaluate(changed(epochs=3), tmp_path, allow_change=["epochs"])["epoch"] == 3


def test_skipped_updates_stay_skipped_when_the_run_resumes(tmp_path, monkeypatch):
    """The run stops right after a skipped update, before the line that reports it."""
    bad = 7

    make_loss_nan(monkeypatch, bad)
    spec = changed(on_nonfinite="skip", ema_decay=0.9)
    expected = train.train_and_evaluate(spec, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, bad)
        with pytest.raises(signals.Stopped, match=f"the last checkpoint is step {bad}"):
            train.train_and_evaluate(spec, tmp_path / "parts")
    assert train.train_and_evaluate(spec, tmp_path / "parts") == expected
    require_equal(tmp_path / "parts", tmp_path / "whole")
    whole = workdir.read_metrics(tmp_path / "whole")
    assert {line["step"]: line["train/skipped"] for line in whole if "train/loss" in line}[8] == 1


def test_sam_and_accumulation_resume_bit_for_bit(tmp_path):
    spec = changed(
        optim=dataclasses.replace(SPEC.optim, name="sam", clip_norm=1.0),
        mixing=specs.MixingSpec(cutmix_prob=0.3, mixup_prob=0.3, erasing_prob=0.5, label_smoothing=0.1),
        accumulate_steps=2,
        ema_decay=0.9,
        epochs=1,
    )
    spec = dataclasses.replace(spec, model=dataclasses.replace(spec.model, bn_group_size=0))
    expected = train.train_and_evaluate(spec, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(signals.Stopped):
            train.train_and_evaluate(spec, tmp_path / "parts")
    assert train.train_and_evaluate(spec, tmp_path / "parts") == expected
    require_equal(tmp_path / "parts", tmp_path / "whole")
