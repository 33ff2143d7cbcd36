import contextlib
import errno
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from skipnet_jax import evaluate, predict
from skipnet_jax.data import sources
from skipnet_jax.evaluation import image_predictions
from skipnet_jax.evaluation.preprocessing import Preprocessing
from skipnet_jax.runs import result_parts
from skipnet_jax.specs import Statistics
from tests import tiny_runs
from tests.exports.small_networks import write_weights

ROOT = pathlib.Path(__file__).parents[1]


class Brightness:
    """An exported network: the brighter the image, the higher its class. It remembers the sizes of its batches."""

    preprocessing = Preprocessing(
        "brightness", 8, Statistics((0.0,) * 3, (1.0,) * 3), ("dark", "grey", "white"), "whole"
    )

    def __init__(self):
        self.batches = []

    def logits(self, images):
        self.batches.append(len(images))
        means = images.mean((1, 2, 3), dtype=np.float32)[:, None] / 255
        return -np.abs(means - np.array([[0, 0.5, 1]], np.float32)) * 10


def write_image(path, level=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, (level,) * 3).save(path)
    return str(path)


@pytest.fixture
def levels(tmp_path):
    """A folder of seven images, two of which cannot be read."""
    for number, level in enumerate([0, 255, 128, 255, 0, 128, 0]):
        write_image(tmp_path / "levels" / f"{number}.png", level)
    for number in (2, 6):
        (tmp_path / "levels" / f"{number}.png").write_bytes(b"no image")
    return tmp_path / "levels"


@pytest.fixture
def exported(monkeypatch):
    network = Brightness()
    monkeypatch.setattr("skipnet_jax.exports.artifacts.load_artifact", lambda path: network)
    return network


def test_png_files_of_the_test_images_are_classified_as_in_evaluation(finished_run, monkeypatch, tmp_path, capsys):
    """The crop shows all of a digit at its size, so the number of correct images is exactly equal."""
    tiny_runs.use_network(monkeypatch, tiny_runs.TinyNet())
    source = sources.load(tiny_runs.make_spec().data, "test")
    for i, (image, label) in enumerate(zip(source.images, source.labels, strict=True)):
        path = tmp_path / str(label) / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(image).save(path)
    workdir = f"--workdir={finished_run}"
    assert predict.main([str(tmp_path), workdir, "--format=jsonl", "--top=1", "--batch_size=100"]) == 0
    told = capsys.readouterr()
    lines = [json.loads(line) for line in told.out.splitlines()]
    right = sum(pathlib.Path(line["file"]).parent.name == line["predictions"][0]["class"] for line in lines)
    assert len(lines) == 360 and told.err == ""
    shutil.copytree(finished_run, tmp_path / "run")
    [result] = evaluate.evaluate_workdir(tmp_path / "run")
    assert right / 360 == result["average_accuracy"]


def test_a_bad_image_is_an_error_for_that_image_alone(levels, exported, capsys):
    assert predict.main([str(levels), "--artifact=x", "--format=jsonl", "--top=1", "--batch_size=2"]) == 1
    told = capsys.readouterr()
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert [pathlib.Path(line["file"]).name for line in lines] == [f"{number}.png" for number in range(7)]
    found = [line["predictions"][0]["class"] if "predictions" in line else "bad" for line in lines]
    assert found == ["dark", "white", "bad", "white", "dark", "grey", "bad"]
    for number in (2, 6):
        assert f"error: {levels / f'{number}.png'}: got an image that cannot be decoded" in told.err
        assert lines[number]["error"] in told.err
    assert told.err.count("\n") == 2


def test_all_batches_have_one_size_and_none_is_empty(levels, exported):
    files = image_predictions.find_images([str(levels)])
    batches = list(image_predictions.classify(exported, [*files, files[2], files[2]], 1, batch_size=2))
    assert [len(batch) for batch in batches] == [2, 2, 2, 2, 1]
    assert exported.batches == [2, 2, 2]  # of the last two batches nothing can be read
    list(image_predictions.classify(exported, files[:2], 1, batch_size=64))
    assert exported.batches[3:] == [2]


def test_text_is_a_table_of_results_alone(levels, exported, capsys):
    assert predict.main([*(str(levels / f"{number}.png") for number in (1, 2)), "--artifact=x", "--top=2"]) == 1
    name = str(levels / "1.png")
    width = min(len(name), predict.NAME_WIDTH)
    assert capsys.readouterr().out == f"{name:{width}}   99.33%  white\n{'':{width}}    0.67%  grey\n"


def test_a_name_that_is_no_text_is_shown_all_the_same(tmp_path, exported, capsys):
    path = os.fsdecode(bytes(tmp_path) + b"/\xff.png")
    os.rename(write_image(tmp_path / "x.png"), path)
    assert predict.main([path, "--artifact=x", "--top=1"]) == 0
    assert "\\udcff.png  " in capsys.readouterr().out


def test_standard_input_is_one_image(tmp_path, exported, capsys, monkeypatch):
    content = pathlib.Path(write_image(tmp_path / "x.png", 255)).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert predict.main(["-", "--artifact=x", "--top=1"]) == 0
    assert capsys.readouterr().out.split() == ["-", "99.33%", "white"]


def test_folders_are_searched_in_order(tmp_path):
    names = ("1.png", "2.JPG", "3.gif", "4.webp", "deeper/still/5.jpeg", "six.jfif")
    inside = [write_image(tmp_path / "b" / name) for name in names]
    write_image(tmp_path / "b" / ".4.png")
    write_image(tmp_path / "b" / ".hidden" / "5.png")
    write_image(tmp_path / "b" / "@eaDir" / "1.png")
    (tmp_path / "b" / "deeper" / "up").symlink_to("..")
    (tmp_path / "b" / "notes.txt").write_text("mine")
    first, other = write_image(tmp_path / "z.png"), str(tmp_path / "notes.txt")  # a file that is named counts
    assert image_predictions.find_images([first, str(tmp_path / "b"), other]) == [first, *inside, other]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["EMPTY", "--workdir=x"], "IMAGE: got EMPTY, a folder without images"),
        (["-", "-", "--workdir=x"], "IMAGE: got - more than once"),
        (["x.png", "--workdir=EMPTY"], "--workdir: got EMPTY, which has no config.json"),
        (["x.png", "--workdir=s3://bucket/run"], "s3://bucket/run: got a place on s3://, expected a local path, or a"),
        (["x.png", "--artifact=file:///export"], "file:///export: got a place on file://, expected a local path, or"),
        (["s3://bucket/x.png", "--workdir=x"], "s3://bucket/x.png: got a place on s3://, expected a local path, or a"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(tmp_path, arguments, message, capsys):
    arguments = [argument.replace("EMPTY", str(tmp_path)) for argument in arguments]
    assert predict.main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: ") and told.err.count("\n") == 1
    assert message.replace("EMPTY", str(tmp_path)) in told.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--workdir=x"],
        ["x.png"],
        ["x.png", "--workdir=x", "--artifact=y"],
        ["x.png", "--artifact=y", "--checkpoint=best"],
        ["x.png", "--workdir=x", "--top=0"],
        ["x.png", "--workdir=x", "--batch_size=all"],
        ["x.png", "--workdir=x", "--output=y", "--process_id=-1"],
    ],
)
def test_a_mistake_in_the_command_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        predict.main(arguments)
    assert end.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_flags_may_stand_before_and_after_the_images(tmp_path, exported, capsys):
    one, other = write_image(tmp_path / "1.png"), write_image(tmp_path / "2.png")
    assert predict.main([one, "--artifact=x", "--top=1", other]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", r"\xe9t\xe9\u732b.png"), ("utf-8", "été猫.png")])
def test_letters_that_the_terminal_lacks_are_escaped(encoding, shown, exported, tmp_path):
    image = write_image(tmp_path / "été猫.png")
    with io.TextIOWrapper(io.BytesIO(), encoding) as stdout, contextlib.redirect_stdout(stdout):
        assert predict.main([image, "--artifact=x", "--top=1"]) == 0
        assert stdout.buffer.getvalue().decode(encoding).split()[0] == f"{tmp_path}/{shown}"


@pytest.mark.parametrize("place", ["there", "there/", "new/"])
def test_a_folder_is_no_place_for_results(place, tmp_path, monkeypatch, capsys):
    """Before the network is loaded, since hours may follow."""
    (tmp_path / "there").mkdir()
    monkeypatch.setattr(predict, "_load", lambda arguments: pytest.fail("loaded"))
    output = f"{tmp_path}/{place}"
    assert predict.main([write_image(tmp_path / "x.png"), "--artifact=x", f"--output={output}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: --output: got {output}, which is a folder, expected a file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "x.png"]


def test_results_may_go_to_the_home_folder(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert predict.main([write_image(tmp_path / "x.png"), "--artifact=x", "--output=~/found.txt"]) == 0
    assert (tmp_path / "home" / "found.txt").exists() and not (tmp_path / "~").exists()


def test_a_full_disk_is_one_line(exported, tmp_path, monkeypatch, capsys):
    def full(output, unreadable):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), output)

    monkeypatch.setattr(result_parts, "join", full)
    image = write_image(tmp_path / "x.png")
    assert predict.main([image, "--artifact=x", f"--output={tmp_path / 'found.txt'}"]) == 1
    assert "No space left on device" in (told := capsys.readouterr().err) and "Make room for --output" in told


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    """As in `... | head -1`, with a real network in a process of its own."""
    write_weights(tmp_path / "run", "resnet20")
    command = [sys.executable, "-m", "skipnet_jax.predict", write_image(tmp_path / "1.png")]
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [*command, f"--workdir={tmp_path / 'run'}"],
            cwd=ROOT,
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
