"""Kills a small run again and again at random times, lets it finish, and compares it with a run that nobody killed.

    python -m scripts.endurance --kills=200 --hosts=1,2

prints a table with a line for each number of hosts: how many kills hit the start, a save, or anything else; how many
starts resumed; how many hosts did not notice that another one was gone; and whether the end has the same bits. Ends
with 1 if it has not. With two hosts a kill takes one of them, and the other has to end by itself. `--minutes` ends the
killing early.

A kill costs about ten seconds of CPU time for each host, most of it for imports.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parents[1]
RUN = [
    "--config=configs/digits.py",
    "--config.model.name=resnet20",
    "--config.data.image_size=8",
    "--config.data.pad_crop=1",
    "--config.batch_size=128",
    "--config.ema_decay=0.9",
    "--config.mixing.cutmix_prob=0.5",
    "--config.log_every_steps=3",
    "--config.checkpoint_every_minutes=0.01",
]
LONGEST_START = 30.0  # seconds: kills come at a random time up to it
END_ALONE = 90.0  # seconds for a host to notice that another one is gone
TIMINGS = {"images_per_second"}
COLUMNS = ("hosts", "kills", "in the start", "in a save", "else", "resumed", "hung", "minutes", "same bits")


@dataclasses.dataclass
class Processes:
    """One start of a run, on one host or several."""

    hosts: list[subprocess.Popen[bytes]]
    output: pathlib.Path

    def said(self) -> str:
        return self.output.read_text()

    def kill(self, chance: random.Random) -> int:
        """Kills one host, and returns how many of the others had to be killed too."""
        chance.choice(self.hosts).send_signal(signal.SIGKILL)
        hung, deadline = 0, time.monotonic() + END_ALONE
        for host in self.hosts:
            try:
                host.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                hung += 1
                host.kill()
                host.wait()
        return hung


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 = every run ended with the same bits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="of each run")
    parser.add_argument("--hosts", default="1,2", help="numbers of local processes, one run for each")
    parser.add_argument("--epochs", type=int, default=20, help="of each run")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of killing, for each run")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    arguments = parser.parse_args(argv)
    same = True
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for hosts in map(int, arguments.hosts.split(",")):
            length = [*RUN, f"--config.epochs={arguments.epochs}"]
            row = endure(folder, length, hosts, arguments.kills, arguments.minutes * 60, random.Random(arguments.seed))
            print(f"| {' | '.join(map(str, row.values()))} |", flush=True)
            same = same and row["same bits"] == "yes"
    return 0 if same else 1


def endure(
    folder: pathlib.Path, flags: Sequence[str], hosts: int, kills: int, seconds: float, chance: random.Random
) -> dict[str, object]:
    """Kills a run `kills` times, or for `seconds`; returns a row of the table.

    Raises:
      RuntimeError: a start failed by itself; the text is what it said.
    """
    whole, parts = folder / f"whole_{hosts}", folder / f"parts_{hosts}"
    finish(start(whole, flags, hosts))
    counts: collections.Counter[str] = collections.Counter()
    began = time.monotonic()
    while counts["kills"] < kills and time.monotonic() - began < seconds:
        before = saved(parts)
        processes = start(parts, flags, hosts)
        in_a_save = chance.random() < 0.5
        until = time.monotonic() + (4 * LONGEST_START if in_a_save else chance.uniform(0, LONGEST_START))
        while time.monotonic() < until and all(host.poll() is None for host in processes.hosts):
            if in_a_save and is_saving(parts) and saved(parts) > before:  # so that the next start resumes further on
                break
            time.sleep(0.005)
        if any(host.poll() is not None for host in processes.hosts):
            finish(processes)  # the run is complete; or a failure
            counts["complete"] += 1
            break
        where = "in a save" if is_saving(parts) else "in the start" if "compiled" not in processes.said() else "else"
        counts["hung"] += processes.kill(chance)
        counts["kills"] += 1
        counts[where] += 1
        counts["resumed"] += "resuming from step" in processes.said()
    finish(start(parts, flags, hosts))
    values: dict[str, object] = {name: counts[name] for name in COLUMNS}
    minutes = f"{(time.monotonic() - began) / 60:.1f}"
    return values | {"hosts": hosts, "minutes": minutes, "same bits": "yes" if end(parts) == end(whole) else "NO"}


def start(workdir: pathlib.Path, flags: Sequence[str], hosts: int) -> Processes:
    """Starts a run as the user does."""
    command = [sys.executable, "-m", "skipnet_jax.main", *flags, f"--workdir={workdir}"]
    together = []
    if hosts > 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            together = ["--distributed", f"--coordinator_address=127.0.0.1:{free.getsockname()[1]}"]
        together.append(f"--num_processes={hosts}")
    env = {
        **os.environ,
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        "PYTHONUNBUFFERED": "1",
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    output = workdir.with_suffix(".output")
    with output.open("wb") as file:
        processes = [
            subprocess.Popen(
                [*command, *together, *([f"--process_id={number}"] if together else [])],
                cwd=ROOT,
                env=env,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            for number in range(hosts)
        ]
    return Processes(processes, output)


def finish(processes: Processes) -> None:
    """Waits for the end of a run; raises a RuntimeError if it failed."""
    statuses = [host.wait() for host in processes.hosts]
    if any(statuses):
        raise RuntimeError(processes.said())


def saved(workdir: pathlib.Path) -> int:
    """The newest finished checkpoint; 0 if there is none."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def is_saving(workdir: pathlib.Path) -> bool:
    """Tells whether a checkpoint is being written."""
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def end(workdir: pathlib.Path) -> tuple[int, object, list[object]]:
    """What a run ended with: its last step, the checksums of all arrays there, and its metrics."""
    step = saved(workdir)
    sums = json.loads((workdir / "checkpoints" / str(step) / "checksums" / "metadata").read_text())
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    metrics: list[object] = [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]
    return step, sums, metrics


if __name__ == "__main__":
    sys.exit(main())
