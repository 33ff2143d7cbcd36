"""Whole runs on full or read-only disks."""

import contextlib
import dataclasses
import pathlib
import subprocess
import time
from collections.abc import Iterator

import pytest

from skipnet_jax import config, errors, main, train
from skipnet_jax.runs import checkpoint, events, saver, workdir
from skipnet_jax.runs.console import Console
from tests.tiny_runs import TinyNet, last_checkpoint, make_spec, require_equal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("compile_once"),
    # Orbax's threads and TensorFlow's writers raise errors of their own on a full disk.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

STEPS = 20  # four epochs of five
SPEC = make_spec(epochs=4, log_every_steps=1, ema_decay=0.9)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(train, "build_network", lambda _: TinyNet())
    monkeypatch.setattr(saver, "RETRY_SECONDS", 0.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("disks") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "build_network", lambda _: TinyNet())
        train.train_and_evaluate(SPEC, path)
    return path


@pytest.fixture
def disk(tmp_path) -> Iterator[pathlib.Path]:
    """A file system of 4 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("may not mount a file system, which takes root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # TensorBoard's writer may still hold a file


def fill(disk: pathlib.Path) -> None:
    """Fills the disk to the last byte."""
    with (disk / "ballast").open("ab", buffering=0) as file:
        for size in (4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def after_steps(monkeypatch, actions) -> None:
    """Runs an action after each of some steps, once the save in progress is done or has failed."""
    managers, open_manager = [], checkpoint.open_manager

    def remembered(*args, **kwargs):
        managers.append(open_manager(*args, **kwargs))
        return managers[-1]

    class Acting(Console):
        def step(self, sums):
            super().step(sums)
            if self.done in actions:
                deadline = time.monotonic() + 240
                while managers[-1].is_saving_in_progress():
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                actions[self.done]()

    monkeypatch.setattr(checkpoint, "open_manager", remembered)
    monkeypatch.setattr(train, "Console", Acting)


@pytest.mark.parametrize("known", [True, False], ids=["known before", "found by the write"])
def test_a_disk_that_is_full_for_two_epochs_changes_nothing_but_the_saves_in_that_time(
    whole, disk, monkeypatch, capsys, known
):
    path, saved = disk / "run", []
    if not known:  # like a quota
        monkeypatch.setattr(saver, "_free", lambda directory: 10**15)

    def look():
        names = [entry.name for entry in (path / workdir.CHECKPOINTS).iterdir()]
        saved.append(sorted(int(name) for name in names if name.isdecimal()))

    def empty():
        look()
        (disk / "ballast").unlink()

    after_steps(monkeypatch, {8: lambda: fill(disk), 17: empty, 19: look})
    train.train_and_evaluate(SPEC, path)
    said = capsys.readouterr()
    assert "WARNING: step 10 could not be saved" in said.err and "the newest checkpoint is 5" in said.err
    assert "WARNING: step 17" not in said.err and "Traceback" not in said.err
    assert said.err.count("WARNING: numbers for TensorBoard") <= 1  # a minute passes before it is tried again
    assert saved[0] == [5] and saved[1][-1] >= 16  # long before the end of the epoch
    assert said.out.splitlines()[-1].startswith("finished: 4 epochs")
    require_equal(path, whole)
    assert [event["event"] for event in events.read(path)] == ["start", "stop"]
    assert {workdir.CURVES, workdir.PARAMETERS, workdir.CONFIG, workdir.DATA} <= {file.name for file in path.iterdir()}


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command; returns its status and output."""
    monkeypatch.setattr(main, "_check_flags", lambda argv: None)

    def ran(path):
        def dispatch():
            train.train_and_evaluate(config.to_config_dict(SPEC), path)
            return 0

        monkeypatch.setattr(main, "_dispatch", dispatch)
        return main.main(["main"]), capsys.readouterr()

    return ran


def test_a_disk_that_stays_full_is_an_error_at_the_end_and_the_same_command_resumes(whole, disk, run, monkeypatch):
    path = disk / "run"
    with pytest.MonkeyPatch.context() as patch:
        after_steps(patch, {8: lambda: fill(disk)})
        status, said = run(path)
    assert status == 1 and "Traceback" not in said.err
    last = said.err.splitlines()[-1]
    assert last.startswith("error: training is complete, but its last state could not be saved. Make room in ")
    (disk / "ballast").unlink()
    status, said = run(path)
    assert status == 0 and "resuming from step 5 of 20" in said.out
    require_equal(path, whole)
    recorded = [event["event"] for event in events.read(path)]
    assert recorded in (["start", "start", "stop"], ["start", "stop"] * 2)  # there may have been no room for a stop


def test_a_run_resumes_on_a_full_disk_only_once_there_is_room(whole, disk, monkeypatch):
    """A config that is not replaced stays whole."""
    path = disk / "run"
    train.train_and_evaluate(dataclasses.replace(SPEC, epochs=1), path)
    fill(disk)
    with pytest.raises(errors.UserError, match=r"cannot be written \(No space left on device\)"):
        train.train_and_evaluate(SPEC, path, allow_change=["epochs"])
    assert workdir.read_spec(path).epochs == 1
    (disk / "ballast").unlink()
    train.train_and_evaluate(dataclasses.replace(SPEC, epochs=2), path, allow_change=["epochs"])
    assert last_checkpoint(path)[0] == 10


@pytest.mark.parametrize("name", [workdir.CONFIG, workdir.DATA, workdir.PARAMETERS])
def test_no_room_for_a_file_of_the_start_is_one_line(run, tmp_path, name):
    """/dev/full refuses every byte as a full disk does."""
    (tmp_path / (name if name == workdir.PARAMETERS else f".{name}.new")).symlink_to("/dev/full")
    status, said = run(tmp_path)
    assert status == (2 if name == workdir.CONFIG else 1)
    assert "No space left on device" in said.err and said.err.startswith("error: ")
    assert len(said.err.splitlines()) == 1


def test_no_room_for_the_curves_costs_only_the_curves(run, whole, tmp_path):
    (tmp_path / workdir.CURVES).symlink_to("/dev/full")
    status, said = run(tmp_path)
    assert status == 0 and f"WARNING: {tmp_path / workdir.CURVES} could not be written" in said.err
    require_equal(tmp_path, whole)


def test_a_read_only_workdir_is_refused_at_once_with_status_2(disk, run):
    """Root may write despite permissions, but not to a file system that is mounted read-only."""
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    status, said = run(disk / "run")
    assert status == 2 and len(said.err.splitlines()) == 1
    assert said.err.startswith(f"error: --workdir: got {disk / 'run'}, which cannot be written (Read-only file system)")
