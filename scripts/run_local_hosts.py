"""Rehearses a pod: runs skipnet_jax.main as on several hosts, all of them on this machine.

    python scripts/run_local_hosts.py --num_processes=2 --devices_per_process=2 -- \
        --config=configs/digits.py --workdir=runs/rehearsal

Each process has its own virtual CPU devices, and they talk over loopback only. Their output appears here, with [host 0]
and so on before each line. SIGINT (Ctrl-C) and SIGTERM go to all of them. If one process fails, the others have 30
seconds to notice before they are killed. The exit status is the status of the first process that failed.
"""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import IO

SECONDS_TO_NOTICE = 30.0  # for the other hosts, which may be saving together
LOOPBACK = "127.0.0.1"


def main(argv: Sequence[str] | None = None) -> int:
    """Starts the processes, and waits for them.

    Returns:
      0, or the status of the first process that failed; 128 + the number of the signal that killed it.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_processes", type=_positive, default=2, help="hosts")
    parser.add_argument("--devices_per_process", type=_positive, default=1, help="virtual CPU devices per host")
    parser.add_argument("flags", nargs="*", help="after --: flags of skipnet_jax.main")
    arguments = parser.parse_args(argv)
    if not arguments.flags:
        parser.error("got no flags for skipnet_jax.main, expected some after --, such as -- --config=... --workdir=...")
    address = f"{LOOPBACK}:{_free_port()}"
    command = [sys.executable, "-m", "skipnet_jax.main", *arguments.flags, "--distributed"]
    command += [f"--coordinator_address={address}", f"--num_processes={arguments.num_processes}"]
    environment = _environment(address, arguments.devices_per_process)
    processes: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in processes:
            process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    printers = []
    for host in range(arguments.num_processes):
        # A process group of its own: otherwise Ctrl-C would arrive twice, and a second signal stops without saving.
        process = subprocess.Popen(
            [*command, f"--process_id={host}"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        for number in received:  # signals that came before the process existed
            process.send_signal(number)
        processes.append(process)
        printers.append(threading.Thread(target=_print_lines, args=(process.stdout, f"[host {host}] ".encode())))
        printers[-1].start()
    status = _wait(processes)
    for printer in printers:
        printer.join()
    return status


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    first_failure = 0
    deadline = float("inf")
    while True:
        statuses = [process.poll() for process in processes]
        if not first_failure:
            first_failure = next((status for status in statuses if status), 0)
            deadline = time.monotonic() + SECONDS_TO_NOTICE if first_failure else deadline
        if None not in statuses:
            return 128 - first_failure if first_failure < 0 else first_failure
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.1)


def _print_lines(stream: IO[bytes], prefix: bytes) -> None:
    for line in stream:
        try:
            sys.stdout.buffer.write(prefix + line.rstrip(b"\n") + b"\n")  # one write, or lines of two hosts mix
            sys.stdout.buffer.flush()
        except BrokenPipeError:  # the reader has seen enough, as in `... | head`; the hosts must not wait for it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _environment(address: str, devices: int) -> dict[str, str]:
    others = re.sub(r"--xla_force_host_platform_device_count=\S+", "", os.environ.get("XLA_FLAGS", ""))
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{others} --xla_force_host_platform_device_count={devices}".strip(),
        "JAX_COORDINATOR_BIND_ADDRESS": address,  # otherwise it listens to the whole network
        "PYTHONUNBUFFERED": "1",
    }


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return int(free.getsockname()[1])


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number, 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
