"""Weights & Biases in its offline mode: the files that it writes are read back."""

import importlib.util
import json
import os
import signal
import struct

import flax.linen as nn
import pytest
from etils import epath

from skipnet_jax import config, specs, train
from skipnet_jax.runs import console, signals, wandb_log, workdir

BLOCK = 2**15  # of the files, which are LevelDB logs
HEADER, LAST_KINDS = 7, (1, 4)  # of a file and of each piece of a record; kinds of piece that end one


def line(step, **numbers):
    return {"step": step, **numbers}


LINES = [line(5, loss=2.0), line(10, loss=1.0), line(10, accuracy=0.5), line(15, loss=0.5)]


def open_log(path, lines=(), *, project="skipnets", config=None):
    (path / workdir.CONFIG).write_text(json.dumps(config or {"optim": {"lr": 0.1}}))
    return wandb_log.WandbLog(epath.Path(path), project, lines)


def records(file):
    """Takes a file of Weights & Biases apart."""
    from wandb.proto import wandb_internal_pb2

    data, at, record = file.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # the rest of a block is empty
            at += BLOCK - at % BLOCK
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in LAST_KINDS:
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def read_back(path):
    """For each start of a run: its id, its project, its config, and its lines."""
    import wandb

    wandb.teardown()  # as at the end of a process: only then is everything in the files for sure
    starts = []
    for file in sorted((path / "wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns):
        lines, identity, config = [], None, {}
        for record in records(file):
            if record.WhichOneof("record_type") == "run":
                identity = (record.run.run_id, record.run.project)
                config = {update.key: json.loads(update.value_json) for update in record.run.config.update}
            if record.WhichOneof("record_type") == "history":
                items = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
                lines.append({name: value for name, value in items.items() if not name.startswith("_")})
        config.pop("_wandb", None)
        starts.append((*identity, config, lines))
    return starts


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """As a user would, before a run starts; nothing of this machine's own."""
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("needs the extra `wandb`")
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_X_DISABLE_STATS", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    yield
    wandb.teardown()


def test_an_interrupted_run_is_one_run_there_with_every_line_once(offline, tmp_path, capsys):
    log = open_log(tmp_path)
    for each in LINES:
        log.write(each)
    log.close()
    # Restarted from step 10, before whose evaluation it was saved, with another learning rate.
    log = open_log(tmp_path, LINES[:2], config={"optim": {"lr": 0.2}})
    for each in [*LINES[2:], line(20, loss=0.25)]:
        log.write(each)
    log.close()
    first, second = read_back(tmp_path)
    identity = json.loads((tmp_path / workdir.WANDB).read_text())["id"]
    assert first[:2] == second[:2] == (identity, "skipnets")
    assert (first[2], second[2]) == ({"optim": {"lr": 0.1}}, {"optim": {"lr": 0.2}})
    assert first[3] == LINES
    assert second[3] == [line(20, loss=0.25)]
    captured = capsys.readouterr()
    assert f"Weights & Biases: run {identity}, offline in {tmp_path}" in captured.out and captured.err == ""


def test_what_may_not_have_arrived_is_sent_again(offline, tmp_path, monkeypatch):
    """kill -9: `close` is never called, and only what was sent half a minute before is safe."""
    now = [0.0]
    monkeypatch.setattr(wandb_log.time, "monotonic", lambda: now[0])
    killed = open_log(tmp_path)
    for each, seconds in zip(LINES, (0, 10, 40, 41), strict=True):
        now[0] = seconds
        killed.write(each)
    killed._run.finish()
    log = open_log(tmp_path, LINES[:1])
    for each in LINES[1:]:
        log.write(each)
    log.close()
    assert read_back(tmp_path)[1][3] == LINES[2:]


def test_turned_on_late_or_in_another_project_it_gets_all_lines(offline, tmp_path):
    for project in ("first", "second"):
        log = open_log(tmp_path, LINES[:2], project=project)
        log.write(LINES[2])
        log.close()
    (one, *first), (other, *second) = read_back(tmp_path)
    assert one != other
    assert first == ["first", {"optim": {"lr": 0.1}}, LINES[:3]]
    assert second == ["second", {"optim": {"lr": 0.1}}, LINES[:3]]


def test_without_a_login_the_run_goes_on_and_the_next_start_makes_up_for_it(offline, tmp_path, monkeypatch, capsys):
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "online")
    log = open_log(tmp_path)
    log.write(LINES[0])
    log.write(LINES[1])
    log.close()
    err = capsys.readouterr().err
    assert err.startswith("warning: nothing goes to Weights & Biases") and err.count("\n") == 1
    assert "not logged in. Run: wandb login" in err
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    log = open_log(tmp_path, LINES[:2])
    log.write(LINES[2])
    log.close()
    assert read_back(tmp_path)[0][3] == LINES[:3]


def test_a_failure_in_the_middle_is_said_once(offline, tmp_path, capsys):
    log = open_log(tmp_path)
    log.write(LINES[0])
    run, log._run = log._run, Broken()
    for each in LINES[1:]:
        log.write(each)
    log.close()
    run.finish()
    assert capsys.readouterr().err.count("no route") == 1


class Broken:
    def log(self, line):
        raise OSError("no route")


def test_turned_off_by_its_own_variable_nothing_counts_as_sent(offline, tmp_path, monkeypatch):
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    log = open_log(tmp_path)
    log.write(LINES[0])
    log.close()
    assert json.loads((tmp_path / workdir.WANDB).read_text())["sent"] == [-1, 0]


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    wandb_log.require_installed("")
    with pytest.raises(ValueError, match=r'wandb_project: got \'mine\'.*pip install -e "\.\[wandb\]"'):
        wandb_log.require_installed("mine")


class TinyNet(nn.Module):
    """The interface of the project's networks at a hundredth of their compile time."""

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(10, name="classifier")(images.reshape(len(images), -1))


def test_a_training_run_that_is_stopped_and_goes_on(offline, tmp_path, monkeypatch):
    """All numbers are there once, but for timings as in metrics.jsonl."""
    spec = specs.TrainSpec(
        model=specs.ModelSpec(name="skip_resnet20", num_classes=10),
        data=specs.DataSpec(name="digits", image_size=8, pad_crop=1, flip=False),
        mixing=specs.MixingSpec(),
        optim=specs.OptimSpec(lr=0.05, warmup_epochs=0),
        batch_size=256,
        epochs=2,
        log_every_steps=2,
        wandb_project="skipnets",
    )
    monkeypatch.setattr(train, "build_network", lambda _: TinyNet())
    original = console.Console.step

    def step(self, sums):
        original(self, sums)
        if self.done == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console.Console, "step", step)
        with pytest.raises(signals.Stopped, match="the last checkpoint is step 7"):
            train.train_and_evaluate(spec, tmp_path / "run")
    train.train_and_evaluate(spec, tmp_path / "run")
    first, second = read_back(tmp_path / "run")
    assert first[:2] == second[:2]
    assert first[2] == second[2] == json.loads(json.dumps(config.to_dict(spec)))
    assert [each["step"] for each in first[3]] == [2, 4, 5, 5, 6]
    assert first[3] + second[3] == workdir.read_metrics(tmp_path / "run")


def test_a_run_without_the_extra_is_refused_before_its_workdir_is_made(tmp_path, monkeypatch):
    spec = specs.TrainSpec(
        model=specs.ModelSpec(name="skip_resnet20", num_classes=10),
        data=specs.DataSpec(name="digits", image_size=8, pad_crop=1),
        mixing=specs.MixingSpec(),
        optim=specs.OptimSpec(lr=0.05),
        batch_size=256,
        epochs=2,
        wandb_project="skipnets",
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"\[wandb\]"):
        train.train_and_evaluate(spec, tmp_path / "run")
    assert not (tmp_path / "run").exists()
