"""scripts/benchmark.py as a user runs it, on next to nothing: that it runs, not how fast."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from scripts import accelerator_benchmark, layer_benchmark, machine, step_benchmark, step_contenders
from skipnet_jax.data.folders import open_folder
from skipnet_jax.data.splits import InMemory
from skipnet_jax.models.complexity import count
from skipnet_jax.specs import DataSpec, MixingSpec
from tests.data import made_images
from tests.interop.test_timm_weights import import_torchvision

ROOT = pathlib.Path(__file__).parents[2]
TINY = ("--images=8", "--imagenet_batch=4", "--cifar_batch=16", "--seconds=0.05", "--repeats=1")
ROW = re.compile(r"^\| ([^|]+) \| ([\d,]+) \| [\d,]+\.\.[\d,]+ \| [\d,]+ \| [\d.]+ \|$", re.MULTILINE)


# On one device, whatever pytest runs on, and without what the step benchmark must not need.
BLOCKER = """
import sys
for name in ("tensorflow", "tensorflow_datasets", "ml_collections", "clu", "sklearn", "matplotlib", {torch!r}):
    sys.modules[name] = None
sys.path.insert(0, {root!r})
from scripts import benchmark
benchmark.main(sys.argv[1:])
"""


def run(*arguments: str, cwd: pathlib.Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def run_bare(tmp_path_factory):
    """Runs where little is installed, with compiled programs that all tests share."""
    cache = str(tmp_path_factory.mktemp("compiled"))
    env = os.environ | {
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def run_in(folder: pathlib.Path, *arguments: str, torch: bool = False) -> subprocess.CompletedProcess[str]:
        code = BLOCKER.format(torch="" if torch else "torch", root=str(ROOT))
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)

    return run_in


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
    assert_one_line(run("input", argument, cwd=tmp_path), words)


def assert_one_line(result: subprocess.CompletedProcess[str], words: str) -> None:
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert words in result.stderr


STEP = ("step", "--models=resnet20,skip_resnet20", "--batch=8", "--image_size=16", "--seconds=0.02", "--repeats=2")


def assert_steps_are_plausible(result, frameworks):
    """Every mode, network and framework has its rounds, and all else follows from these."""
    rows = {(row["mode"], row["network"], row["framework"]): row for row in result["steps"]}
    assert len(rows) == len(result["steps"]) == 2 * 2 * len(frameworks)
    for (mode, name, framework), row in rows.items():
        assert framework in frameworks
        assert len(row["rounds_s"]) == 2 and min(row["rounds_s"]) > 0
        assert row["step_s"]["least"] <= row["step_s"]["median"] <= row["step_s"]["greatest"]
        assert row["images_per_s"] == pytest.approx(8 / row["step_s"]["median"])
        flops = 2 * count(name, image_size=16, num_classes=100).flops * (3 if mode == "train" else 1)
        assert row["flops_per_s"] == pytest.approx(flops * row["images_per_s"])
        assert row["share_of_peak"] is None
        assert row["compile_s"] > 0 and row["init_s"] > 0
        if framework == "JAX":  # at least the parameters, and in training their momentum
            assert row["memory"] > 4 * row["params"] * (2 if mode == "train" else 1)
    taxes = {(row["mode"], row["framework"]): row for row in result["gate_tax"]}
    assert taxes.keys() == {(mode, framework) for mode in ("train", "eval") for framework in frameworks}
    for (mode, framework), row in taxes.items():
        assert (row["above"], row["below"]) == ("skip_resnet20", "resnet20")
        gated, plain = (rows[mode, row[side], framework]["rounds_s"] for side in ("above", "below"))
        assert row["ratio"]["least"] == pytest.approx(min(gated[0] / plain[0], gated[1] / plain[1]))
    return rows


@pytest.mark.slow
def test_steps_alone(run_bare, tmp_path):
    result = run_bare(tmp_path, *STEP, "--format=json")
    assert result.returncode == 0, result.stderr
    assert "round 2 of 2: resnet20, eval, JAX" in result.stderr
    found = json.loads(result.stdout)
    assert_steps_are_plausible(found, {"JAX"})
    assert found["peer"] == found["host"] == []


@pytest.mark.slow
def test_steps_beside_torch(run_bare, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("scripts.torchvision_operators")
    pytest.importorskip("timm")
    result = run_bare(tmp_path, *STEP, "--peer=torch", "--format=json", torch=True)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    rows = assert_steps_are_plausible(found, {"JAX", "PyTorch", "PyTorch, channels last"})
    assert {(row["mode"], row["above"]) for row in found["peer"]} == {key[:2] for key in rows}
    for row in found["peer"]:
        formats = ("PyTorch", "PyTorch, channels last")
        key = row["mode"], row["above"]
        fastest = min(formats, key=lambda framework: rows[(*key, framework)]["step_s"]["median"])
        assert row["framework"] == f"JAX / {fastest}"
        ours, theirs = (rows[(*key, framework)]["rounds_s"] for framework in ("JAX", fastest))
        assert row["ratio"]["greatest"] == pytest.approx(max(ours[0] / theirs[0], ours[1] / theirs[1]))


def test_what_is_asked_of_a_step_arrives():
    setting = step_contenders.Setting(64, 48, "bfloat16", bn_group_size=32, remat=True)
    spec = step_contenders.plain_spec("skip_resnet20", setting)
    assert (spec.batch_size, spec.data.image_size) == (64, 48)
    assert (spec.model.dtype, spec.model.bn_group_size, spec.model.remat) == ("bfloat16", 32, True)
    assert spec.mixing == MixingSpec()
    assert step_contenders.Setting(64).size_of("skip_resnet50") == 224


@pytest.mark.slow
def test_all_that_accelerator_does(tmp_path, monkeypatch, capfd):
    """On a CPU that passes for a TPU, with another network for each that fails."""
    monkeypatch.setattr(accelerator_benchmark, "ASK", "print('tpu')")
    monkeypatch.setattr(accelerator_benchmark, "PLAIN", ("resnet20", "resnet21"))
    monkeypatch.setenv("XLA_FLAGS", "")
    assert accelerator_benchmark.run(batch=4, image_size=32, seconds=0.02, repeats=1, peer=True) == 1
    out, err = capfd.readouterr()
    assert "resnet21 and skip_resnet21 have no numbers" in err
    assert "Batch 4, bfloat16, batch norm over the whole batch; 1 rounds." in out
    numbers = r"[\d.]+ \| [\d.]+\.\.[\d.]+"
    rows = re.findall(rf"^\| (\w+) \| (\w+) \| JAX \| 32 \| {numbers} \|", out, re.MULTILINE)
    assert rows == [(mode, name) for mode in ("train", "eval") for name in ("resnet20", "skip_resnet20")]
    taxes = re.findall(rf"^\| (\w+) \| skip_resnet20 \| resnet20 \| JAX \| {numbers} \| [\d.]+ \|$", out, re.MULTILINE)
    assert taxes == ["train", "eval"]
    calls = re.findall(r"^\| (\w+) \| (\d+) \| ([\d.]+) \| \S+ \| ([\d.]+) \| \S+ \|$", out, re.MULTILINE)
    assert [name for name, *_ in calls] == ["resnet20", "skip_resnet20"]
    for _, arrays, call, ready in calls:
        assert int(arrays) > 100
        assert 0 < float(call) <= float(ready)


@pytest.mark.slow
def test_starts(tmp_path):
    env = os.environ | {"XLA_FLAGS": ""}
    result = run("start", "--models=resnet20", "--batch=2", "--image_size=8", cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    number = r"([\d.]+)"
    rows = re.findall(rf"^\| resnet20 \| (\w+) \| {' [|] '.join([number] * 6)} \|$", result.stdout, re.MULTILINE)
    assert [cache for cache, *_ in rows] == ["empty", "filled"]
    cold, again = ([float(cell) for cell in cells] for _, *cells in rows)
    assert again[3] < cold[3]  # compilation
    assert all(sum(times[:-1]) <= times[-1] + 0.3 for times in (cold, again))  # all are rounded


@pytest.mark.slow
def test_inits(tmp_path):
    result = run("init", "--models=resnet20", "--repeats=1", cwd=tmp_path, env=os.environ | {"XLA_FLAGS": ""})
    assert result.returncode == 0, result.stderr
    assert re.search(r"^\| resnet20 (\| [\d.]+ ){4}\|$", result.stdout, re.MULTILINE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("peer", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_layers(capsys, peer):
    if peer:
        pytest.importorskip("torch")
    cases = (layer_benchmark.Case(3, 8, 6, 2), layer_benchmark.Case(3, 8, 6, 8))
    layer_benchmark.run(batch=2, dtype="float32", peer=peer, effort=step_benchmark.Effort(0.001, 1), cases=cases)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| 3x3")]
    assert len(rows) == 3 * 2 * (1 + peer)  # the two share what they are compared with
    kinds = {(row[0], row[2]): row[5] for row in rows}
    for framework in ("JAX", "PyTorch")[: 1 + peer]:
        assert kinds["| 3x3, 8 channels, 6 px, ungrouped", framework] == "-"
        for grouped in ("2 groups", "depthwise"):
            assert float(kinds[f"| 3x3, 8 channels, 6 px, {grouped}", framework].replace(",", "")) > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["step", "--models=resnet21"], "resnet20"),
        (["step", "--models=resnet20,resnet20"], "expected each only once"),
        (["step", "--modes=train,test"], "expected train or eval or host"),
        (["step", "--models=resnet20", "--batch=6", "--bn_group_size=4"], "model.bn_group_size"),
        (["step", "--peer=torch"], 'pip install -e ".[peer]"'),
        (["layers", "--peer=torch"], 'pip install -e ".[peer]"'),
        (["accelerator"], "got only CPUs from JAX"),
    ],
)
def test_wrong_steps_end_in_one_line(run_bare, tmp_path, arguments, words):
    assert_one_line(run_bare(tmp_path, *arguments), words)


def test_peaks_are_those_of_the_devices_named():
    assert machine.peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert machine.peak_flops("TPU v5 lite", "bfloat16") == 197e12
    assert machine.peak_flops("TPU v5p", "bfloat16") == 459e12
    assert machine.peak_flops("NVIDIA H100 PCIe", "bfloat16") is None
    assert machine.peak_flops("NVIDIA H200", "float32") is None


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
