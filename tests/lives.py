"""Runs of the digits as real processes, that a test may kill: forked within a second, or started by the command."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

ROOT = pathlib.Path(__file__).parents[1]
DEADLINE = 120  # seconds for anything that a process does
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
EVERY_STEP = "--config.checkpoint_every_minutes=1e-9"  # as fast as the disk allows: there is almost always a save
SELDOM = "--config.checkpoint_every_minutes=0"
RENEW_SECONDS, STALE_SECONDS = 0.2, 2.0  # of the lease, in forked lives


@dataclasses.dataclass
class Life:
    """One process of a run, from its start to its end."""

    folder: pathlib.Path
    process: int
    output: pathlib.Path
    ended: Callable[[], int]  # waits, and returns the status of `os.waitpid`

    def said(self) -> str:
        return self.output.read_text()

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Polls as fast as it can, until something happened or the process finished."""
        deadline = time.monotonic() + DEADLINE
        while not happened() and "finished: " not in self.said():
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.001)

    def is_alive(self) -> bool:
        """Of forked lives only: another process takes note of their ends."""
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> bool:
        """Returns whether the kill ended the process, and not the process itself before."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)
        return os.WTERMSIG(self.ended()) == signal.SIGKILL


class Forks:
    """Starts lives that have done their imports already. Several may live at the same time."""

    def __init__(self, env: dict[str, str], folder: pathlib.Path, server: str = "tests.fork_server") -> None:
        self._folder = folder
        self._server = subprocess.Popen(
            [sys.executable, "-m", server, str(RENEW_SECONDS), str(STALE_SECONDS)],
            cwd=ROOT,
            env=env | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._number = 0
        self._statuses: dict[int, int] = {}  # of lives that have ended
        self._alive: set[int] = set()

    def start(self, path: pathlib.Path, *flags: str) -> Life:
        """Starts a training of the digits."""
        return self.start_command(path, *RUN, *flags)

    def start_command(self, path: pathlib.Path, *flags: str) -> Life:
        """Starts the command with these flags and the workdir."""
        self._number += 1
        output = self._folder / f"output_{self._number}"
        output.touch()
        asked = {"argv": [*flags, f"--workdir={path}"], "output": str(output)}
        print(json.dumps(asked), file=self._server.stdin, flush=True)
        while not (answer := self._answer()):
            pass
        process = answer[0]
        self._alive.add(process)
        return Life(path, process, output, lambda: self._wait(process))

    def close(self) -> None:
        for process in self._alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._server.communicate()

    def _wait(self, process: int) -> int:
        while process not in self._statuses:
            self._answer()
        return self._statuses[process]

    def _answer(self) -> list[int]:
        """Reads one answer, and returns the process that has started; [] if one has ended."""
        word, *numbers = self._server.stdout.readline().split()
        if word == "started":
            return [int(numbers[0])]
        process, status = map(int, numbers)
        self._statuses[process] = status
        self._alive.discard(process)
        return []


def environment(compiled: pathlib.Path) -> dict[str, str]:
    """One device, and a cache of everything compiled."""
    return {
        **{name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of lives that share what they compile."""
    return environment(tmp_path_factory.mktemp("compiled"))
