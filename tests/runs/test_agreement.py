"""Real processes over loopback that find each other by the variables of Slurm, as under `srun`."""

import os
import pathlib
import re
import socket
import subprocess
import sys

import pytest

from skipnet_jax.runs import events
from tests.runs.test_hosts import ENDLESS, TINY_MAIN

ROOT = pathlib.Path(__file__).parents[2]
DEADLINE = 240


@pytest.fixture
def srun(tmp_path):
    """Runs a command once per task, HOST in it being the task's number; returns the statuses and what each said."""

    def ran(*flags, tasks=2, devices=(1, 1, 1, 1), program=TINY_MAIN):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        processes = []
        for task in range(tasks):
            environment = os.environ | {
                "SLURM_JOB_ID": "7",
                "SLURM_STEP_NODELIST": "127.0.0.1",
                "SLURM_NTASKS": str(tasks),
                "SLURM_STEP_NUM_TASKS": str(tasks),
                "SLURM_PROCID": str(task),
                "SLURM_LOCALID": str(task),
                "JAX_COORDINATOR_PORT": port,
                "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",  # else it listens to the whole network
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices[task]}",
                "PYTHONPATH": str(ROOT),
            }
            command = [sys.executable, *program, *(flag.replace("HOST", str(task)) for flag in flags)]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            processes.append(subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes))
        try:
            said = [process.communicate(timeout=DEADLINE)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        lines = [[line for line in text.splitlines() if "peer ranks" not in line] for text in said]
        return [process.returncode for process in processes], lines

    return ran


def test_hosts_that_were_started_differently_say_so_and_stop(srun, tmp_path):
    statuses, said = srun(*ENDLESS, "--config.seed=HOST", "--config.optim.lr=0.HOST5")
    assert statuses == [2, 2], said
    for lines in said:
        assert lines == [
            "error: --distributed: got optim.lr is 0.05 on host 0 and 0.15 on host 1; seed is 0 on host 0 and 1 on "
            "host 1, expected the same settings, code and libraries on all 2 hosts. Start the same command with the "
            "same code and libraries on each, or give each --distributed=no to run alone."
        ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_hosts_with_different_numbers_of_devices_say_so_and_stop(srun):
    statuses, said = srun(*ENDLESS, devices=(2, 1))
    assert statuses == [2, 2], said
    for lines in said:
        assert len(lines) == 1 and "got number of devices is 2 on host 0 and 1 on host 1, expected the same" in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [2, 4])
def test_hosts_find_each_other_and_train_in_the_default_folder(srun, tmp_path, tasks):
    statuses, said = srun(*ENDLESS, "--config.epochs=1", tasks=tasks)
    assert statuses == [0] * tasks, said
    assert said[0][0] == "no --workdir is given: training in runs/digits"
    assert any(re.match(rf"{tasks} x cpu: 1 epochs of 22 steps of 64", line) for line in said[0])
    assert said[1:] == [[]] * (tasks - 1)
    assert [event["hosts"] for event in events.read(tmp_path / "runs" / "digits") if event["event"] == "start"] == [
        tasks
    ]


@pytest.mark.slow
def test_a_slurm_allocation_with_one_task_trains_alone(srun, tmp_path):
    statuses, said = srun(*ENDLESS, "--config.epochs=1", tasks=1, devices=(2,))
    assert statuses == [0] and any(line.startswith("2 x cpu") for line in said[0]), said
    assert [event["hosts"] for event in events.read(tmp_path / "runs" / "digits") if event["event"] == "start"] == [1]


@pytest.mark.slow
def test_a_host_that_nobody_joins_says_what_to_do():
    code = "from skipnet_jax.runs import hosts; hosts.JOIN_SECONDS = 3; hosts.join(ADDRESS, 2, 0, workdir='x')"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_COORDINATOR_BIND_ADDRESS": address}
    command = [sys.executable, "-c", code.replace("ADDRESS", repr(address))]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=DEADLINE)
    last = done.stderr.splitlines()[-1]
    assert done.returncode != 0 and last.startswith("error: not all hosts have joined within 3 s."), done.stderr
