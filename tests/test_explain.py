import json
import shutil

import numpy as np
import pytest
from etils import epath
from matplotlib import image

from skipnet_jax import config, explain, files
from skipnet_jax.errors import UserError
from skipnet_jax.runs import checkpoint
from tests.exports.small_networks import add_small_networks, make_variables


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    with pytest.MonkeyPatch.context() as patch:
        add_small_networks(patch)
        yield


def make_run(path, name):
    """A workdir of a network that tells the digits 0 and 1 apart, with made-up weights."""
    from configs import recipes

    recipe = recipes.digits()
    recipe.model.name, recipe.model.num_classes, recipe.data.classes = name, 2, (0, 1)
    recipe.data.image_size = 8
    path.mkdir()
    files.write_json(epath.Path(path / "config.json"), config.to_dict(config.train_spec(recipe)))
    files.write_json(epath.Path(path / "data.json"), {"class_names": ["0", "1"], "training_images": 288})
    with checkpoint.open_manager(path / "checkpoints") as manager:
        checkpoint.save(manager, 0, {"step": np.int32(0), **make_variables(name, 2)}, {"accuracy": 0.5})
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("explain") / "run", "skip_tiny")


def test_writes_pictures_and_numbers(run, capsys):
    measured = explain.explain_workdir(run)
    folder = run / "explain"
    kinds = ("gates", "gates_by_class", "gates_image_0", "gates_image_1")
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        ["gates.json", *(f"{kind}.{form}" for kind in kinds for form in ("png", "svg"))]
    )
    told = json.loads((folder / "gates.json").read_text())
    assert told["model"] == "skip_tiny" and told["images"] == measured.counts.sum() == 72
    assert told["links"] == [
        {"block": 0, "output_of": "stem"},
        {"block": 1, "output_of": "0"},
        {"block": 1, "output_of": "stem"},
        {"block": 2, "output_of": "1"},
    ]
    assert len(told["overall"]["states"]) == len(told["spread"]) == 4 and len(told["overall"]["branch"]) == 3
    assert [entry["class"] for entry in told["classes"]] == ["0", "1"]
    assert told["overall"]["states"][1] + told["overall"]["states"][2] == pytest.approx(1, abs=2e-5)
    mean = sum(entry["images"] * entry["states"][1] for entry in told["classes"]) / 72
    assert mean == pytest.approx(told["overall"]["states"][1], abs=2e-5)
    assert {entry["image"][-3:] for entry in told["single_images"]} == {"'0'", "'1'"}, "one of each class"
    assert f"written to {folder}" in capsys.readouterr().out


@pytest.mark.slow
def test_files_of_the_users_choice(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    image.imsave(tmp_path / "mine.png", np.random.default_rng(0).random((20, 30, 3)))
    (tmp_path / "out").mkdir()
    for name in ("gates_image_1.png", "gates_image_1.svg", "gates_image_of_mine.png"):  # an earlier call had more
        (tmp_path / "out" / name).write_text("")
    explain.explain_workdir(run, images=["~/mine.png"], out=tmp_path / "out")
    told = json.loads((tmp_path / "out" / "gates.json").read_text())
    assert [entry["image"] for entry in told["single_images"]] == ["mine.png"]
    images = sorted(file.name for file in (tmp_path / "out").glob("gates_image_*"))
    assert images == ["gates_image_0.png", "gates_image_0.svg", "gates_image_of_mine.png"]


def test_mistakes_are_told_before_the_long_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(explain.gates, "measure", None)
    (tmp_path / "file").write_text("no image, no folder")
    with pytest.raises(
        UserError, match=r"file: got an image that cannot be decoded \(no image of a known kind\), expected"
    ):
        explain.explain_workdir(run, images=[str(tmp_path / "file")], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"^out: got .*file, which cannot be written \(File exists\)"):
        explain.explain_workdir(run, out=tmp_path / "file")
    monkeypatch.setattr(explain.os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(UserError, match=r"^out: got .*out, which cannot be written \(Permission denied\)"):
        explain.explain_workdir(run, out=tmp_path / "out")
    plain = make_run(tmp_path / "plain", "tiny")
    with pytest.raises(UserError, match="expected a network with gates"):
        explain.explain_workdir(plain)
    assert not (plain / "explain").exists()


def test_images_of_other_classes_are_refused(run, tmp_path):
    """Their gates would be drawn under the names of the network's own classes."""
    shutil.copytree(run, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    record["data"] |= {"name": "folder", "classes": [], "pad_crop": 0}
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    for name in "ab":
        (tmp_path / "photos" / "test" / name).mkdir(parents=True)
        image.imsave(tmp_path / "photos" / "test" / name / "0.png", np.zeros((8, 8, 3)))
    with pytest.raises(UserError, match=r"^data\.name: got .* with class 0 'a', expected '0', the class that the netw"):
        explain.explain_workdir(tmp_path / "run", data_dir=str(tmp_path / "photos"))
