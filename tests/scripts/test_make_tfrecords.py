"""scripts/make_tfrecords.py as a user runs it, and on a machine that fails."""

import pathlib
import signal
import subprocess
import sys
import time
import unicodedata

import pytest

from skipnet_jax.command import shards as program
from skipnet_jax.data import tfrecords
from tests.data import made_images

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "make_tfrecords.py"
DEADLINE = 120.0  # seconds, for a process that needs a few


@pytest.fixture
def script():
    return program


@pytest.fixture
def run(script):
    return lambda *arguments: script.main([str(argument) for argument in arguments])


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_official_archives_become_a_checked_data_set(tmp_path, run, capsys):
    train = made_images.write_train_tar(tmp_path / "ILSVRC2012_img_train.tar", 4)
    val = made_images.write_val_tar(tmp_path / "ILSVRC2012_img_val.tar", 5)
    out = tmp_path / "imagenet"
    assert run(f"--train={train}", f"--test={val}", f"--out={out}", "--train_shards=3", "--test_shards=2") == 0
    printed = capsys.readouterr().out
    assert "train: 12 images of 3 classes" in printed
    assert "train: 12 images in 3 shards" in printed
    index = tfrecords.read_index(str(out))
    assert (index.name, len(index.class_names), index.label_offset) == ("imagenet", 1000, 0)
    assert [shard.name for shard in index.splits["test"]] == ["test-00000-of-00002", "test-00001-of-00002"]
    assert run(f"--check={out}") == 0
    assert "no problems" in capsys.readouterr().out


def test_check_lists_what_is_wrong_and_fails(tmp_path, run, capsys):
    train = made_images.write_folders(tmp_path / "pets", {"cat": 3, "dog": 2})
    assert run(f"--train={train}", f"--out={tmp_path}/out", "--train_shards=2", "--name=zoo") == 0
    (tmp_path / "out" / "train-00001-of-00002").unlink()
    capsys.readouterr()
    assert run(f"--check={tmp_path}/out") == 1
    printed = capsys.readouterr().out
    assert "train-00001-of-00002: cannot be read" in printed
    assert "1 problem\n" in printed
    assert "out: zoo, 2 classes" in printed


def test_a_damaged_image_stops_the_script_or_is_left_out(tmp_path, run, capsys):
    train = made_images.write_folders(tmp_path / "pets", {"cat": 3, "dog": 2})
    (train / "dog" / "1.jpg").write_bytes(made_images.encode(1)[:-30])
    command = [f"--train={train}", f"--out={tmp_path}/out", "--train_shards=1"]
    assert run(*command) == 2
    assert "dog/1.jpg" in capsys.readouterr().err
    assert run(*command, "--corrupt=skip") == 0
    printed = capsys.readouterr()
    assert "dog/1.jpg" in printed.out + printed.err
    assert "1 images could not be decoded" in printed.out
    assert run(f"--check={tmp_path}/out") == 0


def test_class_names_fix_the_numbers(tmp_path, run):
    train = made_images.write_folders(tmp_path / "pets", {"cat": 2, "dog": 2})
    (tmp_path / "names").write_text("dog\nbird\ncat\n")
    command = [f"--train={train}", "--train_shards=1", f"--class_names={tmp_path}/names"]
    assert run(*command, f"--out={tmp_path}/out") == 0
    assert tfrecords.read_index(str(tmp_path / "out")).class_names == ("dog", "bird", "cat")
    (tmp_path / "names").write_text("dog\nbird\n")
    assert run(*command, f"--out={tmp_path}/other") == 2


def test_home_is_found_in_every_path(tmp_path, run, monkeypatch):
    """A shell leaves ~ as it is in --out=~/shards."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    made_images.write_folders(tmp_path / "pets", {"cat": 2, "dog": 2})
    (tmp_path / "names").write_text("dog\ncat\n")
    assert run("--train=~/pets", "--train_shards=1", "--class_names=~/names", "--out=~/out") == 0
    assert not (tmp_path / "~").exists()
    assert run("--check=~/out") == 0
    (tmp_path / "out" / "dataset.json").unlink()
    assert run("--index=~/out", "--train=train-*") == 0


def test_class_names_may_be_spelt_in_both_forms_of_unicode(tmp_path, run):
    spelt = {form: unicodedata.normalize(form, "Käse") for form in ("NFC", "NFD")}
    train = made_images.write_folders(tmp_path / "food", {spelt["NFD"]: 1, "Brot": 1})
    (tmp_path / "names").write_text(f"{spelt['NFD']}\nBrot\n")  # as `ls` shows the folders
    command = [f"--train={train}", "--train_shards=1", f"--class_names={tmp_path}/names"]
    assert run(*command, f"--out={tmp_path}/out") == 0
    assert tfrecords.read_index(str(tmp_path / "out")).class_names == (spelt["NFC"], "Brot")


def test_shards_made_elsewhere_are_described(tmp_path, run):
    train = made_images.write_folders(tmp_path / "pets", {"cat": 2, "dog": 2})
    assert run(f"--train={train}", f"--out={tmp_path}/out", "--train_shards=2") == 0
    (tmp_path / "out" / "dataset.json").unlink()
    assert run(f"--index={tmp_path}/out", "--train=train-*") == 0
    assert tfrecords.read_index(str(tmp_path / "out")).class_names == ("0", "1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--train={tmp}/nothing", "--out={tmp}/out"], "nothing: got no file or folder"),
        (["--train={tmp}/pets", "--out={tmp}/out"], "--train_shards: got 1024, expected 1 to 2"),
        (["--train={tmp}/pets", "--train_shards=1", "--out={tmp}/pets/cat/0.jpg"], "0.jpg"),
        (["--train={tmp}/pets", "--train_shards=1", "--class_names={tmp}/no", "--out={tmp}/out"], "a text file"),
        (["--check={tmp}/pets"], "no dataset.json"),
        (["--index={tmp}/pets", "--train=train-*"], "--train: got 'train-*'"),
    ],
)
def test_mistakes_are_one_line(tmp_path, run, capsys, arguments, words):
    made_images.write_folders(tmp_path / "pets", {"cat": 2})
    assert run(*(argument.format(tmp=tmp_path) for argument in arguments)) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert words in message


@pytest.mark.parametrize(
    "arguments", [[], ["--out=x"], ["--out=x", "--check=y"], ["--check=x", "--threads=0"], ["--out=x", "--corrupt=no"]]
)
def test_mistakes_of_the_command_line_end_with_2(run, arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_without_a_terminal_progress_is_a_line_now_and_then(tmp_path, script, run, capsys, monkeypatch):
    monkeypatch.setattr(script, "LINE_EVERY_SECONDS", 0.0)
    train = made_images.write_folders(tmp_path / "pets", {"cat": 2})
    assert run(f"--train={train}", f"--out={tmp_path}/out", "--train_shards=1") == 0
    printed = capsys.readouterr()
    assert "writing: 2 of 2 images, " in printed.out
    assert printed.err == ""


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(SCRIPT), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_a_killed_and_restarted_script_writes_the_same_bytes(tmp_path, run):
    source = made_images.write_train_tar(tmp_path / "train.tar", 200, side=192)
    command = [f"--train={source}", "--train_shards=24", "--name=set", "--threads=2"]
    assert run(*command, f"--out={tmp_path}/whole") == 0
    out = tmp_path / "out"
    kills = 0
    for shards in (1, 7, 15):
        process = start(*command, f"--out={out}")
        deadline = time.monotonic() + DEADLINE
        while len(list(out.glob("train-*"))) < shards and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert not (out / "dataset.json").exists() or process.returncode == 0
        for shard in out.glob("train-*"):  # what is in its place is whole
            assert shard.read_bytes() == (tmp_path / "whole" / shard.name).read_bytes()
    assert kills >= 2
    assert run(*command, f"--out={out}") == 0
    assert contents(out) == contents(tmp_path / "whole")


# Runs the script and prints its peak memory. (getrusage would count the process that started it too.)
_MEASURED = """
import pathlib, runpy, sys
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    print(status["VmHWM"].split()[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_data_set(tmp_path):
    peaks = []
    image = made_images.encode(0, side=384)
    for images in (150, 1500):
        source = tmp_path / f"{images}.tar"
        source.write_bytes(made_images.tar({f"cat/{i}.jpg": image for i in range(images)}))
        arguments = [f"--train={source}", "--train_shards=5", f"--out={tmp_path}/{images}", "--threads=2"]
        code = f"import sys; sys.argv = {[str(SCRIPT), *arguments]!r}\n{_MEASURED}"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE)
        assert result.returncode == 0, result.stderr
        peaks.append(int(result.stdout.split()[-1]) * 1024)
    growth = 1350 * len(image)
    assert growth > 100e6
    assert peaks[1] - peaks[0] < growth / 5, f"peak memory {peaks}, {len(image)} bytes an image"
