"""scripts/run_local_hosts.py with a fake main; test_docs.py runs the real one."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
DEADLINE = 60

# The flag --do=... tells each host what to do: end with a status, or "wait" for a signal.
MAIN = """
import json, os, pathlib, signal, sys, time
flags = dict(flag.removeprefix("--").partition("=")[::2] for flag in sys.argv[1:])
host = flags["process_id"]
pathlib.Path(f"told{host}").write_text(json.dumps({"flags": sys.argv[1:], **os.environ}))
what = flags["do"].split(",")[int(host)]
def stop(number, frame):
    time.sleep(0.3 * int(host))  # time for a second signal, if there is one
    with open(f"signals{host}", "a") as file:
        print(number, file=file)
    print("saved", flush=True)
    sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
print("one")
if what == "talk":
    print(100_000 * "line\\n", flush=True)
    what = 0
print("two", file=sys.stderr)
pathlib.Path(f"ready{host}").touch()
if what == "wait":
    time.sleep(60)
sys.exit(int(what))
"""


@pytest.fixture
def start(tmp_path):
    (tmp_path / "skipnet_jax").mkdir()
    (tmp_path / "skipnet_jax" / "__init__.py").touch()
    (tmp_path / "skipnet_jax" / "main.py").write_text(MAIN)
    program = (
        "import sys, run_local_hosts as program; program.SECONDS_TO_NOTICE = 1; sys.exit(program.main(sys.argv[1:]))"
    )

    def started(*arguments: str) -> subprocess.Popen:
        environment = os.environ | {"PYTHONPATH": str(SCRIPTS), "XLA_FLAGS": "--xla_a=1"}
        environment["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True, process_group=0
        )

    return started


def ended(process: subprocess.Popen) -> tuple[int, list[str]]:
    printed, _ = process.communicate(timeout=DEADLINE)
    return process.returncode, sorted(printed.splitlines())


def test_each_host_gets_its_number_its_devices_and_an_address_on_loopback(start, tmp_path):
    status, printed = ended(start("--num_processes=2", "--devices_per_process=3", "--", "--a=b c", "--do=0,0"))
    assert (status, printed) == (0, ["[host 0] one", "[host 0] two", "[host 1] one", "[host 1] two"])
    for host in (0, 1):
        told = json.loads((tmp_path / f"told{host}").read_text())
        *flags, address, number, mine = told["flags"]
        assert flags == ["--a=b c", "--do=0,0", "--distributed"]
        assert (number, mine) == ("--num_processes=2", f"--process_id={host}")
        assert address == f"--coordinator_address={told['JAX_COORDINATOR_BIND_ADDRESS']}"
        assert told["JAX_COORDINATOR_BIND_ADDRESS"].startswith("127.0.0.1:")
        assert told["XLA_FLAGS"].split() == ["--xla_a=1", "--xla_force_host_platform_device_count=3"]
        assert told["JAX_PLATFORMS"] == "cpu"


def test_the_first_failure_ends_the_others_and_gives_the_status(start):
    began = time.monotonic()
    status, _ = ended(start("--num_processes=3", "--", "--do=wait,5,wait"))
    assert status == 5
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("number", "whole_group"),
    [
        (signal.SIGINT, True),  # as Ctrl-C does
        pytest.param(signal.SIGINT, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, True, marks=pytest.mark.slow),
        (signal.SIGTERM, False),
    ],
)
def test_a_signal_reaches_each_host_once_and_all_have_time_to_save(start, tmp_path, number, whole_group):
    process = start("--num_processes=2", "--", "--do=wait,wait")
    while not all((tmp_path / f"ready{host}").exists() for host in (0, 1)):
        assert process.poll() is None
        time.sleep(0.02)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    status, printed = ended(process)
    assert status == 128 + number
    assert {"[host 0] saved", "[host 1] saved"} <= set(printed)
    assert [(tmp_path / f"signals{host}").read_text() for host in (0, 1)] == [f"{int(number)}\n"] * 2


def test_hosts_do_not_wait_for_a_reader_that_has_gone(start):
    process = start("--num_processes=2", "--", "--do=talk,talk")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=DEADLINE) == 0


def test_a_killed_host_is_a_failure(start, tmp_path):
    process = start("--num_processes=2", "--", "--do=0,wait")
    while not (tmp_path / "ready1").exists():
        assert process.poll() is None
        time.sleep(0.02)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert ended(process)[0] == 137


@pytest.mark.parametrize("arguments", [[], ["--num_processes=0", "--", "--do=0"], ["--num_processes=x", "--", "--a"]])
def test_wrong_calls(start, arguments):
    status, printed = ended(start(*arguments))
    assert status == 2 and any("error:" in line and "expected" in line for line in printed)
