import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from matplotlib import image

from skipnet_jax import config, explain, files
from skipnet_jax.models import build_network
from skipnet_jax.runs import checkpoint


def digits(name):
    from configs import recipes

    wanted = recipes.digits()
    wanted.model.name, wanted.epochs, wanted.optim.warmup_epochs = name, 1, 0
    wanted.data.image_size, wanted.data.classes, wanted.model.num_classes = 8, (0, 1), 2
    return config.train_spec(wanted)


def make_run(path, name):
    """A workdir with the initial weights of a network."""
    spec = digits(name)
    model = build_network(spec.model)
    variables = model.lazy_init(jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32), train=False)
    path.mkdir()
    files.write_json(epath.Path(path / "config.json"), config.to_dict(spec))
    files.write_json(epath.Path(path / "data.json"), {"class_names": ["0", "1"], "training_images": 288})
    with checkpoint.open_manager(path / "checkpoints") as manager:
        checkpoint.save(manager, 0, {"step": jnp.zeros((), jnp.int32), **variables}, {"accuracy": 0.5})
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("explain") / "run", "skip_resnet20")


def test_writes_pictures_and_numbers(run, capsys):
    measured = explain.explain_workdir(run)
    folder = run / "explain"
    kinds = ("gates", "gates_by_class", "gates_image_0", "gates_image_1")
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        ["gates.json", *(f"{kind}.{form}" for kind in kinds for form in ("png", "svg"))]
    )
    told = json.loads((folder / "gates.json").read_text())
    assert told["model"] == "skip_resnet20" and told["images"] == measured.counts.sum() == 72
    assert told["links"][:3] == [
        {"block": 0, "output_of": "stem"},
        {"block": 1, "output_of": "0"},
        {"block": 1, "output_of": "stem"},
    ]
    assert len(told["links"]) == len(told["overall"]["states"]) == len(told["spread"]) == 15
    assert [entry["class"] for entry in told["classes"]] == ["0", "1"]
    assert told["overall"]["states"][1] + told["overall"]["states"][2] == pytest.approx(1, abs=2e-5)
    mean = sum(entry["images"] * entry["states"][1] for entry in told["classes"]) / 72
    assert mean == pytest.approx(told["overall"]["states"][1], abs=2e-5)
    assert {entry["image"][-3:] for entry in told["single_images"]} == {"'0'", "'1'"}, "one of each class"
    assert f"written to {folder}" in capsys.readouterr().out


def test_files_of_the_users_choice(run, tmp_path):
    image.imsave(tmp_path / "mine.png", np.random.default_rng(0).random((20, 30, 3)))
    explain.explain_workdir(run, images=[str(tmp_path / "mine.png")], out=tmp_path / "out")
    told = json.loads((tmp_path / "out" / "gates.json").read_text())
    assert [entry["image"] for entry in told["single_images"]] == ["mine.png"]
    assert not (tmp_path / "out" / "gates_image_1.png").exists()


def test_a_corrupt_image_is_told_before_the_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(explain.gates, "measure", None)
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(ValueError, match=r"bad\.png: got an image that cannot be decoded, expected"):
        explain.explain_workdir(run, images=[str(tmp_path / "bad.png")], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_told_before_the_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(explain.gates, "measure", None)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"--out: got .*file, which cannot be written \(File exists\)"):
        explain.explain_workdir(run, out=tmp_path / "file")
    monkeypatch.setattr(explain.os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ValueError, match=r"--out: got .*out, which cannot be written \(Permission denied\)"):
        explain.explain_workdir(run, out=tmp_path / "out")


def test_a_plain_network_is_told_so(tmp_path):
    plain = make_run(tmp_path / "plain", "resnet20")
    with pytest.raises(ValueError, match="expected a network with gates"):
        explain.explain_workdir(plain)
    assert not (plain / "explain").exists()
