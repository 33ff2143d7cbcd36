"""Data, checkpoints and metrics in a bucket, as a user has them, against an emulator on this machine."""

import json
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.data import made_images
from tests.gcs_emulator import DENIED, NAME, Bucket, bucket  # noqa: F401 (a fixture)

ROOT = pathlib.Path(__file__).parents[2]
MAKE = ["python", "scripts/make_tfrecords.py"]
MAIN = ["python", "-m", "tests.tiny_main"]
DATA = f"gs://{NAME}/pets"
WORKDIR = f"gs://{NAME}/runs/pets"
TRAIN = [
    *MAIN,
    "--config=configs/digits.py",
    "--config.model.num_classes=3",
    "--config.data.name=tfrecords",
    "--config.data.image_size=8",
    "--config.data.pad_crop=0",
    "--config.batch_size=16",
    "--config.eval_batch_size=16",
    "--config.checkpoint_every_epochs=1",
]
DEADLINE = 300.0  # seconds; an idle machine takes a twentieth of it
AT_ONCE = 150.0  # seconds for an error, mostly for imports on a busy machine; TensorFlow's own retries take longer


def start(bucket: Bucket, command: list[str]) -> subprocess.Popen:  # noqa: F811
    environment = {**bucket.environment, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True)


def run(bucket: Bucket, command: list[str], *, status: int = 0, seconds: float = DEADLINE) -> str:  # noqa: F811
    """Runs a command, and returns its output."""
    process = start(bucket, command)
    try:
        printed, _ = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert process.returncode == status, printed
    return printed


# A run's start, its save and its next start, without the training.
_WORKDIR = """
import jax.numpy as jnp
from etils import epath
from skipnet_jax.runs import checkpoint, metrics_log, recovery, workdir
from tests.tiny_runs import make_spec

run = workdir.open_for_training({workdir!r}, make_spec())
log = metrics_log.MetricsLog(run, step=0)
for step in (5, 10):
    log.write(step, {{"train/loss": 0.5}})
log.close()
state = {{"params": {{"kernel": jnp.arange(6.0)}}}}
with checkpoint.open_manager(run / workdir.CHECKPOINTS) as manager:
    checkpoint.save(manager, 5, state, {{"accuracy": 0.5}}, {{"window": [], "epoch": {{"count": 5}}}})
(run / workdir.CHECKPOINTS / "10" / "state").mkdir(parents=True)
(run / workdir.CHECKPOINTS / "10" / "state" / "torn").write_text("")
recovery.put_aside_incomplete(run)
with checkpoint.open_manager(run / workdir.CHECKPOINTS) as manager:
    restored, step, pending = recovery.restore_newest(run, manager, state)
assert (restored["params"]["kernel"] == jnp.arange(6.0)).all() and step == 5 and pending["epoch"] == {{"count": 5}}
metrics_log.MetricsLog(run, step=5).close()
assert workdir.read_spec(run) == make_spec() and [line["step"] for line in workdir.read_metrics(run)] == [5]
"""


def test_a_workdir_in_a_bucket(bucket):  # noqa: F811
    run(bucket, ["python", "-c", _WORKDIR.format(workdir=f"gs://{NAME}/runs/small")])
    names = bucket.objects("runs/small/")
    assert "runs/small/damaged/10/state/torn" in names and "runs/small/checkpoints/10/state/torn" not in names


# Writes lines and checkpoints all the time, until the test says that it is enough.
_WRITER = """
import sys, threading
import jax.numpy as jnp
from etils import epath
from skipnet_jax.runs import lease, metrics_log, saver, workdir
from tests.tiny_runs import make_spec

with lease.hold(workdir.locate({workdir!r})) as held:
    run = workdir.open_for_training({workdir!r}, make_spec())
    log, enough, step = metrics_log.MetricsLog(run, step=0, lease=held), threading.Event(), 0
    threading.Thread(target=lambda: (sys.stdin.readline(), enough.set()), daemon=True).start()
    with saver.Saver(run / workdir.CHECKPOINTS, every_minutes=1, lease=held) as saves:
        while not enough.is_set() or step < 3:
            step += 1
            log.write(step, {{"train/loss": 0.5}})
            saves.save(step, {{"params": jnp.arange(6.0)}}, {{"window": [], "epoch": {{}}}}, None)
            print("step", step, flush=True)
        assert saves.finish() and saves.manager.latest_step() == step
    log.close()
assert [line["step"] for line in workdir.read_metrics(run)] == list(range(1, step + 1))
"""
OUTAGE = float(os.environ.get("OUTAGE", "16"))  # seconds; give 60 for a whole minute


def write_through(bucket: Bucket, workdir: str, trouble: Callable[[], None]) -> None:  # noqa: F811
    """Makes trouble for a writer that is in the middle of its work; all that it writes has to be there in the end."""
    command = ["python", "-c", _WRITER.format(workdir=workdir)]
    environment = {**bucket.environment, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=-1, stderr=subprocess.STDOUT, text=True
    )
    said = []
    try:
        while "step 1\n" not in said:
            said.append(process.stdout.readline())
            assert said[-1], said
        trouble()
        bucket.trouble.status, bucket.trouble.delay = 0, 0.0
        printed, _ = process.communicate("enough\n", timeout=DEADLINE)
    finally:
        bucket.trouble.status, bucket.trouble.delay = 0, 0.0
        process.kill()
        process.wait()
    assert process.returncode == 0, "".join(said) + printed


@pytest.mark.slow
def test_a_bucket_that_is_out_for_a_while_changes_nothing(bucket):  # noqa: F811
    def refuse() -> None:
        for status in (503, 429, 503, 429):
            bucket.trouble.status = status
            time.sleep(OUTAGE / 4)

    before = bucket.trouble.answered
    write_through(bucket, f"gs://{NAME}/runs/out", refuse)
    assert bucket.trouble.answered > before + 3


@pytest.mark.slow
def test_a_slow_bucket_changes_nothing(bucket):  # noqa: F811
    """A second for each answer."""

    def delay() -> None:
        bucket.trouble.delay = 1.0
        time.sleep(OUTAGE)

    write_through(bucket, f"gs://{NAME}/runs/slow", delay)


@pytest.fixture(scope="module")
def shards(bucket, tmp_path_factory) -> list[str]:  # noqa: F811
    source = made_images.write_train_tar(tmp_path_factory.mktemp("images") / "train.tar", 16)
    command = [*MAKE, f"--train={source}", f"--test={source}", "--train_shards=3", "--test_shards=2", f"--out={DATA}"]
    run(bucket, command)
    return [name for name in bucket.objects("pets/") if not name.endswith("/")]


@pytest.mark.slow
def test_shards_are_written_into_a_bucket_and_checked_there(bucket, shards):  # noqa: F811
    train = [f"pets/train-0000{i}-of-00003" for i in range(3)]
    test = [f"pets/test-0000{i}-of-00002" for i in range(2)]
    described = [f"pets/{name}" for name in ("dataset.json", "dataset_info.json", "features.json", "label.labels.txt")]
    assert shards == [*described, *test, *train]
    index = json.loads(bucket.read("pets/dataset.json"))
    assert [len(bucket.read(name)) for name in train] == [
        shard["bytes"] for shard in index["splits"]["train"]["shards"]
    ]
    assert "no problems" in run(bucket, [*MAKE, f"--check={DATA}"])


@pytest.mark.slow
def test_images_and_tars_in_a_bucket_become_the_shards_of_local_ones(bucket, tmp_path):  # noqa: F811
    images = {f"{k:04d}.jpg": made_images.encode(k) for k in range(8)}
    sources = {f"wds/train-{k}.tar": made_images.tar(_samples(images, range(4 * k, 4 * k + 4))) for k in range(2)}
    sources |= {f"photos/{('cat', 'dog')[k % 2]}/{k}.jpg": made_images.encode(k) for k in range(8)}
    for name, content in sources.items():
        bucket.upload(f"sources/{name}", content)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    for what in ("wds/train-*.tar", "photos"):
        options = ["--train_shards=2", "--name=pets"]
        run(bucket, [*MAKE, f"--train=gs://{NAME}/sources/{what}", f"--out={tmp_path}/from_bucket", *options])
        run(bucket, [*MAKE, f"--train={tmp_path}/{what}", f"--out={tmp_path}/from_disk", *options])
        shards = sorted(path.name for path in (tmp_path / "from_disk").glob("train-*"))
        assert len(shards) == 2
        for shard in shards:
            read = [(tmp_path / folder / shard).read_bytes() for folder in ("from_bucket", "from_disk")]
            assert read[0] == read[1]
        for folder in ("from_bucket", "from_disk"):
            (tmp_path / folder).rename(tmp_path / f"{folder}_{len(what)}")


def _samples(images: dict[str, bytes], numbers: range) -> dict[str, bytes]:
    files = {}
    for k in numbers:
        files |= {f"{k:04d}.jpg": images[f"{k:04d}.jpg"], f"{k:04d}.cls": str(k % 2).encode()}
    return files


@pytest.mark.slow
def test_training_reads_and_writes_a_bucket_and_survives_a_kill(bucket, shards):  # noqa: F811
    command = [*TRAIN, "--config.epochs=2", f"--config.data.dir={DATA}", f"--workdir={WORKDIR}"]
    process = start(bucket, command)
    deadline = time.monotonic() + DEADLINE
    saved = "runs/pets/checkpoints/3/commit_success.txt"  # Orbax's last file of a checkpoint
    while not bucket.objects(saved) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    printed, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL and bucket.objects(saved), printed

    printed = run(bucket, command)
    assert "epoch 1/2" not in printed, "it began anew"
    assert "finished: 2 epochs" in printed
    names = bucket.objects("runs/pets/")
    assert any(name.startswith("runs/pets/checkpoints/6/") for name in names)
    assert any(name.startswith("runs/pets/tensorboard/events") for name in names)
    metrics = [json.loads(line) for line in bucket.read("runs/pets/metrics.jsonl").splitlines()]
    tested = [line for line in metrics if "test/accuracy" in line]
    assert [line["step"] for line in tested] == [3, 6]

    printed = run(bucket, [*MAIN, "--mode=evaluate", "--checkpoint=latest", f"--workdir={WORKDIR}"])
    assert "at step 6" in printed
    assert json.loads(bucket.read("runs/pets/results.json"))
    assert f"{tested[-1]['test/accuracy']:.2%}" in printed


# Runs the script once per line of arguments, in one process, since imports take most of the time.
_RUN_EACH = """
import runpy, sys, time
for line in sys.argv[1:]:
    sys.argv = [{script!r}, *line.split()]
    began = time.monotonic()
    try:
        runpy.run_path({script!r}, run_name="__main__")
    except SystemExit as stop:
        print("status", stop.code, "after", time.monotonic() - began)
"""


@pytest.mark.slow
def test_the_script_refuses_at_once_a_bucket_that_cannot_be_used(bucket, tmp_path):  # noqa: F811
    source = made_images.write_train_tar(tmp_path / "train.tar", 1)
    lines = [
        line
        for name in ("nowhere", DENIED)
        for line in (f"--train={source} --train_shards=1 --out=gs://{name}/pets", f"--check=gs://{name}/pets")
    ]
    code = _RUN_EACH.format(script=MAKE[1])
    printed = run(bucket, ["python", "-c", code, *lines], seconds=AT_ONCE)
    assert printed.count("status 2 after") == 4
    assert printed.count("no bucket gs://nowhere") == 2
    assert printed.count("access denied") == 2
    assert "Traceback" not in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "name", "words"),
    [("config.data.dir", DENIED, "access denied"), ("workdir", "nowhere", "no bucket gs://nowhere")],
)
def test_training_refuses_at_once_a_bucket_that_cannot_be_used(bucket, shards, tmp_path, flag, name, words):  # noqa: F811
    places = {"config.data.dir": DATA, "workdir": str(tmp_path / "run"), flag: f"gs://{name}/x"}
    command = [*TRAIN, *(f"--{place}={path}" for place, path in places.items())]
    printed = run(bucket, command, status=2, seconds=AT_ONCE)
    assert words in printed
    assert "Traceback" not in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "workdir", "words"),
    [("gs://nowhere/photos", "run", "no bucket gs://nowhere"), ("x.png", f"gs://{DENIED}/run", "access denied")],
)
def test_predict_refuses_at_once_a_bucket_that_cannot_be_used(bucket, image, workdir, words):  # noqa: F811
    command = ["python", "-m", "skipnet_jax.predict", image, f"--workdir={workdir}"]
    printed = run(bucket, command, status=2, seconds=AT_ONCE)
    assert words in printed
    assert "Traceback" not in printed
