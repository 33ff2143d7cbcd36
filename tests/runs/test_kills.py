"""kill -9 at fifty moments: every start goes on from the newest checkpoint that is whole, and the end is the same."""

import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
import pytest
from orbax import checkpoint as ocp

from skipnet_jax.runs import events, workdir
from tests.tiny_runs import require_equal

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
KILLS = 50
DEADLINE = 120  # seconds that a process may take for anything
RUN = [
    "--config=configs/digits.py",
    "--config.data.image_size=8",
    "--config.data.pad_crop=1",
    "--config.mixing.cutmix_prob=0.4",
    "--config.mixing.mixup_prob=0.3",
    "--config.mixing.erasing_prob=0.25",
    "--config.batch_size=128",
    "--config.model.bn_group_size=0",
    "--config.ema_decay=0.9",
    "--config.log_every_steps=3",
    "--config.checkpoint_every_epochs=5",
]
EVERY_STEP = "--config.checkpoint_every_minutes=1e-9"  # as fast as the disk is: hardly a moment without a save
SELDOM = "--config.checkpoint_every_minutes=0"


@dataclasses.dataclass
class Life:
    """One process of a run, from its start to its end."""

    folder: pathlib.Path
    process: int
    output: pathlib.Path
    ended: Callable[[], int]  # waits; the status that `os.waitpid` gives

    def said(self) -> str:
        return self.output.read_text()

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Polls as fast as it can; returns as well when the process has said its last word."""
        deadline = time.monotonic() + DEADLINE
        while not happened() and "finished: " not in self.said():
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.001)

    def kill(self) -> bool:
        """Whether that was what ended it."""
        os.kill(self.process, signal.SIGKILL)
        return os.WTERMSIG(self.ended()) == signal.SIGKILL


class Forks:
    """Lives that begin after the imports."""

    def __init__(self, env: dict[str, str], folder: pathlib.Path) -> None:
        self._output = folder / "output"
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server"],
            cwd=ROOT,
            env=env | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._alive: int | None = None

    def start(self, path: pathlib.Path, *flags: str) -> Life:
        self._output.unlink(missing_ok=True)
        self._output.touch()
        asked = {"argv": [*RUN, *flags, f"--workdir={path}"], "output": str(self._output)}
        print(json.dumps(asked), file=self._server.stdin, flush=True)
        self._alive = int(self._server.stdout.readline())
        return Life(path, self._alive, self._output, self._wait)

    def close(self) -> None:
        if self._alive is not None:
            os.kill(self._alive, signal.SIGKILL)
        self._server.communicate()

    def _wait(self) -> int:
        status = int(self._server.stdout.readline())
        self._alive = None
        return status


def start_command(env: dict[str, str], path: pathlib.Path, *flags: str) -> Life:
    """A life from the very beginning: the command that the user gives."""
    output = path.parent / "output"
    command = [sys.executable, "-m", "skipnet_jax.main", *RUN, *flags, f"--workdir={path}"]
    with output.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT)

    def ended() -> int:
        status = process.wait(DEADLINE)
        return -status if status < 0 else status << 8

    return Life(path, process.pid, output, ended)


@pytest.fixture(scope="module")
def env(tmp_path_factory) -> dict[str, str]:
    """One device, and a cache of all that is ever compiled."""
    return {
        **{name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def saved(path: pathlib.Path) -> list[int]:
    """Steps that a write has been finished for, by the names of their folders."""
    folder = path / workdir.CHECKPOINTS
    return sorted(int(entry.name) for entry in folder.glob("*") if entry.name.isdecimal())


def being_written(path: pathlib.Path) -> bool:
    return any((path / workdir.CHECKPOINTS).glob("*.orbax-checkpoint-tmp*"))


def is_whole(folder: pathlib.Path) -> bool:
    """By reading all of it with Orbax alone."""
    reader, state = ocp.PyTreeCheckpointer(), folder / "state"
    try:
        json.loads((folder / "progress" / "metadata").read_text())
        tree = reader.metadata(state).item_metadata.tree
        reader.restore(state, restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree))
    except Exception:
        return False
    return True


def newest_whole(path: pathlib.Path) -> int | None:
    folders = (path / workdir.CHECKPOINTS / str(step) for step in reversed(saved(path)))
    return next((int(folder.name) for folder in folders if is_whole(folder)), None)


def require_goes_on_from(life: Life, newest: int | None) -> bool:
    """Whether the life lasted long enough to tell where it goes on; if so, that has to be the newest whole one."""
    said = [line for line in life.said().splitlines() if line.startswith(("resuming from step", "compiled"))]
    if said and newest:
        assert said[0].startswith(f"resuming from step {newest} of"), life.said()
    elif said:
        assert said[0].startswith("compiled"), life.said()
    assert "Traceback" not in life.said() and "error" not in life.said(), life.said()
    return bool(said)


def test_fifty_kills(env, tmp_path):
    """At random moments: in the start and the restoring, between two steps, in a save, after SIGTERM."""
    chance = random.Random(20)
    aims = ["start"] * 12 + ["training"] * 12 + ["saving"] * 18 + ["SIGTERM"] * 8
    assert len(aims) == KILLS
    chance.shuffle(aims)
    epochs = f"--config.epochs={KILLS}"
    path, forks, told = tmp_path / "parts", Forks(env, tmp_path), 0
    kinds = dict.fromkeys(("before it went on", "within a save", "after a request"), 0)
    try:
        began = time.monotonic()
        assert forks.start(tmp_path / "whole", epochs, SELDOM).ended() == 0
        startup = 3.0
        for aim in aims:
            newest = newest_whole(path)
            began = time.monotonic()
            life = forks.start(path, epochs, EVERY_STEP)
            if aim == "start":
                time.sleep(chance.uniform(0, startup))
            else:
                life.wait_for(lambda life=life: "compiled" in life.said())
                startup = time.monotonic() - began
                life.wait_for(lambda newest=newest: saved(path)[-1:] > [newest or 0])
            if aim == "training":
                time.sleep(chance.uniform(0, 0.1))
            if aim == "saving":
                life.wait_for(lambda: being_written(path))
                time.sleep(chance.uniform(0, 0.02))
            if aim == "SIGTERM":
                os.kill(life.process, signal.SIGTERM)
                time.sleep(chance.uniform(0, 0.1))
            writing = being_written(path)
            assert life.kill() or aim == "SIGTERM", f"finished after {aim}: make the run longer\n{life.said()}"
            told += require_goes_on_from(life, newest)
            kinds["within a save"] += writing
            kinds["before it went on"] += "compiled" not in life.said()
            kinds["after a request"] += aim == "SIGTERM"
        newest = newest_whole(path)
        life = forks.start(path, epochs, SELDOM)
        assert life.ended() == 0 and require_goes_on_from(life, newest), life.said()
    finally:
        forks.close()
    assert told >= KILLS // 2 and kinds["within a save"] >= 10 and kinds["before it went on"] >= 5, (told, kinds)
    require_equal(path, tmp_path / "whole")
    assert not being_written(path)
    assert not any(is_whole(folder) for folder in (path / workdir.DAMAGED).glob("*"))  # left of a removal, at most
    recorded = [event["event"] for event in events.read(path)]
    assert recorded.count("start") >= KILLS + 1 - kinds["before it went on"] and recorded[-1] == "stop"


def test_kills_of_the_command_itself(env, tmp_path):
    """In the imports, in the first step, in a save: with a network of the project, and all that a process is."""
    path, flags = tmp_path / "parts", ["--config.model.name=resnet20", "--config.epochs=2"]

    def finish(folder: pathlib.Path, *more: str) -> Life:
        life = start_command(env, folder, *flags, *more)
        assert life.ended() == 0, life.said()
        return life

    finish(tmp_path / "whole", SELDOM)
    moments: list[Callable[[Life], bool]] = [
        lambda life: True,
        lambda life: "workdir: " in life.said(),
        lambda life: "compiled" in life.said() and bool(saved(path)) and being_written(path),
    ]
    for happened in moments:
        newest = newest_whole(path)
        life = start_command(env, path, *flags, EVERY_STEP)
        try:
            life.wait_for(lambda life=life, happened=happened: happened(life))
        finally:
            killed = life.kill()
        assert killed, life.said()
        require_goes_on_from(life, newest)
    newest = newest_whole(path)
    assert newest, "the last kill was to leave a checkpoint"
    assert require_goes_on_from(finish(path, SELDOM), newest)
    require_equal(path, tmp_path / "whole")
