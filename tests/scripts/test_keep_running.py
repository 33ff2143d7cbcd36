"""scripts/keep_running.sh with a program that follows a plan, and with a run that is killed twice."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from skipnet_jax.runs import workdir

ROOT = pathlib.Path(__file__).parents[2]
LOOP = ["bash", str(ROOT / "scripts" / "keep_running.sh")]
DEADLINE = 240
EPOCHS = 40

# Each start follows the next argument: it ends with a status, sends itself a signal, or waits for one.
PROGRAM = """
import os, pathlib, signal, sys, time
starts = pathlib.Path("starts")
number = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (number + 1))
what = sys.argv[1 + number]
if what == "wait":
    def stop(number, frame):
        with open("signals", "a") as file:
            print(number, file=file)
        time.sleep(0.3)  # time for a second signal, if there is one
        sys.exit(128 + number)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    pathlib.Path("ready").touch()
    time.sleep(60)
elif what.startswith("-"):
    os.kill(os.getpid(), -int(what))
sys.exit(int(what))
"""


@pytest.fixture
def start(tmp_path) -> Callable[..., subprocess.Popen]:
    """Starts the loop around the program, in a folder of its own."""
    (tmp_path / "program.py").write_text(PROGRAM)

    def started(*plan: object, **settings: str) -> subprocess.Popen:
        command = [*LOOP, sys.executable, "program.py", *map(str, plan)]
        environment = os.environ | {"WAIT_SECONDS": "0"} | settings
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, process_group=0
        )

    return started


def ended(process: subprocess.Popen) -> tuple[int, str]:
    _, said = process.communicate(timeout=DEADLINE)
    return process.returncode, said


def wait_until(happened: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + DEADLINE
    while not happened():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)


def test_restarts_after_interruptions_and_failures_until_done(start, tmp_path):
    status, said = ended(start(143, 1, -9, 130, 0, 5))
    assert status == 0
    assert len((tmp_path / "starts").read_text()) == 5
    assert [line.split("keep_running.sh: ")[1].split(";")[0] for line in said.splitlines()] == [
        "interrupted (status 143)",
        "failed (status 1), 1 of at most 5 times in a row",
        "failed (status 137), 2 of at most 5 times in a row",
        "interrupted (status 130)",
    ]


def test_gives_up_after_a_mistake_of_the_users(start, tmp_path):
    status, said = ended(start(1, 2, 0))
    assert status == 2 and "a mistake that a restart would repeat" in said
    assert len((tmp_path / "starts").read_text()) == 2
    done = subprocess.run([*LOOP, "no-such-command"], capture_output=True, text=True)
    assert done.returncode == 127 and "a mistake that a restart would repeat" in done.stderr


def test_gives_up_after_failures_in_a_row_but_an_interruption_starts_a_new_row(start, tmp_path):
    status, said = ended(start(1, 1, 143, 1, 1, 7, 0, MAX_FAILURES="3"))
    assert status == 7 and "3 of at most 3 times in a row; giving up" in said
    assert len((tmp_path / "starts").read_text()) == 6


@pytest.mark.slow
def test_waits_twice_as_long_after_each_failure_up_to_a_limit(start):
    began = time.monotonic()
    status, said = ended(start(1, 1, 1, 0, WAIT_SECONDS="1", MAX_WAIT_SECONDS="2"))
    assert status == 0 and [line[-3:] for line in said.splitlines()] == ["1 s", "2 s", "2 s"]
    assert time.monotonic() - began > 5


@pytest.mark.parametrize(
    ("number", "whole_group"),
    [
        (signal.SIGINT, True),  # as Ctrl-C does
        pytest.param(signal.SIGINT, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, True, marks=pytest.mark.slow),
        (signal.SIGTERM, False),
    ],
)
def test_passes_a_signal_on_once_and_ends(start, tmp_path, number, whole_group):
    process = start(143, "wait", 0)
    wait_until((tmp_path / "ready").exists, process)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    assert ended(process)[0] == 128 + number
    assert (tmp_path / "signals").read_text().split() == [str(int(number))]
    assert len((tmp_path / "starts").read_text()) == 2


def test_a_command_that_is_frozen_is_waited_for(start, tmp_path):
    process = start("wait", 0)
    wait_until((tmp_path / "ready").exists, process)
    child = int(pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
    os.kill(child, signal.SIGSTOP)
    time.sleep(1.5)
    os.kill(child, signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, "")
    assert len((tmp_path / "starts").read_text()) == 1


def test_a_signal_ends_the_wait(start, tmp_path):
    process = start(1, 0, WAIT_SECONDS="60")
    assert "restarting in 60 s" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 1
    assert len((tmp_path / "starts").read_text()) == 1


@pytest.mark.parametrize(
    ("command", "settings", "reason"),
    [
        ([], {}, "got no command"),
        (["true"], {"MAX_FAILURES": "1; id"}, "got MAX_FAILURES=1; id, expected a whole number"),
        (["true"], {"WAIT_SECONDS": "-1"}, "got WAIT_SECONDS=-1"),
    ],
)
def test_wrong_calls(command, settings, reason):
    result = subprocess.run([*LOOP, *command], env=os.environ | settings, capture_output=True, text=True)
    assert result.returncode == 2 and reason in result.stderr


def finished_checkpoints(run):
    """The steps of the checkpoints that are complete; Orbax gives them their names last."""
    return [int(path.name) for path in (run / workdir.CHECKPOINTS).glob("*") if path.name.isdecimal()]


@pytest.mark.slow
def test_a_run_that_is_killed_and_stopped_ends_as_if_it_had_not_been(tmp_path):
    run = tmp_path / "run"
    flags = ["--config.data.image_size=8", "--config.checkpoint_every_epochs=1", f"--config.epochs={EPOCHS}"]
    command = [*LOOP, sys.executable, "-m", "tests.tiny_main", "--config=configs/digits.py", f"--workdir={run}", *flags]
    environment = os.environ | {"WAIT_SECONDS": "0"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True)
    try:
        for number in (signal.SIGKILL, signal.SIGTERM):
            children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
            before = len(list((run / workdir.TENSORBOARD).glob("*")))
            wait_until(lambda: len(list((run / workdir.TENSORBOARD).glob("*"))) > before, process)  # noqa: B023
            steps, saved = len(workdir.read_metrics(run)), max(finished_checkpoints(run), default=0)
            wait_until(lambda: len(workdir.read_metrics(run)) > steps + 2, process)  # noqa: B023
            wait_until(lambda: max(finished_checkpoints(run), default=0) > saved, process)  # noqa: B023
            os.kill(int(children.read_text()), number)
        printed, _ = process.communicate(timeout=DEADLINE)
    finally:
        process.terminate()  # the loop passes it on, so nothing stays behind
        process.wait()
    assert process.returncode == 0, printed
    assert printed.count("resuming from step") == 2 and f"finished: {EPOCHS} epochs" in printed
    tested = [line["step"] for line in workdir.read_metrics(run) if "test/accuracy" in line]
    assert tested == [11 * (epoch + 1) for epoch in range(EPOCHS)]
    assert json.loads((run / workdir.CONFIG).read_text())["epochs"] == EPOCHS
