"""Real processes over loopback: two hosts compute what one does, and a run survives that their number changes."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
from PIL import Image

from skipnet_jax import checkpoint, events, workdir
from skipnet_jax.data import tfrecords

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
DEVICES = 2  # of every run, on one host or on two: so each computes the very same program
DEADLINE = 240  # seconds for all processes of a run
TIMINGS = {"images_per_second"}

# 203 and 61 divide by nothing below, and one shard is smaller than a batch.
SHARDS = {"train": (70, 13, 99, 21), "test": (40, 21)}
STEPS_PER_EPOCH = 6
AUGMENTED = [
    "--config=configs/digits.py",
    "--config.data.name=tfrecords",
    "--config.model.name=resnet20",
    "--config.data.pad_crop=0",
    "--config.data.crop_min_area=0.3",
    "--config.data.flip=True",
    "--config.data.color_jitter=0.4",
    "--config.data.lighting=0.1",
    "--config.batch_size=32",
    "--config.eval_batch_size=17",
    "--config.epochs=4",
    "--config.optim.warmup_epochs=1",
    "--config.log_every_steps=1",
    "--config.checkpoint_every_epochs=1",
]
IN_MEMORY = [
    "--config=configs/digits.py",
    "--config.model.name=resnet20",
    "--config.data.image_size=8",
    "--config.epochs=1",
    "--config.eval_batch_size=51",
]


@dataclasses.dataclass
class Hosts:
    """The processes of one run, and the files that hold what each says."""

    processes: list[subprocess.Popen]
    outputs: list[pathlib.Path]

    def wait(self) -> list[int]:
        deadline = time.monotonic() + DEADLINE
        return [process.wait(max(deadline - time.monotonic(), 0.1)) for process in self.processes]

    def interrupt_once(
        self, happened: Callable[[], bool], number: signal.Signals, only: int | None = None
    ) -> list[int]:
        deadline = time.monotonic() + DEADLINE
        while not happened() and time.monotonic() < deadline:
            assert [process.poll() for process in self.processes] == [None] * len(self.processes), self.said()
            time.sleep(0.02)
        for process in self.processes if only is None else [self.processes[only]]:
            process.send_signal(number)
        return self.wait()

    def said(self) -> list[str]:
        """What each host said, without the lines of JAX's collectives."""
        texts = [output.read_text().splitlines(keepends=True) for output in self.outputs]
        return ["".join(line for line in lines if not line.startswith("[Gloo]")) for lines in texts]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> pathlib.Path:
    """What one process has compiled serves the next."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    """Digits as PNG files in shards."""
    folder = tmp_path_factory.mktemp("digits")
    digits = sklearn.datasets.load_digits()
    examples = iter(zip(digits.images, digits.target, strict=True))
    splits = {}
    for split, counts in SHARDS.items():
        shards = []
        for number, count in enumerate(counts):
            path = folder / f"{split}-{number:05d}-of-{len(counts):05d}"
            with tf.io.TFRecordWriter(str(path)) as writer:
                for i in range(count):
                    pixels, label = next(examples)
                    file = io.BytesIO()
                    Image.fromarray((pixels * (255 / 16)).astype(np.uint8)).resize((20, 20)).save(file, "PNG")
                    writer.write(tfrecords.serialize(file.getvalue(), int(label), f"{number}-{i}.png"))
            content = path.read_bytes()
            shards.append(tfrecords.Shard(str(path), count, len(content), hashlib.sha256(content).hexdigest()))
        splits[split] = tuple(shards)
    index = tfrecords.Index("digits", tuple("0123456789"), label_offset=0, splits=splits)
    tfrecords.write_index(str(folder), index, made_with={})
    return folder


@pytest.fixture(scope="module")
def start(compiled, tmp_path_factory) -> Callable[..., contextlib.AbstractContextManager[Hosts]]:
    """Starts the same command on so many hosts; none of them outlives the `with` block."""

    @contextlib.contextmanager
    def started(*flags: str, hosts: int) -> Iterator[Hosts]:
        folder = tmp_path_factory.mktemp("output")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        env = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // hosts}",
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
            "JAX_COORDINATOR_BIND_ADDRESS": address,  # else it listens to the whole network
        }
        running = Hosts([], [folder / str(host) for host in range(hosts)])
        try:
            for host, output in enumerate(running.outputs):
                joining = ["--distributed", f"--coordinator_address={address}", f"--num_processes={hosts}"]
                command = [sys.executable, "-m", "skipnet_jax.main", *flags]
                command += [*joining, f"--process_id={host}"] if hosts > 1 else []
                with output.open("w") as file:
                    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT)
                running.processes.append(process)
            yield running
        finally:
            for process in running.processes:
                process.kill()
                process.wait()

    return started


@pytest.fixture(scope="module")
def train(start) -> Callable[..., list[str]]:
    """Trains to the end, and returns what each host said."""

    def trained(path: pathlib.Path, *flags: str, hosts: int) -> list[str]:
        with start(*flags, f"--workdir={path}", hosts=hosts) as running:
            assert running.wait() == [0] * hosts, running.said()
            return running.said()

    return trained


@pytest.fixture(scope="module")
def whole(train, data, tmp_path_factory) -> pathlib.Path:
    """The workdir of a run over shards on one host that nothing interrupted."""
    path = tmp_path_factory.mktemp("hosts") / "whole"
    train(path, *AUGMENTED, f"--config.data.dir={data}", hosts=1)
    return path


def require_same_run(path: pathlib.Path, expected: pathlib.Path) -> None:
    """The same numbers to rounding, and the same counts exactly."""
    lines, expected_lines = workdir.read_metrics(path), workdir.read_metrics(expected)
    assert [line.keys() - TIMINGS for line in lines] == [line.keys() - TIMINGS for line in expected_lines]
    for line, expected_line in zip(lines, expected_lines, strict=True):
        for name in line.keys() - TIMINGS:
            rounds = "loss" in name or name == "grad_norm"
            np.testing.assert_allclose(line[name], expected_line[name], rtol=1e-4 if rounds else 0, err_msg=str(line))
    (step, results, state), (expected_step, expected_results, expected_state) = map(last_checkpoint, (path, expected))
    assert (step, results["count"]) == (expected_step, expected_results["count"])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), state, expected_state)


def last_checkpoint(path: pathlib.Path):
    with checkpoint.open_manager(path / workdir.CHECKPOINTS, read_only=True) as manager:
        step = checkpoint.find(manager, "latest")
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        state = checkpoint.restore(manager, step, checkpoint.stored_shapes(manager, step, device))
        return step, manager.metrics(step), jax.tree.map(np.asarray, state)


def require_first_host_alone_writes(path: pathlib.Path, said: list[str], hosts: list[int]) -> None:
    """Each start (of so many hosts) is noted once, each line of metrics is there once, and other hosts say nothing."""
    assert said[1:] == [""] * len(said[1:])
    assert [event["hosts"] for event in events.read(path) if event["event"] == "start"] == hosts
    assert len(list((path / workdir.TENSORBOARD).iterdir())) == len(hosts)
    lines = [(line["step"], "test/loss" in line) for line in workdir.read_metrics(path)]
    assert len(set(lines)) == len(lines)


def test_two_hosts_train_over_shards_as_one(train, whole, data, tmp_path):
    said = train(tmp_path / "two", *AUGMENTED, f"--config.data.dir={data}", hosts=2)
    assert "203 training and 61 test images" in said[0] and "2 x cpu: 4 epochs of 6 steps of 32" in said[0]
    require_same_run(tmp_path / "two", whole)
    require_first_host_alone_writes(tmp_path / "two", said, [2])
    step, results, _ = last_checkpoint(tmp_path / "two")
    assert (step, results["count"]) == (4 * STEPS_PER_EPOCH, 61)


def test_two_hosts_train_in_memory_as_one(train, tmp_path):
    said = train(tmp_path / "two", *IN_MEMORY, hosts=2)
    train(tmp_path / "one", *IN_MEMORY, hosts=1)
    require_same_run(tmp_path / "two", tmp_path / "one")
    require_first_host_alone_writes(tmp_path / "two", said, [2])
    assert last_checkpoint(tmp_path / "two")[1]["count"] == 360


def test_the_number_of_hosts_may_change(start, train, whole, data, tmp_path):
    """From two to one to two: stopped by Ctrl-C, then by kill -9, each time within an epoch."""
    path = tmp_path / "run"
    # How many images are evaluated at once may change as well: 61 in parts of 6 come out as in parts of 18.
    flags = [*AUGMENTED, f"--config.data.dir={data}", "--config.eval_batch_size=5"]

    def saved(epochs: int) -> bool:
        return (path / workdir.CHECKPOINTS / str(epochs * STEPS_PER_EPOCH)).exists()

    with start(*flags, f"--workdir={path}", hosts=2) as running:
        assert running.interrupt_once(lambda: saved(1), signal.SIGINT) == [130, 130], running.said()
        assert all("saved is step" in text and "Traceback" not in text for text in running.said())
    with start(*flags, f"--workdir={path}", hosts=1) as running:
        assert running.interrupt_once(lambda: saved(2), signal.SIGKILL) == [-signal.SIGKILL], running.said()
        assert "going on from step" in running.said()[0] and "finished" not in running.said()[0]
    said = train(path, *flags, hosts=2)
    assert "going on from step" in said[0]
    require_same_run(path, whole)
    require_first_host_alone_writes(path, said, [2, 1, 2])


def test_a_host_that_stops_alone_ends_the_other(start, data, tmp_path):
    """They would wait for each other: the one for the end of the other, that for numbers of the one."""
    flags = [*AUGMENTED, f"--config.data.dir={data}", f"--workdir={tmp_path}", "--config.epochs=1000"]
    first = tmp_path / workdir.CHECKPOINTS / str(STEPS_PER_EPOCH)
    with start(*flags, hosts=2) as running:
        statuses = running.interrupt_once(first.exists, signal.SIGINT, only=1)  # waits for both, not for ever
        assert statuses[1] == 130 and statuses[0] != 0, running.said()


def test_two_hosts_evaluate_as_one(start, whole):
    with start("--mode=evaluate", f"--workdir={whole}", "--checkpoint=latest", hosts=2) as running:
        assert running.wait() == [0, 0], running.said()
        assert running.said()[1] == ""
    results = json.loads((whole / workdir.RESULTS).read_text())
    assert [(result["step"], result["count"]) for result in results] == [(4 * STEPS_PER_EPOCH, 61)]
    last = workdir.read_metrics(whole)[-1]
    for name in ("accuracy", "top5_accuracy"):
        assert results[0][name] == last[f"test/{name}"]
    np.testing.assert_allclose(results[0]["loss"], last["test/loss"], rtol=1e-5)
