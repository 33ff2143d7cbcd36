"""A run on a data set of TensorFlow Datasets: trained, evaluated, and asked about single images."""

import dataclasses
import json

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from skipnet_jax import evaluate, train
from skipnet_jax.data import sources
from skipnet_jax.errors import UserError
from skipnet_jax.evaluation import predictor
from skipnet_jax.evaluation.preprocessing import load_image
from skipnet_jax.runs import workdir
from skipnet_jax.specs import DataSpec, ModelSpec
from tests import tiny_runs
from tests.data import made_tfds


@pytest.fixture
def data(tmp_path):
    made_tfds.own(tmp_path / "data")
    places = {"train_split": "train[:40]", "test_split": "train[40:]"}
    return DataSpec(
        name="own", dir=str(tmp_path / "data"), image_size=12, pad_crop=1, flip=False, label_key="word", **places
    )


def test_a_run_remembers_splits_keys_and_what_it_sees(data, tmp_path, capsys, monkeypatch):
    tiny_runs.use_network(monkeypatch, tiny_runs.TinyNet(classes=3))
    model = ModelSpec(name="resnet20", num_classes=3)
    spec = tiny_runs.make_spec(epochs=1, data=data, model=model, batch_size=16)
    trained = train.train_and_evaluate(spec, tmp_path / "run")
    told = capsys.readouterr().out
    assert "own: 40 training and 20 test images of 12 px, 3 classes\n" in told
    assert "images: train[:40] (photo, word), train[40:] (photo, word)\nbest by: test\n" in told
    assert json.loads((tmp_path / "run" / workdir.CONFIG).read_text())["data"]["train_split"] == "train[:40]"
    assert json.loads((tmp_path / "run" / workdir.DATA).read_text())["crop"] == "whole"

    [record] = evaluate.evaluate_workdir(tmp_path / "run")
    assert (record["accuracy"], record["count"], record["split"]) == (trained["accuracy"], 20, "train[40:]")
    assert "own: 20 test images, train[40:] (photo, word)" in capsys.readouterr().out

    seen = sources.load(data, "test")
    preprocessing = predictor.load_workdir(tmp_path / "run").preprocessing
    assert (preprocessing.crop, preprocessing.class_names) == ("whole", ("a", "b", "c"))
    number = int(seen.images[0, 0, 0, 0])
    first = next(
        example
        for example in tfds.as_numpy(tfds.builder("own", data_dir=data.dir).as_dataset(split="train"))
        if example["number"] == number
    )
    PIL.Image.fromarray(first["raw"]).save(tmp_path / "one.png")
    shown = load_image(tmp_path / "one.png", preprocessing)
    assert shown.tobytes() in {image.tobytes() for image in seen.images}

    # Another one with the same classes, by its folder alone; and one with others.
    features = {"image": tfds.features.Image(shape=(9, 9, 3)), "label": tfds.features.ClassLabel(names=["a", "b", "c"])}
    examples = [{"image": np.full((9, 9, 3), k, np.uint8), "label": k % 3} for k in range(6)]
    made_tfds.store(tmp_path / "data", "other", features, {"test": examples})
    [record] = evaluate.evaluate_workdir(tmp_path / "run", datasets=["tfds"], data_dir=f"{data.dir}/other")
    assert (record["data"], record["count"], record["split"]) == ("tfds", 6, "test")
    with pytest.raises(
        UserError, match=r"^data\.label_key: got nothing for own:1\.0\.0, expected one of its one or two"
    ):
        evaluate.evaluate_workdir(tmp_path / "run", datasets=["own:1.0.0"])

    changed = dataclasses.replace(spec, data=dataclasses.replace(data, train_split="train[:39]"))
    with pytest.raises(UserError, match=r"data\.train_split='train\[:39\]'.*data\.train_split='train\[:40\]'"):
        train.train_and_evaluate(changed, tmp_path / "run")
