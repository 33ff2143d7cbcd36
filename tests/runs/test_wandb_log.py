"""Weights & Biases in its offline mode; the tests read its files back."""

import importlib.util
import json
import struct

import pytest
from etils import epath

from skipnet_jax import errors, train
from skipnet_jax.runs import metrics_log, wandb_log, workdir
from tests.tiny_runs import make_spec

BLOCK = 2**15  # its files are LevelDB logs
HEADER, LAST_KINDS = 7, (1, 4)  # size of the header of a file and of each fragment; kinds of the last fragment

LINES = [{"step": 5, "loss": 2.0}, {"step": 10, "loss": 1.0}, {"step": 10, "accuracy": 0.5}, {"step": 15, "loss": 0.5}]


def open_log(path, *, project="skipnets", config=None):
    (path / workdir.CONFIG).write_text(json.dumps(config or {"optim": {"lr": 0.1}}))
    return wandb_log.WandbLog(epath.Path(path), project)


def records(file):
    """The records in a file of Weights & Biases."""
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

    wandb.teardown()  # as at the end of a process, which completes the files
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
    """As a user would set it before a run; without this machine's own settings."""
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


def test_an_interrupted_run_is_one_run_there(offline, tmp_path, capsys):
    """Its id is that of wandb.json, even if an older version wrote the file."""
    (tmp_path / workdir.WANDB).write_text('{"project": "skipnets", "id": "ab12cd34", "sent": [10, 1]}')
    for lines, config in ((LINES[:3], {"optim": {"lr": 0.1}}), (LINES[3:], {"optim": {"lr": 0.2}})):
        log = open_log(tmp_path, config=config)
        for line in lines:
            log.write(line)
        log.close()
    first, second = read_back(tmp_path)
    assert first == ("ab12cd34", "skipnets", {"optim": {"lr": 0.1}}, LINES[:3])
    assert second == ("ab12cd34", "skipnets", {"optim": {"lr": 0.2}}, LINES[3:])
    captured = capsys.readouterr()
    assert f"Weights & Biases: run ab12cd34, offline in {tmp_path}" in captured.out and captured.err == ""
    assert wandb_log._identity(epath.Path(tmp_path / workdir.WANDB), "another") != "ab12cd34"


def test_metrics_of_a_run_go_there_line_by_line(offline, tmp_path):
    spec = make_spec(wandb_project="skipnets")
    (tmp_path / workdir.CONFIG).write_text("{}")
    log = metrics_log.MetricsLog(epath.Path(tmp_path), step=0, wandb_project=spec.wandb_project)
    log.write(2, {"epoch": 0.5, "train/loss": 1.0})
    log.write(4, {"epoch": 1.0, "test/accuracy": 0.5})
    log.close()
    (start,) = read_back(tmp_path)
    assert start[0] == json.loads((tmp_path / workdir.WANDB).read_text())["id"]
    assert start[3] == workdir.read_metrics(tmp_path)


def test_without_a_login_the_run_goes_on_and_so_it_does_after_a_failure(offline, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "online")
    log = open_log(tmp_path)
    log.write(LINES[0])
    log.close()
    err = capsys.readouterr().err
    assert err.startswith("WARNING: nothing goes to Weights & Biases") and err.count("\n") == 1
    assert "not logged in. Run: wandb login" in err

    class Broken:
        def log(self, line):
            raise OSError("no route")

    log._run = Broken()
    for line in LINES:
        log.write(line)
    log.close()
    assert capsys.readouterr().err.count("no route") == 1


def test_a_run_without_the_extra_is_refused_before_its_workdir_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    wandb_log.require_installed("")
    with pytest.raises(errors.UserError, match=r'wandb_project: got \'mine\'.*pip install -e "\.\[wandb\]"'):
        train.train_and_evaluate(make_spec(wandb_project="mine"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
