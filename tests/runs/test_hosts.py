"""Real processes over loopback: two hosts compute the same as one, stop together, and notice when one is gone."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import pathlib
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
from PIL import Image

from skipnet_jax.data import tfrecords
from skipnet_jax.runs import checksums, events, hosts, workdir
from skipnet_jax.training import sharding
from tests.lives import Forks, Process, env, forks  # noqa: F401 (fixtures)
from tests.tiny_runs import TIMINGS, last_checkpoint

ROOT = pathlib.Path(__file__).parents[2]
DEVICES = 2  # in every run but one, on one host or on two, so that all run the same program and sum in one order
DEADLINE = 240  # seconds for all processes of a run
NOTICED = 100  # seconds in which a host notices that another is gone: a third of it, on an idle machine

# 203 and 61 images: no number below divides them, and one shard is smaller than a batch.
SHARDS = {"train": (70, 13, 99, 21), "test": (40, 21)}
EPOCHS, STEPS_PER_EPOCH = 8, 6
AUGMENTED = [
    "--config=configs/digits.py",
    "--config.data.name=tfrecords",
    "--config.data.pad_crop=0",
    "--config.data.crop_min_area=0.3",
    "--config.data.flip=True",
    "--config.data.color_jitter=0.4",
    "--config.data.lighting=0.1",
    "--config.batch_size=32",
    "--config.eval_batch_size=17",
    f"--config.epochs={EPOCHS}",
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
ENDLESS = [
    "--config=configs/digits.py",
    "--config.data.image_size=8",
    "--config.batch_size=64",
    "--config.epochs=1000",
    "--config.log_every_steps=7",
]


@dataclasses.dataclass
class Hosts:
    """The processes of one run, and the files of their output."""

    processes: list[Process]
    outputs: list[pathlib.Path]

    def wait(self) -> list[int]:
        deadline = time.monotonic() + DEADLINE
        return [process.wait(max(deadline - time.monotonic(), 0.1)) for process in self.processes]

    def send_once(self, happened: Callable[[], bool], number: signal.Signals, only: int | None = None) -> None:
        deadline = time.monotonic() + DEADLINE
        while not happened() and time.monotonic() < deadline:
            assert [process.poll() for process in self.processes] == [None] * len(self.processes), self.said()
            time.sleep(0.02)
        for process in self.processes if only is None else [self.processes[only]]:
            process.send_signal(number)

    def require_end_without_the_other(self, host: int, path: str) -> None:
        """Checks that a host ends by itself soon, and that its last words say what to do.

        JAX's threads may be quicker: one aborts the process on purpose, and another works on in freed memory.
        """
        began = time.monotonic()
        status = self.processes[host].wait(DEADLINE)
        assert status in (hosts.LOST, -signal.SIGABRT, -signal.SIGSEGV) and time.monotonic() - began < NOTICED, (
            self.said()
        )
        while not self.said()[host].endswith("again with the same command to go on.\n"):  # JAX may have ended it
            assert time.monotonic() - began < NOTICED, self.said()
            time.sleep(0.1)
        last = self.said()[host].splitlines()[-1]
        assert last.startswith("error: ") and "another" in last and path in last

    def training(self) -> bool:
        return "compiled" in self.said()[0]

    def said(self) -> list[str]:
        """The output of each host, without the lines of JAX's collectives."""
        texts = [output.read_text().splitlines(keepends=True) for output in self.outputs]
        return ["".join(line for line in lines if "peer ranks" not in line) for lines in texts]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    """Shards of digits as PNG files."""
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


@contextlib.contextmanager
def start_hosts(
    server: Forks, folder: pathlib.Path, *flags: str, hosts: int, devices: int = DEVICES
) -> Iterator[Hosts]:
    """Starts the same command on several hosts; none of them outlives the `with` block.

    Args:
      server: starts the processes.
      folder: of the files of their output.
      *flags: HOST in them becomes the number of the host.
      hosts: how many.
      devices: of all hosts together.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    variables = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // hosts}",
        "JAX_COORDINATOR_BIND_ADDRESS": address,  # else it listens to the whole network
    }
    running = Hosts([], [folder / str(host) for host in range(hosts)])
    try:
        for host, output in enumerate(running.outputs):
            joining = ["--distributed", f"--coordinator_address={address}", f"--num_processes={hosts}"]
            argv = [flag.replace("HOST", str(host)) for flag in flags]
            argv += [*joining, f"--process_id={host}"] if hosts > 1 else []
            running.processes.append(server.open(argv, output, env=variables))
        yield running
    finally:
        for process in running.processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def start(forks, tmp_path_factory) -> Callable[..., contextlib.AbstractContextManager[Hosts]]:  # noqa: F811
    """Starts the same command on several hosts, as `start_hosts` does."""
    return lambda *flags, hosts: start_hosts(forks, tmp_path_factory.mktemp("output"), *flags, hosts=hosts)


@pytest.fixture(scope="module")
def train(start) -> Callable[..., list[str]]:
    """Trains to the end, and returns the output of each host."""

    def trained(path: pathlib.Path, *flags: str, hosts: int) -> list[str]:
        with start(*flags, f"--workdir={path}", hosts=hosts) as running:
            assert running.wait() == [0] * hosts, running.said()
            return running.said()

    return trained


@pytest.fixture(scope="module")
def whole(train, data, tmp_path_factory) -> pathlib.Path:
    """The workdir of an uninterrupted run over shards on one host."""
    path = tmp_path_factory.mktemp("hosts") / "whole"
    train(path, *AUGMENTED, f"--config.data.dir={data}", hosts=1)
    return path


def require_same_run(path: pathlib.Path, expected: pathlib.Path) -> None:
    """Checks that two runs have the same numbers up to rounding, and the same counts exactly."""
    lines, expected_lines = workdir.read_metrics(path), workdir.read_metrics(expected)
    assert [line.keys() - TIMINGS for line in lines] == [line.keys() - TIMINGS for line in expected_lines]
    for line, expected_line in zip(lines, expected_lines, strict=True):
        for name in line.keys() - TIMINGS:
            rounds = "loss" in name or name == "grad_norm"
            np.testing.assert_allclose(line[name], expected_line[name], rtol=1e-4 if rounds else 0, err_msg=str(line))
    (step, results, state), (expected_step, expected_results, expected_state) = map(last_checkpoint, (path, expected))
    assert (step, results["count"]) == (expected_step, expected_results["count"])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), state, expected_state)


def require_first_host_alone_writes(path: pathlib.Path, said: list[str], hosts: list[int]) -> None:
    """Checks that each start and each line of metrics is there once, and that the other hosts print nothing."""
    assert said[1:] == [""] * len(said[1:])
    assert [event["hosts"] for event in events.read(path) if event["event"] == "start"] == hosts
    assert len(list((path / workdir.TENSORBOARD).iterdir())) == len(hosts)
    lines = [(line["step"], "test/loss" in line) for line in workdir.read_metrics(path)]
    assert len(set(lines)) == len(lines)


@pytest.mark.slow
def test_two_hosts_of_two_devices_compute_what_one_of_four_does(env, tmp_path):  # noqa: F811
    """In float64, since one process sums in another order than several.

    In float32 that puts the input of some ReLU on the other side of zero every few steps, and gradients differ by a
    thousandth.
    """
    flags = [*IN_MEMORY, "--config.model.dtype=float64", "--config.log_every_steps=1"]
    with contextlib.closing(Forks(env | {"JAX_ENABLE_X64": "1"}, tmp_path)) as exact:
        for name, count in {"two": 2, "one": 1}.items():
            output, place = tmp_path / f"output_{name}", f"--workdir={tmp_path / name}"
            output.mkdir()
            with start_hosts(exact, output, *flags, place, hosts=count, devices=4) as running:
                assert running.wait() == [0] * count, running.said()
                assert "4 x cpu: 1 epochs of 11 steps of 128 images" in running.said()[0]
    lines, expected_lines = (workdir.read_metrics(tmp_path / name) for name in ("two", "one"))
    assert len(lines) == len(expected_lines) == 12
    for line, expected in zip(lines, expected_lines, strict=True):
        for name in line.keys() - TIMINGS:
            np.testing.assert_allclose(line[name], expected[name], rtol=1e-6, err_msg=f"{name} {line}")


@pytest.mark.slow
def test_two_hosts_train_over_shards_as_one_and_their_number_may_change(start, train, whole, data, tmp_path):
    """From two hosts to one to two: stopped by Ctrl-C, then by kill -9, each time within an epoch."""
    path = tmp_path / "run"
    # The evaluation's batch size may change too: 61 images in batches of 6 give the same results as in batches of 18.
    flags = [*AUGMENTED, f"--config.data.dir={data}", "--config.eval_batch_size=5"]

    def last_saved() -> int:
        folders = (path / workdir.CHECKPOINTS).glob("*")
        return max((int(folder.name) for folder in folders if folder.name.isdecimal()), default=0)

    with start(*flags, f"--workdir={path}", hosts=2) as running:
        running.send_once(lambda: last_saved() > 0, signal.SIGINT)
        assert running.wait() == [130, 130], running.said()
        assert all("the last checkpoint is step" in text and "Traceback" not in text for text in running.said())
    stopped_at = last_saved()
    with start(*flags, f"--workdir={path}", hosts=1) as running:
        running.send_once(lambda: last_saved() > stopped_at, signal.SIGKILL)
        assert running.wait() == [-signal.SIGKILL], running.said()
        assert "resuming from step" in running.said()[0] and "finished" not in running.said()[0]
    said = train(path, *flags, hosts=2)
    assert "resuming from step" in said[0]
    assert "203 training and 61 test images" in said[0] and f"2 x cpu: {EPOCHS} epochs of 6 steps of 32" in said[0]
    require_same_run(path, whole)
    require_first_host_alone_writes(path, said, [2, 1, 2])


@pytest.mark.parametrize(
    ("asked", "number"), [pytest.param(0, signal.SIGINT, marks=pytest.mark.slow), (1, signal.SIGTERM)]
)
def test_a_signal_to_one_host_stops_all_after_the_same_step(start, tmp_path, asked, number):
    with start(*ENDLESS, f"--workdir={tmp_path}", hosts=2) as running:
        running.send_once(running.training, number, only=asked)
        assert running.wait() == [128 + number] * 2, running.said()
        texts = running.said()
    step = events.read(tmp_path)[-1]["step"]
    assert step > 0 and events.read(tmp_path)[-1]["why"] == number.name
    for text in texts:
        assert (
            f"stopped at step {step} of 22000 because of a signal to host {asked}; the last checkpoint is step {step} ("
            in text
        )
        assert "Traceback" not in text
    assert texts[asked].count(f"{number.name}: stopping") == 1 and texts[1 - asked].count(": stopping") == 0
    assert last_checkpoint(tmp_path)[0] == step


@pytest.mark.slow
@pytest.mark.parametrize("gone", [0, 1])  # host 0 runs the service through which the hosts find each other
def test_a_killed_host_ends_the_other_and_the_same_command_goes_on(start, tmp_path, gone):
    saving = [*ENDLESS, f"--workdir={tmp_path}", "--config.checkpoint_every_epochs=1"]
    with start(*saving, hosts=2) as running:
        running.send_once((tmp_path / workdir.CHECKPOINTS / "44").exists, signal.SIGKILL, only=gone)
        running.require_end_without_the_other(1 - gone, str(tmp_path))
        if running.processes[1 - gone].returncode == hosts.LOST:  # else JAX's threads were quicker
            assert "Traceback" not in running.said()[1 - gone]
            assert gone == 0 or events.read(tmp_path)[-1]["event"] == "stop"
    with start(*saving, "--config.epochs=1000", hosts=2) as running:
        running.send_once(running.training, signal.SIGTERM)
        assert running.wait() == [143, 143], running.said()
        assert int(re.search(r"resuming from step (\d+) of", running.said()[0])[1]) >= 44


@pytest.mark.slow
def test_hosts_put_aside_a_damaged_checkpoint_and_evaluate_an_unevaluated_one(start, tmp_path):
    """The second epoch's checkpoint is damaged, and a signal came during the first epoch's evaluation."""
    flags = [*ENDLESS, f"--workdir={tmp_path}", "--config.epochs=2", "--config.checkpoint_every_epochs=1"]
    with start(*flags, hosts=2) as running:
        assert running.wait() == [0, 0], running.said()
    results = workdir.read_metrics(tmp_path)[-1]
    first, second = (tmp_path / workdir.CHECKPOINTS / step for step in ("22", "44"))
    for file in (second / "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:50])
    shutil.rmtree(first / "metrics")
    items = json.loads((first / "_CHECKPOINT_METADATA").read_text())
    del items["item_handlers"]["metrics"]
    (first / "_CHECKPOINT_METADATA").write_text(json.dumps(items))
    epoch = {"loss": 2.0, "correct": 3, "count": 4}
    progress = checksums.seal({"window": [], "epoch": epoch})
    (first / "progress" / "metadata").write_text(json.dumps(progress))
    with start(*flags, hosts=2) as running:
        assert running.wait() == [0, 0], running.said()
        said = running.said()
    assert f"checkpoint {second} is damaged" in said[0] and "resuming from step 22 of 44" in said[0]
    assert "training: loss 0.5000, accuracy  75.00%" in said[0] and said[1] == ""
    again = workdir.read_metrics(tmp_path)
    assert [line["step"] for line in again if "test/loss" in line] == [22, 44]
    assert {name: again[-1][name] for name in again[-1].keys() - TIMINGS} == {
        name: results[name] for name in results.keys() - TIMINGS
    }
    assert last_checkpoint(tmp_path)[0] == 44 and json.loads((first / "metrics" / "metrics").read_text())["epoch"] == 1


@pytest.mark.slow
def test_a_host_that_no_longer_answers_ends_the_other(start, tmp_path):
    """On TPUs, a step would wait for ever for a host that is gone."""
    with start(*ENDLESS, f"--workdir={tmp_path}", hosts=2) as running:
        running.send_once(running.training, signal.SIGSTOP, only=1)
        running.require_end_without_the_other(0, str(tmp_path))


@pytest.mark.slow
def test_a_second_signal_ends_a_host_at_once_and_so_the_other(start, tmp_path):
    with start(*ENDLESS, f"--workdir={tmp_path}", hosts=2) as running:
        running.send_once(running.training, signal.SIGSTOP, only=0)  # so that the first signal has no effect yet
        running.processes[1].send_signal(signal.SIGTERM)
        running.send_once(lambda: "SIGTERM: stopping" in running.said()[1], signal.SIGTERM, only=1)
        assert running.processes[1].wait(DEADLINE) == 143
        running.processes[0].send_signal(signal.SIGCONT)
        running.require_end_without_the_other(0, str(tmp_path))


@pytest.mark.slow
def test_a_folder_that_the_hosts_do_not_share_is_refused(start, tmp_path):
    with start(*ENDLESS, f"--workdir={tmp_path}/HOST", hosts=2) as running:
        assert running.wait() == [2, 2], running.said()
        for host, text in enumerate(running.said()):
            assert re.fullmatch(
                f"error: --workdir: got {tmp_path}/{host}, where host 1 does not see what host 0 has written, expected "
                r"one folder that all 2 hosts share\. Give the same --workdir to all.*gs://.*\n",
                text,
            )
    assert list(tmp_path.iterdir()) == []


def test_without_a_cluster_to_ask_the_message_names_the_fields_to_give(monkeypatch):
    def initialize(*args, **kwargs):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    before = jax.config.jax_enable_preemption_service
    try:
        with pytest.raises(
            ValueError, match=r"distributed: got no cluster .*defined.*Elsewhere give coordinator_address, "
        ):
            hosts.join(None, None, None, workdir="x")
    finally:
        jax.config.update("jax_enable_preemption_service", before)


def test_votes_are_counted_later_and_by_host():
    votes = hosts.Votes(sharding.make_mesh())
    counts = [votes.cast(vote) for vote in (0, 15, 2, 0, 0)]
    assert counts == [(), (), [0], [15], [2]]


def test_with_one_host_no_error_means_a_lost_host():
    assert not hosts.is_lost(ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"))


@pytest.mark.slow
def test_two_hosts_evaluate_as_one(start, whole):
    with start("--mode=evaluate", f"--workdir={whole}", "--checkpoint=latest", hosts=2) as running:
        assert running.wait() == [0, 0], running.said()
        assert running.said()[1] == ""
    results = json.loads((whole / workdir.RESULTS).read_text())
    assert [(result["step"], result["count"]) for result in results] == [(EPOCHS * STEPS_PER_EPOCH, 61)]
    last = workdir.read_metrics(whole)[-1]
    for name in ("accuracy", "top5_accuracy"):
        assert results[0][name] == last[f"test/{name}"]
    np.testing.assert_allclose(results[0]["loss"], last["test/loss"], rtol=1e-5)
