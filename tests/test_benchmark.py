"""scripts/benchmark.py as a user runs it, on next to nothing: that it runs, not how fast."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from skipnet_jax.data.folders import open_folder
from skipnet_jax.data.kinds import InMemory
from skipnet_jax.specs import DataSpec
from tests.data import made_images
from tests.interop.test_timm_weights import import_torchvision

ROOT = pathlib.Path(__file__).parents[1]
TINY = ("--images=8", "--imagenet_batch=4", "--cifar_batch=16", "--seconds=0.05", "--repeats=1")
ROW = re.compile(r"^\| ([^|]+) \| ([\d,]+) \| [\d,]+\.\.[\d,]+ \| [\d,]+ \| [\d.]+ \|$", re.MULTILINE)


def run(*arguments: str, cwd: pathlib.Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def run_alone(tmp_path_factory):
    """Runs where PyTorch cannot be imported, whether or not it is installed."""
    hidden = tmp_path_factory.mktemp("hidden")
    (hidden / "torch.py").write_text("raise ModuleNotFoundError('No module named torch')\n")
    path = os.pathsep.join([str(hidden), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": ""}  # one device

    def run_in(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        result = run("input", *TINY, *arguments, cwd=folder, env=env)
        assert result.returncode == 0, result.stderr
        assert "round 1 of 1: + transfer" in result.stderr  # progress stays out of the tables
        assert "round 1 of 1" not in result.stdout
        assert 'pip install -e ".[peer]"' in result.stdout
        return result

    return run_in


@pytest.mark.slow
def test_input_of_imagenet(run_alone, tmp_path):
    result = run_alone(tmp_path, "--paths=imagenet", "--steps=0", "--folder=images")
    stages = ["read shards", "+ decode and crop", "+ flip, jitter, lighting", "+ batch", "+ transfer"]
    assert [name for name, _ in ROW.findall(result.stdout)] == [*stages, "all but transfer, from files"]
    assert "Training steps" not in result.stdout

    files = sorted((tmp_path / "images").rglob("*.jpg"))
    assert len({file.read_bytes() for file in files}) == len(files) == 8
    assert {file.parent.name for file in files} == {"china", "flower"}
    for file in files:
        with Image.open(file) as image:
            assert image.size == (500, 375)


@pytest.mark.slow
def test_input_of_cifar(run_alone, tmp_path):
    result = run_alone(tmp_path, "--paths=cifar", "--steps=1")
    rows = ROW.findall(result.stdout)
    assert [name for name, _ in rows] == [
        "read and batch",
        "+ crop, flip",
        "+ transfer",
        "AutoAugment, crop, flip, batch",
    ]
    assert all(int(rate.replace(",", "")) > 0 for _, rate in rows)
    assert "Training steps of resnet20" in result.stdout


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--paths=cifar,mnist", "expected imagenet or cifar"),
        ("--seconds=0", "expected a number above 0"),
        ("--repeats=0", "at least 1"),
        ("--cifar_model=resnet21", "resnet20"),
        ("--images=8", "--imagenet_batch"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, argument, words):
    result = run("input", argument, cwd=tmp_path)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["files", "memory"])
def test_peer_delivers_what_the_spec_says(tmp_path, kind):
    torch, _ = import_torchvision()
    from scripts import peer_loader

    if kind == "files":
        made_images.write_folders(tmp_path / "train", {"a": 3, "b": 2})
        spec = DataSpec(
            name="folder", dir=str(tmp_path), pad_crop=0, crop_min_area=0.08, color_jitter=0.4, lighting=0.1
        )
        source = open_folder(spec, "train")
    else:
        spec = DataSpec(name="cifar10", auto_augment="cifar10")
        images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
        source = InMemory(
            name="noise", class_names=("a", "b"), images=images, labels=np.array([0, 1, 0, 1, 0], np.int32)
        )
    plain, standardised = (
        next(peer_loader.batches(source, spec, batch_size=4, workers=1, normalize=normalize)) for normalize in (0, 1)
    )
    for images, labels in (plain, standardised):
        assert images.shape == (4, 3, 32, 32) and images.dtype == torch.float32
        assert set(labels.tolist()) <= {0, 1}
    assert standardised[0].min() < -0.5 < plain[0].min()
