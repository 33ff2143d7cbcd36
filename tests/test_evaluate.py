import csv
import errno
import functools
import json
import os
import shutil
import sys

import flax.linen as nn
import numpy as np
import PIL.Image
import pytest

from skipnet_jax import evaluate, specs
from skipnet_jax.data import sources, statistics
from skipnet_jax.errors import UserError
from skipnet_jax.evaluation import scoring
from skipnet_jax.runs import weights, workdir
from tests import tiny_runs


@functools.cache
def labels():
    return sources.load(tiny_runs.make_spec().data, "test").labels


class PooledNet(nn.Module):
    """Takes images of any size."""

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(10, name="classifier")(images.mean((1, 2)))


def write_folder(path, *, classes, images=1):
    rng = np.random.default_rng(0)
    for number in range(classes):
        folder = path / "test" / str(number)  # the names of the digits
        folder.mkdir(parents=True)
        for i in range(images):
            pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
            PIL.Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.fixture
def run(finished_run, tmp_path, monkeypatch):
    """A copy of a finished run with a moving average."""
    tiny_runs.use_network(monkeypatch, tiny_runs.TinyNet())
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / workdir.RESULTS).unlink(missing_ok=True)
    return tmp_path / "run"


def results_of(run):
    return json.loads((run / workdir.RESULTS).read_text())


def test_the_workdir_alone_reproduces_the_results_of_training_exactly(run, capsys):
    [result] = evaluate.evaluate_workdir(run, "latest")
    step, trained, _ = tiny_runs.last_checkpoint(run)
    assert "average_loss" in trained
    assert {name: result.get(name) for name in trained} == trained | {"epoch": None}
    assert result["step"] == step and result["checkpoint"] == str(run / "checkpoints" / str(step))
    assert results_of(run) == [result]
    assert f"test accuracy {trained['accuracy']:.2%}" in capsys.readouterr().out


def test_the_best_by_its_average_is_the_default_and_a_workdir_may_be_relative(run, monkeypatch):
    lines = [line for line in workdir.read_metrics(run) if "test/accuracy" in line]
    best = max(lines, key=lambda line: line["test/average_accuracy"])
    monkeypatch.chdir(run.parent)
    [result] = evaluate.evaluate_workdir("run")
    assert (result["average_accuracy"], result["step"]) == (best["test/average_accuracy"], best["step"])


def test_details_and_mirror_images_go_into_the_workdir(run, capsys):
    [plain] = evaluate.evaluate_workdir(run, "latest")
    [flipped] = evaluate.evaluate_workdir(run, "latest", flip=True, detailed=True)
    [detailed] = evaluate.evaluate_workdir(run, "latest", detailed=True)
    assert {name: detailed[name] for name in plain} == plain
    assert flipped["loss"] != plain["loss"] and (plain["flip"], flipped["flip"]) == (False, True)
    assert results_of(run) == [flipped, detailed]  # instead of plain

    step = plain["step"]
    table = (run / "evaluation" / f"digits_8px_step{step}_confusion.csv").read_text()
    rows = list(csv.reader(table.splitlines()))
    confusion = np.array([row[1:] for row in rows[1:]], int)
    assert rows[0][1:] == [row[0] for row in rows[1:]] == list("0123456789")
    assert confusion.sum(axis=1).tolist() == np.bincount(labels()).tolist()
    assert np.trace(confusion) / 360 == plain["average_accuracy"] != plain["accuracy"]
    assert list(detailed["class_accuracy"].values()) == (np.diag(confusion) / confusion.sum(axis=1)).tolist()
    assert 0 < detailed["calibration_error"] < 1
    ends = ("confusion.csv", "confusion.png", "calibration.png")
    names = {f"digits_8px_step{step}_{mark}{end}" for mark in ("", "flip_") for end in ends}
    assert names == {file.name for file in (run / "evaluation").iterdir()}
    out = capsys.readouterr().out
    assert f"calibration error of the moving average {detailed['calibration_error']:.2%}" in out
    assert "8 px, with mirror images: test" in out


def test_an_evaluation_without_details_keeps_earlier_details_of_the_same_weights(run):
    [plain] = evaluate.evaluate_workdir(run, "latest")
    details = {"calibration_error": 0.25, "class_accuracy": {"0": 0.5}}
    file = run / workdir.RESULTS
    file.write_text(json.dumps([plain | details]))
    assert evaluate.evaluate_workdir(run, "latest") == [plain]
    assert results_of(run) == [plain | details]
    file.write_text(json.dumps([plain | details | {"accuracy": 0.1}]))
    evaluate.evaluate_workdir(run, "latest")
    assert results_of(run) == [plain]


def test_converted_weights_on_several_data_sets_and_sizes(tmp_path, monkeypatch, capsys):
    """One pass per pair; each call adds to the results, and replaces those of the same evaluation."""
    tiny_runs.use_network(monkeypatch, PooledNet())
    bias = (np.arange(10) == 7).astype(np.float32)  # predicts 7 whatever it sees
    variables = {"params": {"classifier": {"kernel": np.zeros((3, 10), np.float32), "bias": bias}}}
    weights.save(tmp_path / "run", weights.Origin("resnet20", 10, "some.pt"), variables)
    write_folder(tmp_path / "photos", classes=10, images=3)
    passes, original = [], scoring.batches
    monkeypatch.setattr(
        scoring, "batches", lambda *args: passes.append((args[0].name, args[1].data.image_size)) or original(*args)
    )
    [digits] = evaluate.evaluate_workdir(tmp_path / "run", datasets=["digits"], image_sizes=[8])
    assert (digits["accuracy"], digits["count"]) == (np.mean(labels() == 7), 360)
    photos = {"datasets": ["folder"], "image_sizes": [8, 16], "data_dir": str(tmp_path / "photos")}
    for _ in range(2):
        records = evaluate.evaluate_workdir(tmp_path / "run", **photos)
    assert [(record["data"], record["image_size"], record["count"]) for record in records] == [
        ("folder", 8, 30),
        ("folder", 16, 30),
    ]
    assert passes[1:3] == [("photos", 8), ("photos", 16)]
    assert results_of(tmp_path / "run") == [digits, *records]
    assert "folder at 16 px: test accuracy 10.00%" in capsys.readouterr().out
    with pytest.raises(UserError, match="cifar10"):  # the published run's data are not here
        evaluate.evaluate_workdir(tmp_path / "run", data_dir=str(tmp_path))


def test_images_of_two_places_have_records_and_files_of_their_own(tmp_path, monkeypatch):
    """Both are called `folder`, but they need not be the same images."""
    tiny_runs.use_network(monkeypatch, PooledNet())
    variables = {"params": {"classifier": {"kernel": np.zeros((3, 10), np.float32), "bias": np.zeros(10, np.float32)}}}
    weights.save(tmp_path / "run", weights.Origin("resnet20", 10, "some.pt"), variables)
    for images, name in enumerate(("lab", "field"), 1):
        write_folder(tmp_path / name, classes=10, images=images)
        place = str(tmp_path / name)
        evaluate.evaluate_workdir(tmp_path / "run", datasets=["folder"], image_sizes=[8], data_dir=place, detailed=True)
    assert [record["count"] for record in results_of(tmp_path / "run")] == [10, 20]
    assert len([*(tmp_path / "run" / "evaluation").glob("*_confusion.csv")]) == 2


def test_data_sets_of_tensorflow_lie_side_by_side():
    run = specs.DataSpec(name="cifar10", dir="/data")
    place = {name: evaluate._describe(run, name, 32, "all", None).dir for name in ("cifar10", "cifar100", "folder")}
    assert place == {"cifar10": "/data", "cifar100": "/data", "folder": ""}
    assert evaluate._describe(run, "cifar100", 32, "all", "/other").dir == "/other"


def test_other_images_are_normalised_as_those_that_the_network_has_learnt_from():
    """As in prediction; `folder` alone would have ImageNet's mean."""
    run = specs.DataSpec(name="cifar10", background=(0, 0, 0))
    other = evaluate._describe(run, "folder", 32, "all", "/photos")
    assert statistics.of_spec(other) == statistics.of_data("cifar10") != statistics.of_data("folder")
    assert other.background == run.background


def test_classes_that_the_network_has_not_learnt_are_refused(run, tmp_path):
    """A data set with the same classes in another order would be scored, and wrongly."""
    write_folder(tmp_path / "few", classes=3)
    with pytest.raises(UserError, match=r"data\.name: got .* with 3 classes, expected the 10 classes"):
        evaluate.evaluate_workdir(run, datasets=["folder"], data_dir=str(tmp_path / "few"))
    write_folder(tmp_path / "renamed", classes=10)
    (tmp_path / "renamed" / "test" / "0").rename(tmp_path / "renamed" / "test" / "x")
    with pytest.raises(UserError, match=r"data\.name: got .* with class 0 '1', expected '0', the class that"):
        evaluate.evaluate_workdir(run, datasets=["folder"], data_dir=str(tmp_path / "renamed"))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"datasets": ["digits", "imagenet_b"]}, "data.name"),
        ({"eval_classes": "own"}, "data.eval_classes"),
        ({"image_sizes": [8, 4]}, "data.image_size"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is(run, options, field):
    with pytest.raises(UserError) as error:
        evaluate.evaluate_workdir(run, **options)
    assert error.value.field == field
    assert not (run / workdir.RESULTS).exists()


def test_a_workdir_that_cannot_be_written_is_refused_before_the_work(run, monkeypatch):
    monkeypatch.setattr(evaluate.os, "access", lambda path, mode: False)  # root may write everywhere
    monkeypatch.setattr(evaluate, "_score", None)
    with pytest.raises(UserError, match=r"workdir: got .*, which cannot be written"):
        evaluate.evaluate_workdir(run)


def test_a_damaged_file_of_results_is_refused_before_the_work(run, monkeypatch):
    (run / workdir.RESULTS).write_text('[{"data":')
    monkeypatch.setattr(scoring, "evaluate_state", lambda *_, **__: pytest.fail("evaluated"))
    with pytest.raises(UserError, match=r"results\.json: got no valid JSON"):
        evaluate.evaluate_workdir(run)


def test_a_result_that_the_disk_has_no_room_for_is_printed_all_the_same(run, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(workdir, "add_results", full)
    with pytest.raises(OSError, match="No space left"):
        evaluate.evaluate_workdir(run, "latest")
    _, trained, _ = tiny_runs.last_checkpoint(run)
    assert f"test accuracy {trained['accuracy']:.2%}" in capsys.readouterr().out


def test_a_result_that_nobody_reads_is_written_all_the_same(run, monkeypatch):
    def gone(text):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr(sys.stdout, "write", gone)
    with pytest.raises(BrokenPipeError):
        evaluate.evaluate_workdir(run, "latest")
    assert len(results_of(run)) == 1
