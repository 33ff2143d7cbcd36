import csv
import dataclasses
import json
import shutil

import flax.linen as nn
import numpy as np
import PIL.Image
import pytest

from skipnet_jax import evaluate, specs, train
from skipnet_jax.data import sources
from skipnet_jax.evaluation import scoring
from skipnet_jax.runs import weights, workdir


class TinyNet(nn.Module):
    """The interface of the project's networks at a hundredth of their compile time."""

    width: int = 8

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(self.width, (3, 3), strides=2, name="conv")(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x))
        return nn.Dense(10, name="classifier")(x.reshape(len(x), -1))


class PooledNet(nn.Module):
    """The same for images of any size."""

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(10, name="classifier")(images.mean((1, 2)))


def write_folder(path, *, classes, images):
    rng = np.random.default_rng(0)
    for number in range(classes):
        folder = path / "test" / str(number)  # the names of the digits
        folder.mkdir(parents=True)
        for i in range(images):
            pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
            PIL.Image.fromarray(pixels).save(folder / f"{i}.png")


SPEC = specs.TrainSpec(
    model=specs.ModelSpec(name="skip_resnet20", num_classes=10),
    data=specs.DataSpec(name="digits", image_size=8, pad_crop=1, flip=False),
    mixing=specs.MixingSpec(),
    optim=specs.OptimSpec(lr=0.05, warmup_epochs=0),
    batch_size=256,
    epochs=2,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of TinyNet: its workdir and what training returned."""
    path = tmp_path_factory.mktemp("evaluate") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "create_model", lambda **_: TinyNet())
        return path, train.train_and_evaluate(SPEC, path)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(evaluate, "create_model", lambda **_: TinyNet())


def test_the_workdir_alone_reproduces_the_final_result_exactly(run, tiny, capsys):
    path, trained = run
    [result] = evaluate.evaluate_workdir(path, "latest")
    assert {name: result[name] for name in ("accuracy", "top5_accuracy", "loss", "count")} == {
        name: value for name, value in trained.items() if name != "epoch"
    }
    assert result["step"] == 10 and result["checkpoint"] == str(path / "checkpoints" / "10")
    assert result in json.loads((path / workdir.RESULTS).read_text())
    assert f"test accuracy {trained['accuracy']:.2%}" in capsys.readouterr().out


def test_the_best_is_the_default(run, tiny):
    path, _ = run
    lines = [line for line in workdir.read_metrics(path) if "test/accuracy" in line]
    best = max(lines, key=lambda line: line["test/accuracy"])
    [result] = evaluate.evaluate_workdir(path)
    assert (result["accuracy"], result["step"]) == (best["test/accuracy"], best["step"])


def test_the_moving_average_is_scored_beside_the_network(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(train, "create_model", lambda **_: TinyNet())
    trained = train.train_and_evaluate(dataclasses.replace(SPEC, ema_decay=0.9), tmp_path)
    [result] = evaluate.evaluate_workdir(tmp_path, "latest")
    for name in ("accuracy", "average_accuracy", "average_top5_accuracy", "average_loss"):
        assert result[name] == trained[name]


def test_other_data_sets_and_sizes_one_pass_per_pair(run, tiny, tmp_path, monkeypatch, capsys):
    """A data set of the user's own, at two sizes, beside the run's; a second call adds to the results."""
    monkeypatch.setattr(evaluate, "create_model", lambda **_: PooledNet())
    monkeypatch.setattr(train, "create_model", lambda **_: PooledNet())
    train.train_and_evaluate(SPEC, tmp_path / "run")
    write_folder(tmp_path / "photos", classes=10, images=3)
    passes, original = [], scoring.batches
    monkeypatch.setattr(
        scoring, "batches", lambda *args: passes.append((args[0].name, args[1].data.image_size)) or original(*args)
    )
    both = {"datasets": ["folder"], "image_sizes": [8, 16], "data_dir": str(tmp_path / "photos")}
    results = evaluate.evaluate_workdir(tmp_path / "run", **both)
    assert [(r["data"], r["image_size"], r["count"]) for r in results] == [("folder", 8, 30), ("folder", 16, 30)]
    assert passes == [("photos", 8), ("photos", 16)]
    [own] = evaluate.evaluate_workdir(tmp_path / "run")
    assert own["data"] == "digits" and own["count"] == 360
    again = evaluate.evaluate_workdir(tmp_path / "run", **both)
    assert json.loads((tmp_path / "run" / workdir.RESULTS).read_text()) == [own, *again]  # nothing twice
    assert "folder at 16 px: test accuracy" in capsys.readouterr().out


def test_details_and_mirror_images_go_into_the_workdir(run, tiny, tmp_path, capsys):
    path, _ = run
    shutil.copytree(path, tmp_path / "run")
    (tmp_path / "run" / workdir.RESULTS).unlink(missing_ok=True)
    [plain] = evaluate.evaluate_workdir(tmp_path / "run", "latest")
    [flipped] = evaluate.evaluate_workdir(tmp_path / "run", "latest", flip=True, detailed=True)
    [detailed] = evaluate.evaluate_workdir(tmp_path / "run", "latest", detailed=True)
    for name in ("loss", "accuracy", "top5_accuracy", "count"):
        assert detailed[name] == plain[name]
    assert flipped["loss"] != plain["loss"] and (plain["flip"], flipped["flip"]) == (False, True)
    assert json.loads((tmp_path / "run" / workdir.RESULTS).read_text()) == [flipped, detailed]  # in place of plain

    rows = list(csv.reader((tmp_path / "run/evaluation/digits_8px_step10_confusion.csv").read_text().splitlines()))
    confusion = np.array([row[1:] for row in rows[1:]], int)
    assert rows[0][1:] == [row[0] for row in rows[1:]] == list("0123456789")
    source = sources.load(SPEC.data, "test")
    assert confusion.sum(axis=1).tolist() == np.bincount(source.labels).tolist()
    assert np.trace(confusion) / 360 == plain["accuracy"]
    assert detailed["class_accuracy"] == {
        str(number): confusion[number, number] / confusion[number].sum() for number in range(10)
    }
    assert 0 < detailed["calibration_error"] < 1
    names = {file.name for file in (tmp_path / "run/evaluation").iterdir()}
    ends = ("confusion.csv", "confusion.png", "calibration.png")
    assert names == {f"digits_8px_step10_{mark}{end}" for mark in ("", "flip_") for end in ends}
    out = capsys.readouterr().out
    assert f"calibration error {detailed['calibration_error']:.2%}" in out and "8 px, with mirror images: test" in out


def test_an_evaluation_without_details_keeps_those_that_are_there(run, tiny, tmp_path):
    path, _ = run
    shutil.copytree(path, tmp_path / "run")
    file = tmp_path / "run" / workdir.RESULTS
    file.unlink(missing_ok=True)
    [detailed] = evaluate.evaluate_workdir(tmp_path / "run", "latest", detailed=True)
    [plain] = evaluate.evaluate_workdir(tmp_path / "run", "latest")
    assert "calibration_error" not in plain
    assert json.loads(file.read_text()) == [detailed]
    file.write_text(json.dumps([detailed | {"accuracy": 0.1}]))  # of other weights, whatever has happened
    evaluate.evaluate_workdir(tmp_path / "run", "latest")
    assert json.loads(file.read_text()) == [plain]


def test_details_are_those_of_the_moving_average(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(train, "create_model", lambda **_: TinyNet())
    train.train_and_evaluate(dataclasses.replace(SPEC, ema_decay=0.9), tmp_path)
    [result] = evaluate.evaluate_workdir(tmp_path, "latest", detailed=True)
    assert result["accuracy"] != result["average_accuracy"]
    counts = np.bincount(sources.load(SPEC.data, "test").labels)
    hits = sum(share * count for share, count in zip(result["class_accuracy"].values(), counts, strict=True))
    assert hits / 360 == pytest.approx(result["average_accuracy"], abs=1e-12)


def test_the_same_classes_in_another_order_are_refused(run, tiny, tmp_path):
    """They would be scored, and wrongly."""
    path, _ = run
    write_folder(tmp_path, classes=10, images=1)
    (tmp_path / "test" / "0").rename(tmp_path / "test" / "x")
    with pytest.raises(ValueError, match=r"--datasets: got .* with class 0 '1', expected '0', the class that"):
        evaluate.evaluate_workdir(path, datasets=["folder"], data_dir=str(tmp_path))


def test_a_data_set_of_other_classes_is_refused(run, tiny, tmp_path):
    path, _ = run
    write_folder(tmp_path, classes=3, images=1)
    with pytest.raises(ValueError, match=r"--datasets: got .* with 3 classes, expected the 10 classes"):
        evaluate.evaluate_workdir(path, datasets=["folder"], data_dir=str(tmp_path))


def test_converted_weights_are_evaluated_as_the_published_run_would_be(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "create_model", lambda **settings: PooledNet())
    kernel = np.zeros((3, 10), np.float32)
    bias = (np.arange(10) == 7).astype(np.float32)  # says 7 whatever it sees
    variables = {"params": {"classifier": {"kernel": kernel, "bias": bias}}}
    weights.save(tmp_path / "run", weights.Origin("resnet20", 10, "some.pt"), variables)
    [record] = evaluate.evaluate_workdir(tmp_path / "run", datasets=["digits"], image_sizes=[8])
    labels = sources.load(specs.DataSpec(name="digits", image_size=8, pad_crop=0), "test").labels
    assert (record["accuracy"], record["count"]) == (np.mean(labels == 7), 360)
    with pytest.raises(ValueError, match="cifar10"):  # where the published one's data are not here
        evaluate.evaluate_workdir(tmp_path / "run", data_dir=str(tmp_path))
    write_folder(tmp_path, classes=3, images=1)
    with pytest.raises(ValueError, match=r"--datasets: got .* with 3 classes, expected the 10 classes"):
        evaluate.evaluate_workdir(tmp_path / "run", datasets=["folder"], data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"datasets": ["imagenet_b"]}, "data.name: got 'imagenet_b'.*Change --datasets"),
        ({"eval_classes": "own"}, "data.eval_classes: got 'own' for digits.*Leave out --eval_classes"),
        ({"image_sizes": [4]}, "data.image_size: got 4.*Change --image_sizes"),
        ({"datasets": ["folder"], "data_dir": "/nowhere"}, "/nowhere"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is(run, tiny, options, message):
    path, _ = run
    before = (path / workdir.RESULTS).read_bytes() if (path / workdir.RESULTS).exists() else None
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate_workdir(path, **options)
    assert before == ((path / workdir.RESULTS).read_bytes() if (path / workdir.RESULTS).exists() else None)


def test_a_workdir_that_cannot_be_written_is_told_before_the_work(run, tiny, monkeypatch):
    monkeypatch.setattr(evaluate.os, "access", lambda path, mode: False)  # root may write everywhere
    monkeypatch.setattr(evaluate.scoring, "evaluate_state", None)
    with pytest.raises(ValueError, match=r"--workdir: got .*, which cannot be written, expected one that can"):
        evaluate.evaluate_workdir(run[0])


def test_a_checkpoint_of_another_network_is_refused(run, monkeypatch):
    path, _ = run
    monkeypatch.setattr(evaluate, "create_model", lambda **_: TinyNet(width=16))
    with pytest.raises(
        ValueError, match=r"another network(.|\n)*params/conv/bias \(got float32\[8\], expected float32\[16\]"
    ):
        evaluate.evaluate_workdir(path)


def test_no_run_no_evaluation(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        evaluate.evaluate_workdir(tmp_path)


def test_a_relative_workdir_is_the_same_one(run, tiny, monkeypatch):
    path, _ = run
    expected = evaluate.evaluate_workdir(path)
    monkeypatch.chdir(path.parent)
    assert evaluate.evaluate_workdir("run") == expected
