import pathlib
import signal
import subprocess

import jax
import pytest
from etils import epath

from skipnet_jax.runs import events, signals, workdir

ROOT = pathlib.Path(__file__).parents[2]


def test_every_start_and_stop_is_recorded(tmp_path):
    path = epath.Path(tmp_path)
    done = iter([0, 7, 7, 8, 8, 9]).__next__
    with events.recorded(path, done):
        pass
    with pytest.raises(signals.Stopped), events.recorded(path, done):
        raise signals.Stopped("stopped", signal.SIGTERM)
    with pytest.raises(ValueError), events.recorded(path, done):
        raise ValueError("bad\nworse")
    lines = events.read(path)
    assert [(line["event"], line["step"], line.get("why")) for line in lines] == [
        ("start", 0, None), ("stop", 7, "finished"), ("start", 7, None), ("stop", 8, "SIGTERM"),
        ("start", 8, None), ("stop", 9, "ValueError: bad"),
    ]  # fmt: skip
    assert lines[0]["libraries"]["jax"] == jax.__version__
    assert (lines[0]["devices"], lines[0]["device_kind"], lines[0]["hosts"]) == (8, "cpu", 1)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert (lines[0]["git"] or "").removesuffix("+changes") == head.stdout.strip()  # "" outside of a clone
    assert {"time", "git", "command", "python", "platform"} <= lines[0].keys()


def test_a_line_torn_by_kill_9_is_left_out_and_does_no_harm(tmp_path):
    path = epath.Path(tmp_path)
    (path / workdir.EVENTS).write_text('{"time": "2024-01-01T00:00:00", "event": "start", "step": 0}\n{"event": "st')
    with events.recorded(path, lambda: 3):
        pass
    assert [line["event"] for line in events.read(path)] == ["start", "start", "stop"]
