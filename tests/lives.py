"""Runs of the digits as real processes, that a test may kill: forked within a second, or started by the command."""

import contextlib
import dataclasses
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from skipnet_jax.runs import lease

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
SHORT_LEASE = 0.2, 2.0  # seconds after which it is renewed, and after which another may take over


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


class Process:
    """A forked process, with the methods of `subprocess.Popen`."""

    def __init__(self, forks: "Forks", number: int) -> None:
        self._forks, self._number = forks, number

    @property
    def returncode(self) -> int | None:
        """As the server last said."""
        status = self._forks.statuses.get(self._number)
        return None if status is None else os.waitstatus_to_exitcode(status)

    def poll(self) -> int | None:
        while self._forks.listen(0):
            pass
        return self.returncode

    def wait(self, timeout: float = DEADLINE) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < deadline, f"process {self._number} goes on after {timeout:.0f} s"
            self._forks.listen(0.1)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self._number, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forks:
    """Starts lives that have done their imports already. Several may live at the same time.

    Attributes:
      statuses: of the processes that have ended, as of `os.waitpid`.
    """

    def __init__(
        self,
        env: dict[str, str],
        folder: pathlib.Path,
        server: str = "tests.fork_server",
        lease_seconds: tuple[float, float] = SHORT_LEASE,
    ) -> None:
        self.statuses: dict[int, int] = {}
        self._folder = folder
        self._server = subprocess.Popen(
            [sys.executable, "-m", server, *map(str, lease_seconds)],
            cwd=ROOT,
            env=env | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._number = 0
        self._processes: set[int] = set()
        self._started: list[int] = []
        self._heard = b""  # of a line that the server has not finished

    def start(self, path: pathlib.Path, *flags: str) -> Life:
        """Starts a training of the digits."""
        return self.start_command(path, *RUN, *flags)

    def start_command(self, path: pathlib.Path, *flags: str) -> Life:
        """Starts the command with these flags and the workdir."""
        self._number += 1
        output = self._folder / f"output_{self._number}"
        number = self._fork([*flags, f"--workdir={path}"], output)
        return Life(path, number, output, lambda: self._wait(number))

    def open(
        self, argv: Sequence[str], output: pathlib.Path, *, env: Mapping[str, str], folder: pathlib.Path = ROOT
    ) -> Process:
        """Starts the command with these arguments in a folder, with more variables in its environment."""
        return Process(self, self._fork(argv, output, env=dict(env), folder=str(folder)))

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Runs the command to its end."""
        self._number += 1
        output, errors = (self._folder / f"{name}_{self._number}" for name in ("output", "errors"))
        status = Process(self, self._fork(argv, output, errors=str(errors))).wait()
        return subprocess.CompletedProcess(argv, status, output.read_text(), errors.read_text())

    def listen(self, seconds: float | None) -> bool:
        """Notes which processes have started or ended; returns whether the server said anything in that time."""
        assert self._server.stdout
        if not select.select([self._server.stdout], [], [], seconds)[0]:
            return False
        heard = os.read(self._server.stdout.fileno(), 65536)
        assert heard, "the server has ended"
        *lines, self._heard = (self._heard + heard).split(b"\n")
        for line in lines:
            word, *numbers = line.split()
            if word == b"started":
                self._started.append(int(numbers[0]))
            else:
                process, status = map(int, numbers)
                self.statuses[process] = status
        return True

    def close(self) -> None:
        for process in self._processes - self.statuses.keys():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._server.communicate()

    def _fork(self, argv: Sequence[str], output: pathlib.Path, **more: Any) -> int:
        output.touch()
        asked = {"argv": list(argv), "output": str(output), **more}
        assert self._server.stdin
        self._server.stdin.write(json.dumps(asked).encode() + b"\n")
        self._server.stdin.flush()
        while not self._started:
            self.listen(None)
        process = self._started.pop()
        self._processes.add(process)
        return process

    def _wait(self, process: int) -> int:
        while process not in self.statuses:
            self.listen(None)
        return self.statuses[process]


def environment(compiled: pathlib.Path) -> dict[str, str]:
    """One device, and a cache of everything compiled."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of lives that share what they compile."""
    return environment(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def forks(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Starts processes of hosts, which keep the lease as long as users' do."""
    seconds = (lease.RENEW_SECONDS, lease.STALE_SECONDS)
    started = Forks(env, tmp_path_factory.mktemp("forks"), lease_seconds=seconds)
    yield started
    started.close()
