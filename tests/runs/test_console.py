"""The metrics of a run: shown, logged, and pending over an interruption."""

import io
import json
import re
import sys

import jax.numpy as jnp
import pytest
from etils import epath

from skipnet_jax import errors
from skipnet_jax.runs import workdir
from skipnet_jax.runs.console import Console


class Terminal(io.StringIO):
    def isatty(self):
        return True


def sums(loss, *, correct=5, count=10):
    return {
        "loss": jnp.asarray(loss * count),
        "correct": jnp.asarray(correct),
        "count": jnp.asarray(count),
        "grad_norm": jnp.asarray(2.0),
        "learning_rate": jnp.asarray(0.1),
    }


PENDING = {"window": [], "epoch": {"loss": 10.0, "correct": 20, "count": 40}}
RESULTS = {"loss": 0.5, "accuracy": 0.75, "top5_accuracy": 1.0, "count": 360}


def run(path, *, start=0):
    console = Console(epath.Path(path), start=start, total=8, steps_per_epoch=4)
    for step in range(start + 1, 9):
        console.step(sums(1.0 / step, correct=step))
        if step % 3 == 0 or step % 4 == 0:
            console.fetch()
        if step % 4 == 0:
            console.epoch(RESULTS)
    console.close()


def test_writes_the_mean_over_the_steps_since_the_last_fetch(tmp_path):
    run(tmp_path)
    lines = workdir.read_metrics(tmp_path)
    assert [(line["step"], line["epoch"]) for line in lines] == [
        (3, 0.75), (4, 1.0), (4, 1.0), (6, 1.5), (8, 2.0), (8, 2.0)
    ]  # fmt: skip
    assert lines[0]["train/loss"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert lines[0]["train/accuracy"] == pytest.approx(0.2)
    assert lines[1]["train/loss"] == pytest.approx(1 / 4)
    assert lines[2]["test/accuracy"] == 0.75 and "train/loss" not in lines[2]


def test_the_first_step_is_not_timed(tmp_path):
    console = Console(epath.Path(tmp_path), start=0, total=8, steps_per_epoch=4)
    console.step(sums(1.0))
    console.fetch()
    console.step(sums(1.0))
    console.fetch()
    console.close()
    first, second = workdir.read_metrics(tmp_path)
    assert "images_per_second" not in first and second["images_per_second"] > 0


def test_plain_lines_without_a_terminal(tmp_path, capsys):
    run(tmp_path)
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0].startswith("compiled and made the first step in ")
    assert re.fullmatch(
        r"epoch 1/2  step 4  training: loss 0\.5208, accuracy  25\.00%"
        r"  test: loss 0\.5000, accuracy  75\.00%, [\d,]+ images/s, \S+ left",
        lines[1],
    )
    assert lines[2].startswith("epoch 2/2") and len(lines) == 3


def test_the_time_left_is_unknown_before_a_step_is_timed(tmp_path, capsys):
    """A resumed run may begin with the evaluation of its last step."""
    console = Console(epath.Path(tmp_path), start=4, total=8, steps_per_epoch=4, unevaluated=True, pending=PENDING)
    console.epoch(RESULTS)
    console.close()
    assert capsys.readouterr().out.endswith(", ? left\n")


def test_a_bar_on_a_terminal(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    run(tmp_path, start=4)
    text = terminal.getvalue()
    assert re.search(r"epoch 2/2 \|.*\| step [5-8]/8", text)
    assert text.endswith("\r")  # nothing of it stays


def test_pending_metrics_continue_every_mean_exactly(tmp_path):
    """They go through JSON, as in a checkpoint; and asking for them writes nothing."""
    losses = [0.1, 0.7, 1.3, 0.3, 0.9]
    for name in ("whole", "1", "2", "3", "4"):
        (tmp_path / name).mkdir()

    def go(console, part):
        for loss in part:
            console.step(sums(loss))
            if console.done % 3 == 0 or console.done == 5:
                console.fetch()
        return console

    whole = go(Console(epath.Path(tmp_path / "whole"), start=0, total=5, steps_per_epoch=5), losses)
    whole.epoch(RESULTS)
    for stop in (1, 2, 3, 4):
        path = epath.Path(tmp_path / str(stop))
        first = go(Console(path, start=0, total=5, steps_per_epoch=5), losses[:stop])
        lines = workdir.read_metrics(path)
        pending = json.loads(json.dumps(first.pending()))
        assert first.pending() == pending and workdir.read_metrics(path) == lines
        second = go(Console(path, start=stop, total=5, steps_per_epoch=5, pending=pending), losses[stop:])
        assert second.pending() == whole_epoch(losses)
        second.epoch(RESULTS)
        assert untimed(path) == untimed(tmp_path / "whole")


def whole_epoch(losses):
    count = 10 * len(losses)
    total = sum(float(sums(loss)["loss"]) for loss in losses)
    return {"window": [], "epoch": {"loss": total, "correct": 5 * len(losses), "count": count}}


def untimed(path):
    return [
        {name: value for name, value in line.items() if name != "images_per_second"}
        for line in workdir.read_metrics(path)
    ]


def test_skipped_updates_count_for_nothing_but_are_counted(tmp_path, capsys):
    console = Console(epath.Path(tmp_path), start=0, total=4, steps_per_epoch=4)
    for skipped in (0, 1):
        part = sums(2.0 * (1 - skipped), correct=5 * (1 - skipped), count=10 * (1 - skipped))
        console.step({**part, "skipped": jnp.asarray(skipped)})
    console.fetch()
    console.step({**sums(0.0, correct=0, count=0), "skipped": jnp.asarray(1)})
    console.fetch()
    console.close()
    first, second = workdir.read_metrics(tmp_path)
    assert (first["train/loss"], first["train/accuracy"], first["grad_norm"]) == (2.0, 0.5, 2.0)
    assert first["train/skipped"] == second["train/skipped"] == 1
    assert "train/loss" not in second
    assert "step 2: left out 1 of 2 updates" in capsys.readouterr().out


def test_an_epoch_without_any_finite_update_ends_the_run(tmp_path):
    console = Console(epath.Path(tmp_path), start=0, total=4, steps_per_epoch=1)
    console.step({**sums(0.0, correct=0, count=0), "skipped": jnp.asarray(1)})
    console.fetch()
    with pytest.raises(errors.DivergedError, match="no finite update in the epoch up to step 1"):
        console.epoch(RESULTS)
