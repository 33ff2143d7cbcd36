"""From weights of any origin to a workdir that the other modes take."""

import functools
import hashlib
import json

import flax
import jax
import numpy as np
import pytest

from skipnet_jax import models
from skipnet_jax.convert import convert_checkpoint
from skipnet_jax.errors import UserError
from skipnet_jax.evaluation import learnt_classes, predictor
from skipnet_jax.interop import downloads, layouts, pretrained, torch_weights
from skipnet_jax.runs import weights, workdir
from tests import command_line, quick
from tests.interop.file_server import serve
from tests.interop.made_checkpoints import hub_folder, torch_file

NAMES = ("blue", "green", "red")
CONFIG = {
    "architecture": "resnet18",
    "label_names": list(NAMES),
    "pretrained_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.25, 0.5],
        "crop_pct": 0.95,
        "input_size": [3, 64, 64],
        "interpolation": "bicubic",
    },
}


@functools.cache
def state_dict(name="resnet18", naming="timm", classes=3):
    rng = np.random.default_rng(0)
    shapes = layouts.variable_shapes(name, classes)
    arrays = {
        path: (rng.uniform(0.5, 1, leaf.shape) / np.prod(leaf.shape[:-1]) ** 0.5).astype(np.float32)
        for path, leaf in shapes.items()
    }
    return torch_weights.to_state_dict(name, flax.traverse_util.unflatten_dict(arrays), naming)


def test_what_belongs_to_weights_goes_with_them(tmp_path, capsys):
    folder = hub_folder(tmp_path / "hub", state_dict(), CONFIG)
    convert_checkpoint(str(tmp_path / "w"), source=str(folder))
    told = capsys.readouterr().out
    assert "named as in timm and torchvision" in told and "classes: blue, green, red" in told
    assert "images: 64 px, mean (0.5, 0.5, 0.5), std (0.5, 0.25, 0.5), crop 0.95, bicubic" in told
    data = weights.load(tmp_path / "w").spec.data
    assert (data.image_size, data.eval_crop, data.interpolation) == (64, 0.95, "bicubic")
    found = predictor.load_workdir(tmp_path / "w").preprocessing
    assert found.class_names == NAMES
    assert (found.statistics.mean, found.statistics.std) == ((0.5, 0.5, 0.5), (0.5, 0.25, 0.5))
    assert (found.crop_share, found.interpolation) == (0.95, "bicubic")
    (tmp_path / "preprocessing.json").write_text(found.to_json())
    assert type(found).read(tmp_path / "preprocessing.json") == found


@pytest.mark.parametrize("which", ["ema", "raw", None])
def test_averaged_weights_are_chosen_and_said(tmp_path, capsys, which):
    averaged = state_dict() | {"fc.bias": state_dict()["fc.bias"] + 1}
    (tmp_path / "w.pth.tar").write_bytes(torch_file({"state_dict": state_dict(), "state_dict_ema": averaged}))
    convert_checkpoint(str(tmp_path / "w"), source=str(tmp_path / "w.pth.tar"), weights=which)
    bias = weights.load(tmp_path / "w").variables["params"]["classifier"]["bias"]
    np.testing.assert_array_equal(bias, (state_dict() if which == "raw" else averaged)["fc.bias"])
    other = "ema" if which == "raw" else "raw"
    assert f"--weights={other} takes those under" in capsys.readouterr().out


def test_a_new_head_a_huge_head_and_given_names(tmp_path, capsys):
    headless = {key: array for key, array in state_dict().items() if not key.startswith("fc.")}
    (tmp_path / "w.pth").write_bytes(torch_file(headless))
    source = str(tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"without a classifier .*Give num_classes"):
        convert_checkpoint(str(tmp_path / "w"), source=source)
    assert not (tmp_path / "w").exists()
    (tmp_path / "names.txt").write_text("a\nb\n")
    convert_checkpoint(str(tmp_path / "w"), source=source, num_classes=2, classes=str(tmp_path / "names.txt"))
    assert workdir.read_class_names(workdir.locate(tmp_path / "w")) == ("a", "b")
    assert "2 arrays are not in the file and have initial values (seed 0): classifier" in capsys.readouterr().out
    huge = headless | {"fc.weight": np.zeros((21843, 512), np.float32), "fc.bias": np.zeros(21843, np.float32)}
    (tmp_path / "w.pth").write_bytes(torch_file(huge))
    convert_checkpoint(str(tmp_path / "huge"), source=source)
    assert "21,843 classes, as many as ImageNet-21k has" in capsys.readouterr().out
    assert weights.load(tmp_path / "huge").spec.model.num_classes == 21843


def test_a_gated_network_starts_from_a_plain_one_s_weights(tmp_path, capsys):
    (tmp_path / "w.pth").write_bytes(torch_file(state_dict()))
    convert_checkpoint(str(tmp_path / "w"), source=str(tmp_path / "w.pth"), model="static_resnet18")
    assert "8 arrays are not in the file and have initial values (seed 0): blocks_0/junction" in capsys.readouterr().out
    assert weights.load(tmp_path / "w").spec.model.name == "static_resnet18"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A server with a small network in place of a published one."""
    content = torch_file(state_dict("skip_resnet18", "author", 1000))
    name = f"skipresnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setenv(downloads.CACHE_VARIABLE, str(tmp_path / "cache"))
    with serve() as server:
        server.files[f"/{name}"] = content
        monkeypatch.setattr(pretrained, "ADDRESS", server.address)
        monkeypatch.setitem(pretrained.PUBLISHED, "skip_resnet18", pretrained.Published(name, 0.0))
        yield server, name, content


def test_published_weights_become_a_workdir_with_imagenet_s_classes(tmp_path, published, capsys):
    server, name, content = published
    convert_checkpoint(str(tmp_path / "w"), pretrained_name="skip_resnet18")
    found = predictor.load_workdir(tmp_path / "w").preprocessing
    assert found.class_names[:2] == ("n01440764", "n01443537") and len(found.class_names) == 1000
    assert (found.image_size, found.crop_share) == (224, 0.875)
    assert "named as in the author's networks for timm" in capsys.readouterr().out
    (tmp_path / name).write_bytes(content)
    convert_checkpoint(str(tmp_path / "again"), source=str(tmp_path / name))
    jax.tree.map(
        np.testing.assert_array_equal,
        weights.load(tmp_path / "w").variables,
        weights.load(tmp_path / "again").variables,
    )
    assert workdir.read_class_names(workdir.locate(tmp_path / "again")) == found.class_names
    model, variables = models.load_pretrained("skip_resnet18")
    jax.tree.map(np.testing.assert_array_equal, variables, weights.load(tmp_path / "w").variables)
    assert model.spec.name == "skip_resnet18"
    assert len(server.asked) == 1  # the others came from the cache


@pytest.mark.slow
@pytest.mark.parametrize("name", pretrained.PUBLISHED)
def test_the_real_files_give_the_published_sums(name):
    """The user's own check of a download."""
    place = downloads.cache_folder() / pretrained.PUBLISHED[name].file
    if not place.is_file():
        pytest.skip(f"{place} is not there, and tests download nothing")
    model, variables = models.load_pretrained(name)
    logits = quick.jit(functools.partial(model.apply, train=False))(variables, np.ones((1, 256, 256, 3), np.float32))
    assert abs(float(np.abs(np.sum(logits, dtype=np.float64))) - pretrained.PUBLISHED[name].check) < 1e-3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "neither --from nor --pretrained"),
        (["--from=a.pth", "--pretrained=skip_resnet50"], "both --from and --pretrained"),
        (["--from=nowhere.pth"], "nowhere.pth: got no such file"),
        (
            ["--pretrained=resnet50"],
            "--pretrained: got 'resnet50', expected a network with published weights: skip_res",
        ),
        (["--from={file}", "--model=resnett18"], "--model: got 'resnett18'"),
        (["--from={file}", "--weights=ema"], "--weights: got 'ema', but"),
        (["--from={file}", "--num_classes=1"], "num_classes"),
        (["--from={file}", "--classes={file}"], "--classes: got"),
        (["--from={file}", "--checkpoint=3"], "--checkpoint: got a value in --mode=convert"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(mistakes, flags, message):
    done, place = mistakes[tuple(flags)]
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr
    assert not place.exists()


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "w.pth").write_bytes(torch_file(state_dict()))
    [mark] = [mark for mark in test_mistakes_end_with_one_line_and_status_2.pytestmark if mark.name == "parametrize"]
    cases = [tuple(flags) for flags, _ in mark.args[1]]
    places = [folder / f"out{k}" for k in range(len(cases))]
    lines = [
        ["--mode=convert", f"--workdir={place}", *(flag.format(file=folder / "w.pth") for flag in flags)]
        for flags, place in zip(cases, places, strict=True)
    ]
    return dict(zip(cases, zip(command_line.run_all(lines), places, strict=True), strict=True))


def make_folder(root, names):
    """A test image for each class: the class in numeric order is told by its grey value."""
    from PIL import Image

    for name in names:
        (root / "test" / name).mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), 10 + 20 * int(name), np.uint8)).save(root / "test" / name / "a.png")
    return root


def test_classes_without_names_are_compared_by_number_in_numeric_order(tmp_path, capsys):
    from skipnet_jax.specs import DataSpec

    root = make_folder(tmp_path / "data", [str(k) for k in range(12)])
    data = DataSpec(name="folder", dir=str(root), image_size=8, pad_crop=0)
    split, ordered = learnt_classes.load_in_order(data, None, 12)
    assert split.class_names == tuple(map(str, range(12)))
    assert "in numeric order: 0, 1, 2, ..." in capsys.readouterr().out
    images = {path.rsplit("/", 2)[1]: label for path, label in zip(split.paths, split.labels.tolist(), strict=True)}
    assert images == {str(k): k for k in range(12)}
    assert len(ordered.classes) == 12
    with pytest.raises(UserError, match="with 12 classes, expected the 10 classes"):
        learnt_classes.load_in_order(data, None, 10)
    backwards = tuple(map(str, reversed(range(12))))
    assert learnt_classes.load_in_order(data, backwards, 12)[0].class_names == backwards


def test_the_workdir_says_where_its_weights_come_from(tmp_path):
    (tmp_path / "w.pth").write_bytes(torch_file(state_dict()))
    convert_checkpoint(str(tmp_path / "w"), source=str(tmp_path / "w.pth"))
    record = json.loads((tmp_path / "w" / workdir.MODEL).read_text())
    expected = {"name": "resnet18", "num_classes": 3, "source": str(tmp_path / "w.pth"), "fresh": []}
    assert record == expected
    assert workdir.read_class_names(workdir.locate(tmp_path / "w")) is None
