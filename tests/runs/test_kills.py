"""kill -9 at many moments: every start resumes from the newest whole checkpoint, and the end has the same bits."""

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
from tests.lives import DEADLINE, EVERY_STEP, ROOT, RUN, SELDOM, Forks, Life, env  # noqa: F401 (a fixture)
from tests.tiny_runs import require_equal


def start_command(env: dict[str, str], path: pathlib.Path, *flags: str) -> Life:  # noqa: F811
    """Starts a life as the user does, by the command."""
    output = path.parent / "output"
    command = [sys.executable, "-m", "skipnet_jax.main", *RUN, *flags, f"--workdir={path}"]
    with output.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT)

    def ended() -> int:
        status = process.wait(DEADLINE)
        return -status if status < 0 else status << 8

    return Life(path, process.pid, output, ended)


def saved(path: pathlib.Path) -> list[int]:
    """The steps whose checkpoints are complete, by the names of their folders."""
    folder = path / workdir.CHECKPOINTS
    return sorted(int(entry.name) for entry in folder.glob("*") if entry.name.isdecimal())


def being_written(path: pathlib.Path) -> bool:
    return any((path / workdir.CHECKPOINTS).glob("*.orbax-checkpoint-tmp*"))


def is_whole(folder: pathlib.Path) -> bool:
    """Reads all of a checkpoint with Orbax alone."""
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


def require_resumed_from(life: Life, newest: int | None) -> bool:
    """Returns whether the life said where it resumes; if so, that must be the newest whole checkpoint."""
    said = [line for line in life.said().splitlines() if line.startswith(("resuming from step", "compiled"))]
    if said and newest:
        assert said[0].startswith(f"resuming from step {newest} of"), life.said()
    elif said:
        assert said[0].startswith("compiled"), life.said()
    assert "Traceback" not in life.said() and "error" not in life.said(), life.said()
    return bool(said)


def kill_and_resume(env, tmp_path, aims: list[str], epochs: int) -> tuple[int, dict[str, int]]:  # noqa: F811
    """Kills a run once per aim, lets it finish, and checks that it ends like a run that nothing interrupted.

    Returns:
      How many lives said where they resume, and how many kills hit each kind of moment.
    """
    chance = random.Random(20)
    length = f"--config.epochs={epochs}"
    path, forks, resumed = tmp_path / "parts", Forks(env, tmp_path), 0
    hits = dict.fromkeys(("before it resumed", "within a save", "after a request"), 0)
    try:
        assert forks.start(tmp_path / "whole", length, SELDOM).ended() == 0
        startup = 3.0
        for aim in aims:
            newest = newest_whole(path)
            began = time.monotonic()
            life = forks.start(path, length, EVERY_STEP)
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
            resumed += require_resumed_from(life, newest)
            hits["within a save"] += writing
            hits["before it resumed"] += "compiled" not in life.said()
            hits["after a request"] += aim == "SIGTERM"
        newest = newest_whole(path)
        life = forks.start(path, length, SELDOM)
        assert life.ended() == 0 and require_resumed_from(life, newest), life.said()
    finally:
        forks.close()
    require_equal(path, tmp_path / "whole")
    assert not being_written(path)
    assert not any(is_whole(folder) for folder in (path / workdir.DAMAGED).glob("*"))  # at most rests of a removal
    recorded = [event["event"] for event in events.read(path)]
    assert recorded.count("start") >= len(aims) + 1 - hits["before it resumed"] and recorded[-1] == "stop"
    return resumed, hits


def test_two_kills(env, tmp_path):  # noqa: F811
    resumed, _ = kill_and_resume(env, tmp_path, ["training", "saving"], epochs=6)
    assert resumed == 2


@pytest.mark.slow
def test_fifty_kills(env, tmp_path):  # noqa: F811
    """At random moments: while it starts and restores, between steps, in a save, after SIGTERM."""
    aims = ["start"] * 12 + ["training"] * 12 + ["saving"] * 18 + ["SIGTERM"] * 8
    random.Random(20).shuffle(aims)
    resumed, hits = kill_and_resume(env, tmp_path, aims, epochs=50)
    assert resumed >= 25 and hits["within a save"] >= 10 and hits["before it resumed"] >= 5, (resumed, hits)


@pytest.mark.slow
def test_kills_of_the_command_itself(env, tmp_path):  # noqa: F811
    """In the imports, in the first step and in a save, with a network of the project."""
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
        require_resumed_from(life, newest)
    newest = newest_whole(path)
    assert newest, "the last kill was to leave a checkpoint"
    assert require_resumed_from(finish(path, SELDOM), newest)
    require_equal(path, tmp_path / "whole")
