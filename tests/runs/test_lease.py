"""One trainer at a time in a workdir: real processes that are killed, frozen, and too many."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from etils import epath
from orbax import checkpoint as ocp

from skipnet_jax import errors, train
from skipnet_jax.runs import events, lease, lease_store, weights, workdir
from skipnet_jax.runs.metrics_log import MetricsLog
from tests.gcs_emulator import NAME, bucket  # noqa: F401 (a fixture)
from tests.lives import EVERY_STEP, ROOT, SELDOM, Forks, env  # noqa: F401 (a fixture)
from tests.tiny_runs import TinyNet, make_spec, require_equal, use_network

# Holds the lease of a folder, and looks at it whenever the test sends a line.
HOLD = """
import sys
from etils import epath
from skipnet_jax.runs import lease
lease.RENEW_SECONDS, lease.STALE_SECONDS = 0.05, 1.0
try:
    held = lease.acquire(epath.Path(sys.argv[1]))
except Exception as error:
    sys.exit(print(type(error).__name__, error))
print("held", flush=True)
for line in sys.stdin:
    try:
        held.require()
        print("still", flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
held.close()
"""


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(lease, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(lease, "_POLL_SECONDS", 0.01)


class Holding:
    """A process that holds the lease of a folder."""

    def __init__(self, folder: pathlib.Path | str, environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-c", HOLD, str(folder)]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=-1, stdout=-1, text=True)
        self.said = self.process.stdout.readline()

    def ask(self) -> str:
        print(file=self.process.stdin, flush=True)
        return self.process.stdout.readline()


@pytest.fixture
def holding(tmp_path):
    holding = Holding(tmp_path)
    assert holding.said == "held\n"
    yield holding
    holding.process.kill()
    holding.process.communicate()


def acquire(folder, within):
    began = time.monotonic()
    held = lease.acquire(epath.Path(folder))
    assert time.monotonic() - began < within
    return held


def test_a_second_trainer_is_refused_with_host_process_and_age_of_the_first(holding, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "STALE_SECONDS", 60.0)
    began = time.monotonic()
    with pytest.raises(errors.UserError) as refusal:
        lease.acquire(epath.Path(tmp_path))
    assert time.monotonic() - began < 20  # not only once it would be stale
    host = os.uname().nodename
    assert f"in which process {holding.process.pid} on host {host} (since 20" in refusal.value.got
    assert "for 0:00:0" in refusal.value.got
    assert holding.ask() == "still\n"


def test_a_trainer_that_was_killed_leaves_nothing_to_wait_for_or_to_clean_up(holding, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "STALE_SECONDS", 60.0)
    holding.process.kill()
    holding.process.wait()
    acquire(tmp_path, within=20).close()
    assert not list(tmp_path.iterdir())


def test_a_frozen_trainer_loses_the_lease_and_notices_when_it_wakes(holding, tmp_path):
    holding.process.send_signal(signal.SIGSTOP)
    held = acquire(tmp_path, within=10)
    holding.process.send_signal(signal.SIGCONT)
    answer = holding.ask()
    assert answer.startswith("LeaseLostError workdir: got a lease that was taken over by process")
    assert f"taken over by process {os.getpid()} on host" in answer
    holding.process.communicate()  # it ends, and leaves the new holder's lease alone
    time.sleep(0.2)
    held.require()
    held.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("since", ["1970-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"])
def test_of_another_host_only_silence_counts_whatever_its_clock_says(tmp_path, since):
    store = lease_store_of(tmp_path)
    other = lease.Holder("elsewhere", "another machine", os.getpid(), 1, since, "token")
    version = store.take(0, other.serialize(0.0))
    os.utime(tmp_path / "lease" / "1", (4e9, 4e9))  # from the future
    alive = threading.Event()

    def renew():
        held_seconds = 0.0
        while not alive.wait(0.05):
            held_seconds += 0.05
            store.renew(version, other.serialize(held_seconds))

    thread = threading.Thread(target=renew)
    thread.start()
    with pytest.raises(errors.UserError, match="on host elsewhere"):
        lease.acquire(epath.Path(tmp_path))
    alive.set()
    thread.join()
    began = time.monotonic()
    held = acquire(tmp_path, within=10)
    assert time.monotonic() - began > 0.9
    with pytest.raises(LookupError):
        store.renew(version, other.serialize(9.0))
    held.close()


def lease_store_of(folder):
    return lease_store.open_store(epath.Path(folder))


def test_of_many_that_find_a_stale_lease_one_gets_it(tmp_path):
    other = lease.Holder("elsewhere", "another machine", 1, 1, "", "token")
    lease_store_of(tmp_path).take(0, other.serialize(0.0))
    got, refused = [], []

    def want():
        try:
            got.append(lease.acquire(epath.Path(tmp_path)))
        except errors.UserError as error:
            refused.append(error)

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)
    got[0].require()
    got[0].close()


@pytest.mark.parametrize("content", [b"", b"\xff{", b"[]", b'{"host": 3}'])
def test_a_damaged_lease_is_taken_over_when_nobody_renews_it(tmp_path, content):
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "7").write_bytes(content)
    held = acquire(tmp_path, within=10)
    held.require()
    held.close()
    assert not list(tmp_path.iterdir())


def test_a_lease_that_somebody_removed_is_lost(tmp_path):
    held = acquire(tmp_path, within=1)
    (tmp_path / "lease" / "1").unlink()
    with pytest.raises(errors.LeaseLostError, match="a lease that was removed"):
        held.require()
    held.close()


def test_in_a_bucket(bucket):  # noqa: F811
    started = []

    def start():
        started.append(Holding(f"gs://{NAME}/runs/a", bucket.environment))
        return started[-1]

    try:
        first, second = start(), start()
        assert first.said == "held\n" and first.ask() == "still\n"
        assert second.said.startswith(
            f"UserError workdir: got gs://{NAME}/runs/a, in which process {first.process.pid}"
        )
        first.process.send_signal(signal.SIGSTOP)
        third = start()
        first.process.send_signal(signal.SIGCONT)
        assert third.said == "held\n" and third.ask() == "still\n"
        assert first.ask().startswith("LeaseLostError")
        first.process.communicate()
        assert third.ask() == "still\n"
        third.process.kill()
        fourth = start()
        assert fourth.said == "held\n"
        fourth.process.communicate()  # ends, and gives it back
        assert bucket.objects("runs/a") == []
    finally:
        for each in started:
            each.process.kill()
            each.process.communicate()


def files_of(folder):
    """Contents, without those of TensorBoard's files, which belong to the process that opened them."""
    found = [file for file in folder.rglob("*") if file.is_file() and workdir.TENSORBOARD not in file.parts]
    return {file: file.read_bytes() for file in found}


@pytest.mark.usefixtures("compile_once")
@pytest.mark.parametrize("lost_at", ["a line of metrics", "a save", "the name of a checkpoint"])
def test_a_run_that_lost_the_lease_writes_nothing_more(tmp_path, monkeypatch, lost_at):
    use_network(monkeypatch, TinyNet())
    seen = {}

    def lose(*_):
        """Another host takes over."""
        if not seen:
            store = lease_store_of(tmp_path)
            version, _ = store.read()
            assert store.take(version, lease.Holder("elsewhere", "another", 1, 1, "", "token").serialize(0.0))
            seen.update(files_of(tmp_path))

    def before(owner, name):
        original = getattr(owner, name)

        def called(*args, **kwargs):
            lose()
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, called)

    if lost_at == "a line of metrics":
        before(MetricsLog, "write")
    elif lost_at == "a save":
        before(train.Saver, "save")
    else:
        before(ocp.path.atomicity.TemporaryPathBase, "get")  # a part of the write in the background
    with pytest.raises(errors.LeaseLostError, match="taken over by process 1 on host elsewhere"):
        train.train_and_evaluate(make_spec(checkpoint_every_epochs=1, epochs=2), tmp_path)
    written = {file for file, content in files_of(tmp_path).items() if seen.get(file) != content}
    assert all(".orbax-checkpoint-tmp" in str(file) for file in written), written
    assert not [step for step in (tmp_path / workdir.CHECKPOINTS).iterdir() if step.name.isdecimal()]


@pytest.mark.slow
def test_reading_beside_a_trainer_that_saves_all_the_time(env, tmp_path, monkeypatch):  # noqa: F811
    """Evaluation, prediction, explanation and export read by `weights.load` alone. Checksums find half a checkpoint."""
    use_network(monkeypatch, TinyNet())
    forks, path, read = Forks(env, tmp_path), tmp_path / "run", []
    try:
        life = forks.start(path, "--config.epochs=100", EVERY_STEP)
        life.wait_for(lambda: "compiled" in life.said() and any((path / workdir.CHECKPOINTS).glob("[0-9]")))
        until = time.monotonic() + 240
        while len(read) < 10 or len(set(read)) < 3:
            assert time.monotonic() < until, read
            read.append(weights.load(path, ["latest", "best"][len(read) % 2], averaged=len(read) % 3 == 0).step)
        assert life.kill()
    finally:
        forks.close()
    print(f"{len(read)} reads of {len(set(read))} checkpoints")


@pytest.mark.slow
def test_two_trainers_one_frozen(env, tmp_path):  # noqa: F811
    """The second is refused while the first trains, and takes over while it is frozen; the first then writes nothing.

    The first is frozen while it saves, so that its threads wake in the middle of a write.
    """
    length, path, forks = "--config.epochs=12", tmp_path / "run", Forks(env, tmp_path)
    try:
        first = forks.start(path, length, EVERY_STEP)
        first.wait_for(lambda: any((path / workdir.CHECKPOINTS).glob("*.orbax-checkpoint-tmp")))
        second = forks.start(path, length, SELDOM)
        assert os.waitstatus_to_exitcode(second.ended()) == 2, second.said()
        said = second.said().splitlines()[-1]
        assert said.startswith("error: --workdir: got ") and f"process {first.process} on host" in said
        assert "Traceback" not in second.said()
        first.wait_for(lambda: any((path / workdir.CHECKPOINTS).glob("*.orbax-checkpoint-tmp")))
        os.kill(first.process, signal.SIGSTOP)
        third = forks.start(path, length, SELDOM)
        third.wait_for(lambda: "resuming from step" in third.said())
        os.kill(first.process, signal.SIGCONT)
        assert os.waitstatus_to_exitcode(first.ended()) == 2, first.said()
        last = first.said().splitlines()[-1]
        assert last.startswith("error: --workdir: got a lease that was taken over by process"), first.said()
        assert "Traceback" not in first.said()
        assert third.ended() == 0, third.said()
        assert forks.start(tmp_path / "whole", length, SELDOM).ended() == 0
    finally:
        forks.close()
    require_equal(path, tmp_path / "whole")
    assert not (path / "lease").exists()
    assert [event["event"] for event in events.read(path)] == ["start", "start", "stop"]
    assert json.loads((path / workdir.CONFIG).read_text())["epochs"] == 12
