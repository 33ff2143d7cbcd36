"""Shards by Apache Beam on several processes: the bytes of the local writer, whatever happens to a worker."""

import contextlib
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from skipnet_jax.command import shards as program
from skipnet_jax.data import shard_beam
from skipnet_jax.data.archives import find_images
from skipnet_jax.data.shard_plan import ShardPlan, class_names_of
from skipnet_jax.errors import UserError
from tests.data import made_images

ROOT = pathlib.Path(__file__).parents[2]
DEADLINE = 240  # seconds
BEAM = ["--beam", "--runner=DirectRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"]
needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason='needs pip install -e ".[beam]", beside the extra `test`'
)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "skipnet_jax.main", "--mode=shards", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, cwd=ROOT, env=env)


@pytest.fixture
def pets(tmp_path) -> pathlib.Path:
    folder = made_images.write_folders(tmp_path / "pets", {"cat": 9, "dog": 8})
    (folder / "dog" / "1.jpg").write_bytes(made_images.encode(1)[:-30])
    return folder


@needs_beam
def test_the_pipeline_writes_the_bytes_of_the_local_writer_and_counts_what_it_refuses(tmp_path, pets):
    command = [f"--train={pets}", "--train_shards=4", "--name=pets", "--corrupt=skip"]
    assert program.main([*command, f"--out={tmp_path}/local"]) == 0
    result = run(*command, f"--out={tmp_path}/beam", *BEAM)
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")
    assert "1 images could not be decoded and are left out" in result.stdout
    made_with = json.loads((tmp_path / "beam" / "dataset.json").read_text())["made_with"]
    assert made_with["skipped"]["train"] == ["dog/1.jpg"]


@needs_beam
def test_a_bad_image_is_one_line_and_the_command_goes_on_from_there(tmp_path, pets):
    command = [f"--train={pets}", "--train_shards=4", "--name=pets"]
    result = run(*command, f"--out={tmp_path}/beam", *BEAM)
    assert result.returncode == 2
    assert "dog/1.jpg" in result.stderr and "--corrupt=skip" in result.stderr and "Traceback" not in result.stderr
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "beam").glob("train-*")}
    assert len(made) == 3
    result = run(*command, "--corrupt=skip", f"--out={tmp_path}/beam", *BEAM)
    assert result.returncode == 0, result.stderr
    assert {name: (tmp_path / "beam" / name).stat().st_mtime_ns for name in made} == made
    assert program.main([*command, "--corrupt=skip", f"--out={tmp_path}/local"]) == 0
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")


@needs_beam
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_killed_worker_leaves_nothing_broken(tmp_path):
    folder = made_images.write_folders(tmp_path / "pets", {"cat": 300, "dog": 300})
    command = [f"--train={folder}", "--train_shards=60", "--name=pets"]
    assert program.main([*command, f"--out={tmp_path}/local"]) == 0
    out = tmp_path / "beam"
    arguments = [sys.executable, "-m", "skipnet_jax.main", "--mode=shards", *command, f"--out={out}", *BEAM]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
    )
    deadline = time.monotonic() + DEADLINE
    while not list(out.glob("train-*")) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = [pid for pid in group_of(running.pid) if pid != running.pid]
    assert len(workers) >= 2 and running.poll() is None
    os.kill(max(workers), signal.SIGKILL)
    # Beam's runner on one machine starts no other worker: it gives up, or waits for ever.
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.wait(timeout=20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    for shard in out.glob("train-*"):  # what is in its place is whole
        assert shard.read_bytes() == (tmp_path / "local" / shard.name).read_bytes()
    result = run(*command, f"--out={out}", *BEAM)
    assert result.returncode == 0, result.stderr
    assert contents(out) == contents(tmp_path / "local")


def group_of(leader: int) -> list[int]:
    """The processes in a process group."""
    found = []
    for place in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(place.read_text().rpartition(")")[2].split()[2]) == leader:
                found.append(int(place.parent.name))
    return found


def test_a_shard_that_beam_makes_again_is_the_same(tmp_path, pets):
    """Beam repeats what a worker did that has died, or seems to have: in the middle, or after the shard was whole."""
    listing = find_images(str(pets), lambda: None)
    listings = {"train": listing}
    plan = ShardPlan("pets", class_names_of(listings), listings, {"train": 3}, on_corrupt="skip")
    out = str(tmp_path / "out")
    assert shard_beam.shard_writer.prepare(out, plan) is None
    task = shard_beam.shard_writer.tasks(out, plan, "train")(1)
    name = shard_beam._write_list(task)
    read = shard_beam._read_list(out, name)
    assert [read.images.read(k) for k in range(len(read.images))] == [
        task.images.read(k) for k in range(len(task.images))
    ]
    assert read.labels.tolist() == task.labels.tolist() and read.skip

    def make(stop_at: int = 0) -> dict[str, bytes]:
        stop, seen = threading.Event(), []

        def advance(count: int) -> None:
            seen.append(count)
            if len(seen) == stop_at:
                raise KeyboardInterrupt

        shard_beam.shard_writer.make_shard(read, stop, advance, lambda line: None)
        return contents(tmp_path / "out")

    with pytest.raises(KeyboardInterrupt):
        make(stop_at=3)
    assert not (tmp_path / "out" / name).exists()
    first = make()
    note = tmp_path / "out" / "parts" / f"{name}.json"
    assert make() == first
    note.unlink()  # the worker died between the shard and its note
    assert make() == first


def test_without_beam_the_message_says_what_to_install(tmp_path, pets, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    listings = {"train": find_images(str(pets), lambda: None)}
    plan = ShardPlan("pets", class_names_of(listings), listings, {"train": 3})
    with pytest.raises(UserError, match=r"no Apache Beam .*pip install -e \"\.\[beam\]\""):
        shard_beam.make(str(tmp_path / "out"), plan, flags=[], advance=lambda images: None)


def test_flags_of_beam_need_the_flag_beam(tmp_path, pets, capsys):
    with pytest.raises(SystemExit) as end:
        program.main([f"--train={pets}", f"--out={tmp_path}/out", "--runner=DirectRunner"])
    assert end.value.code == 2 and "unrecognized arguments: --runner=DirectRunner" in capsys.readouterr().err
