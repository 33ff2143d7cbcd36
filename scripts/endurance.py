"""Kills small runs again and again at random times, lets them finish, and compares them with one that nobody killed.

    python -m scripts.endurance --kills=200 --hosts=1,2

It prints a table with a line for each number of hosts: the phases in which the kills hit; how many starts resumed; how
many hosts did not notice that another one was gone; how many runs reached their end; and whether all these runs ended
with the same bits: arrays, metrics, the results of --mode=evaluate, and the files of --mode=export. The exit status is
1 if any of them differs.

With two hosts a kill takes one of them, and the other has to end by itself. `--minutes` ends the killing early. A life
is one process of a run, forked after the imports, so a kill costs a few seconds of CPU time for each host. This needs
the tests' requirements: pip install -e .[test].
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

from tests import lives

LONGEST = 120.0  # seconds for a life to reach the phase in which it is to be killed, or its end
END_ALONE = 60.0  # seconds for a host to notice that another one is gone
# Every epoch is saved, so that each run chooses the best among the same checkpoints.
SMALL = ("--config.model.name=resnet20", "--config.eval_batch_size=24", "--config.checkpoint_every_epochs=1")
TIMINGS = {"images_per_second"}
START, STEPS, SAVE, COMPACTION, EVALUATION = "start", "steps", "save", "compaction", "evaluation"
EVALUATE, EXPORT = "--mode=evaluate", "--mode=export"
READING = {EVALUATE: (EVALUATE,), EXPORT: (EXPORT, "--format=safetensors")}
# How many of 20 kills aim at each phase. The phase that a kill hits is seen once the process is frozen.
AIMS = {START: 3, STEPS: 2, SAVE: 5, COMPACTION: 3, EVALUATION: 3, EVALUATE: 2, EXPORT: 2}
DELAYS = {STEPS: 0.1, SAVE: 0.02, EVALUATION: 0.01}  # at most so many seconds from the phase's beginning to the kill
TOLD = {EVALUATION: 0, COMPACTION: 1}  # phases that a life announces, each by its byte at this place in OUTPUT.phases
COLUMNS = ("hosts", "kills", *AIMS, "resumed", "hung", "ends", "minutes", "same bits")


class Endurance:
    """A run on some number of hosts that is killed again and again, beside one that is not.

    Attributes:
      counts: by the columns of the table.
      same: whether all ends so far have the same bits as the whole run's.
    """

    def __init__(self, folder: pathlib.Path, forks: lives.Forks, hosts: int, epochs: int, seed: int) -> None:
        self._forks, self._hosts, self._chance = forks, hosts, random.Random(seed)
        self._train = (*lives.RUN, *SMALL, f"--config.epochs={epochs}")
        self._whole, self._parts = folder / f"whole_{hosts}", folder / f"parts_{hosts}"
        finish(self._start(self._whole, *self._train, lives.SELDOM))
        self._seconds = {mode: self._read(mode, self._whole) for mode in READING}
        self.counts: collections.Counter[str] = collections.Counter()
        self.same = True

    def kill(self) -> None:
        """Starts a run, or a command that reads it, and kills a host in the phase aimed at.

        If a training ends before the kill, its end is compared.
        """
        aim = self._chance.choices(list(AIMS), list(AIMS.values()))[0]
        before = saved(self._parts)
        if reading := aim in READING and before > 0:
            together = self._start(self._parts, *READING[aim])
            wait(together, self._chance.uniform(0, self._seconds[aim]))
        else:
            together = self._start(self._parts, *self._train, lives.EVERY_STEP)
            self._wait_for(aim, together, before)
        victim = self._chance.choice(together)
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.process, signal.SIGSTOP)
        phase = aim if reading else self._phase(together)
        if not victim.kill():
            finish(together)
            if not reading:
                self._compare()
            return
        self.counts["kills"] += 1
        self.counts[phase] += 1
        self.counts["resumed"] += any("resuming from step" in life.said() for life in together)
        self.counts["hung"] += sum(not ends_alone(life) for life in together if life is not victim)

    def complete(self) -> None:
        """Lets the killed run finish, and compares its end."""
        finish(self._start(self._parts, *self._train, lives.SELDOM))
        self._compare()

    def _compare(self) -> None:
        for mode in READING:
            self._read(mode, self._parts)
        self.counts["ends"] += 1
        if end(self._parts) != end(self._whole):
            self.same = False
            shutil.copytree(self._parts, tempfile.mkdtemp(prefix="endurance_"), dirs_exist_ok=True)
        shutil.rmtree(self._parts)

    def _read(self, mode: str, workdir: pathlib.Path) -> float:
        """Evaluates or exports a run, and returns how many seconds it took."""
        began = time.monotonic()
        finish(self._start(workdir, *READING[mode]))
        return time.monotonic() - began

    def _wait_for(self, aim: str, together: list[lives.Life], before: int) -> None:
        """Waits for the phase in which a training run is to be killed.

        Every phase but the start is awaited after a new save, so every life gets further than the one before.
        """
        if aim == START:
            wait(together, self._chance.uniform(0, 1.5 * self._seconds[EVALUATE]))
            return
        wait(together, LONGEST, lambda: saved(self._parts) > before)
        wait(together, LONGEST, lambda: aim not in (SAVE, *TOLD) or self._phase(together) == aim)
        time.sleep(self._chance.uniform(0, DELAYS.get(aim, 0.0)))

    def _phase(self, together: list[lives.Life]) -> str:
        for phase, position in TOLD.items():
            if any(is_in(position, life) for life in together):
                return phase
        if any((self._parts / "checkpoints").glob("*.orbax-checkpoint-tmp")):
            return SAVE
        return STEPS if any("compiled" in life.said() for life in together) else START

    def _start(self, workdir: pathlib.Path, *flags: str) -> list[lives.Life]:
        if self._hosts == 1 or EXPORT in flags:  # an export runs on one host
            return [self._forks.start_command(workdir, *flags)]
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"--coordinator_address=127.0.0.1:{free.getsockname()[1]}"
        joined = (*flags, "--distributed", address, f"--num_processes={self._hosts}")
        return [self._forks.start_command(workdir, *joined, f"--process_id={i}") for i in range(self._hosts)]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 = every run ended with the same bits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="for each number of hosts")
    parser.add_argument("--hosts", default="1,2", help="numbers of local processes")
    parser.add_argument("--epochs", type=int, default=20, help="of each run")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of killing, for each number of hosts")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    arguments = parser.parse_args(argv)
    same = True
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for hosts in map(int, arguments.hosts.split(",")):
        with tempfile.TemporaryDirectory() as folder, lives_in(pathlib.Path(folder)) as forks:
            tried = Endurance(pathlib.Path(folder), forks, hosts, arguments.epochs, arguments.seed)
            began = time.monotonic()
            while tried.counts["kills"] < arguments.kills and time.monotonic() - began < arguments.minutes * 60:
                tried.kill()
            tried.complete()
        row: dict[str, object] = {name: tried.counts[name] for name in COLUMNS}
        minutes = f"{(time.monotonic() - began) / 60:.1f}"
        row |= {"hosts": hosts, "minutes": minutes, "same bits": "yes" if tried.same else "NO"}
        print(f"| {' | '.join(map(str, row.values()))} |", flush=True)
        same = same and tried.same
    return 0 if same else 1


@contextlib.contextmanager
def lives_in(folder: pathlib.Path) -> Iterator[lives.Forks]:
    """Starts the process that forks lives, which share their compiled programs, and stops it at the end."""
    forks = lives.Forks(lives.environment(folder / "compiled"), folder, "scripts.endurance_server")
    try:
        yield forks
    finally:
        forks.close()


def wait(together: list[lives.Life], seconds: float, until: Callable[[], bool] = lambda: False) -> None:
    """Waits until something happens, a life ends, or the time is over."""
    deadline = time.monotonic() + seconds
    while not until() and all(life.is_alive() for life in together) and time.monotonic() < deadline:
        time.sleep(0.001)


def finish(together: list[lives.Life]) -> None:
    """Waits for the end of a command; raises a RuntimeError if it failed, or takes too long."""
    deadline = time.monotonic() + LONGEST
    while any(life.is_alive() for life in together) and time.monotonic() < deadline:
        time.sleep(0.02)
    if any(life.is_alive() or life.ended() for life in together):
        raise RuntimeError("\n".join(life.said() for life in together))


def ends_alone(life: lives.Life) -> bool:
    """Whether a host ends by itself; if not, it is killed."""
    wait([life], END_ALONE)
    if not life.is_alive():
        return True
    life.kill()
    return False


def is_in(position: int, life: lives.Life) -> bool:
    """Whether a life has announced that it is in the phase of `TOLD` with this position."""
    file = told_by(str(life.output))
    return file.exists() and file.read_bytes()[position : position + 1] == b"1"


def told_by(output: str) -> pathlib.Path:
    """The file in which a life announces its phases."""
    return pathlib.Path(f"{output}.phases")


def saved(workdir: pathlib.Path) -> int:
    """The newest finished checkpoint; 0 if there is none."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def end(workdir: pathlib.Path) -> dict[str, object]:
    """Everything that a run ended with, except times and paths."""
    step = saved(workdir)
    checksums = workdir / "checkpoints" / str(step) / "checksums" / "metadata"
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    export = workdir / "export" / "safetensors"
    record = json.loads((export / "export.json").read_text())
    results = json.loads((workdir / "results.json").read_text())
    return {
        "step": step,
        "arrays": json.loads(checksums.read_text()),
        "metrics": [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines],
        "exported": (export / "network.safetensors").read_bytes(),
        "export": record | {"checkpoint": None},
        # An evaluation that was killed after it wrote its results leaves results of another step.
        "results": [line | {"checkpoint": None} for line in results if line["step"] == record["step"]],
    }


if __name__ == "__main__":
    sys.exit(main())
