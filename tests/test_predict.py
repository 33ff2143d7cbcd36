import io
import json
import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import numpy as np
import PIL.Image
import pytest

from skipnet_jax import evaluate, predict, specs, train
from skipnet_jax.data import sources
from skipnet_jax.evaluation import predictor
from skipnet_jax.evaluation.preprocessing import Preprocessing

ROOT = pathlib.Path(__file__).parents[1]


class TinyNet(nn.Module):
    """The interface of the project's networks at a hundredth of their compile time."""

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.relu(nn.Conv(16, (3, 3), strides=2, name="conv")(images))
        return nn.Dense(10, name="classifier")(x.reshape(len(x), -1))


SPEC = specs.TrainSpec(
    model=specs.ModelSpec(name="resnet20", num_classes=10),
    data=specs.DataSpec(name="digits", image_size=8, pad_crop=1, flip=False),
    mixing=specs.MixingSpec(),
    optim=specs.OptimSpec(lr=0.1, warmup_epochs=0),
    batch_size=128,
    epochs=4,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of TinyNet."""
    path = tmp_path_factory.mktemp("predict") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "create_model", lambda **_: TinyNet())
        train.train_and_evaluate(SPEC, path)
    return path


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(evaluate, "create_model", lambda **_: TinyNet())
    monkeypatch.setattr(predictor, "create_model", lambda **_: TinyNet())


class Brightness:
    """An exported network: the brighter the image, the higher its class; remembers the batches."""

    preprocessing = Preprocessing("brightness", 8, (0.0,) * 3, (1.0,) * 3, ("dark", "grey", "white"), "whole")

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
    """A folder with seven images, of which the third and the last are none."""
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


def test_png_files_of_the_test_images_are_classified_as_in_evaluation(run, tiny, tmp_path, capsys):
    """The crop shows all of a digit at its size: the count is the same, to the image."""
    source = sources.load(SPEC.data, "test")
    for i, (image, label) in enumerate(zip(source.images, source.labels, strict=True)):
        path = tmp_path / str(label) / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(image).save(path)
    [result] = evaluate.evaluate_workdir(run)
    capsys.readouterr()
    assert predict.main([str(tmp_path), f"--workdir={run}", "--format=jsonl", "--top=1", "--batch_size=100"]) == 0
    told = capsys.readouterr()
    lines = [json.loads(line) for line in told.out.splitlines()]
    right = sum(pathlib.Path(line["file"]).parent.name == line["predictions"][0]["class"] for line in lines)
    assert len(lines) == 360 and told.err == ""
    assert right / 360 == result["accuracy"] > 0.6


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
    files = predict.find_images([str(levels)])
    batches = list(predict.predict(exported, [*files, files[2], files[2]], 1, batch_size=2))
    assert [len(batch) for batch in batches] == [2, 2, 2, 2, 1]
    assert exported.batches == [2, 2, 2]  # of the last two batches nothing can be read
    list(predict.predict(exported, files[:2], 1, batch_size=64))
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
    names = ("1.png", "2.JPG", "3.gif", "4.webp", "deeper/still/5.jpeg")  # of those that cannot be read it is said
    inside = [write_image(tmp_path / "b" / name) for name in names]
    write_image(tmp_path / "b" / ".4.png")
    write_image(tmp_path / "b" / ".hidden" / "5.png")
    (tmp_path / "b" / "notes.txt").write_text("mine")
    first, other = write_image(tmp_path / "z.png"), str(tmp_path / "notes.txt")  # what is named is meant
    assert predict.find_images([first, str(tmp_path / "b"), other]) == [first, *inside, other]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["EMPTY", "--workdir=x"], "EMPTY, a folder without images"),
        (["-", "-", "--workdir=x"], "got - more than once"),
        (["x.png", "--workdir=EMPTY"], "no config.json"),
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


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    """As in `... | head -1`, on a real network and in a process of its own."""
    import jax

    from skipnet_jax.models import create_model
    from skipnet_jax.runs import checkpoint, workdir

    path = tmp_path / "run"
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
    variables = create_model("resnet20", num_classes=10).lazy_init(jax.random.key(0), images, train=False)
    workdir.open_for_training(path, SPEC)
    with checkpoint.open_manager(path / workdir.CHECKPOINTS) as manager:
        checkpoint.save(manager, 1, variables, {"accuracy": 0.1})
    command = [sys.executable, "-m", "skipnet_jax.predict", write_image(tmp_path / "1.png"), f"--workdir={path}"]
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=300)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
