"""Real processes over loopback that find each other by the variables of Slurm, as under `srun`."""

import os
import pathlib
import re
import socket
import subprocess
import sys
from collections.abc import Sequence

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from skipnet_jax.runs import events
from tests.data import made_images
from tests.lives import env, forks  # noqa: F401 (fixtures)
from tests.runs.test_hosts import ENDLESS

ROOT = pathlib.Path(__file__).parents[2]
DEADLINE = 240

# A whole run in one epoch of one step, with a network that compiles at once.
SHORT_MAIN = [
    "-c",
    """
import dataclasses
import flax.linen as nn
from skipnet_jax import main, train

class TinyNet(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(images)
        return nn.Dense(self.num_classes, name="classifier")(x.mean((1, 2)))

def shortened(spec, workdir, *, allow_change):
    optim = dataclasses.replace(spec.optim, warmup_epochs=0)
    return whole(dataclasses.replace(spec, epochs=1, optim=optim), workdir, allow_change=allow_change)

whole, train.train_and_evaluate = train.train_and_evaluate, shortened
train.build_network = lambda spec: TinyNet(spec.num_classes)
main.run()
""",
]


def slurm(tasks: int, devices: Sequence[int]) -> list[dict[str, str]]:
    """The variables that Slurm sets for each task, with a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [
        {
            "SLURM_JOB_ID": "7",
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_NTASKS": str(tasks),
            "SLURM_STEP_NUM_TASKS": str(tasks),
            "SLURM_PROCID": str(task),
            "SLURM_LOCALID": str(task),
            "JAX_COORDINATOR_PORT": port,
            "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",  # else it listens to the whole network
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices[task]}",
        }
        for task in range(tasks)
    ]


@pytest.fixture
def srun(forks, tmp_path, tmp_path_factory):  # noqa: F811
    """Runs a command once per task, HOST in it being the task's number; returns the statuses and what each said."""

    def ran(*flags, tasks=2, devices=(1, 1, 1, 1)):
        outputs = [tmp_path_factory.mktemp("output") / "text" for _ in range(tasks)]
        processes = []
        for task, variables in enumerate(slurm(tasks, devices)):
            argv = [flag.replace("HOST", str(task)) for flag in flags]
            processes.append(forks.open(argv, outputs[task], env=variables, folder=tmp_path))
        try:
            statuses = [process.wait(DEADLINE) for process in processes]
        finally:
            for process in processes:
                process.kill()
        said = [output.read_text().splitlines() for output in outputs]
        return statuses, [[line for line in lines if "peer ranks" not in line] for lines in said]

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


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Like ImageNet as TFDS prepares it: 1000 classes, a batch of the recipe for training, and some for the test."""
    folder = tmp_path_factory.mktemp("tfds")
    label = tfds.features.ClassLabel(names=[f"n{number:08d}" for number in range(1000)])
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "file_name": tfds.features.Text(),
        "label": label,
    }

    def dataset(count):
        images = [made_images.encode(number % 50) for number in range(count)]
        names = [f"{number}.JPEG" for number in range(count)]
        labels = [number % 1000 for number in range(count)]
        return tf.data.Dataset.from_tensor_slices({"image": images, "file_name": names, "label": labels})

    tfds.dataset_builders.store_as_tfds_dataset(
        name="imagenet2012",
        version=str(tfds.builder("imagenet2012", data_dir=folder).version),
        data_dir=folder,
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": dataset(1030), "validation": dataset(40)},
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [1, 2])
def test_the_command_of_the_manual_trains_on_imagenet_on_one_machine_and_on_several(imagenet, tmp_path, tasks):
    """Word for word, in an empty folder; only the number of epochs and the network are cut."""
    command = [sys.executable, *SHORT_MAIN, "--config=configs/skip_resnet50.py"]
    both = os.environ | {"PYTHONPATH": str(ROOT), "TFDS_DATA_DIR": str(imagenet)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [
        subprocess.Popen(command, cwd=tmp_path, env=both | variables, **pipes)
        for variables in slurm(tasks, devices=[1] * tasks)
    ]
    try:
        first, *others = [process.communicate(timeout=DEADLINE)[0].splitlines() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * tasks, first
    assert first[0] == "no --workdir is given: training in runs/skip_resnet50"
    assert any(line.startswith(f"{tasks} x cpu: 1 epochs of 1 steps of ") for line in first)
    assert "of 40 images" in first[-1]
    assert all("peer ranks" in line for lines in others for line in lines)


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
