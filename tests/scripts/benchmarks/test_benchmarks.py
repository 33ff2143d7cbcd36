"""`python -m scripts.benchmarks` on tiny networks: it runs, and its numbers agree. Not how fast anything is."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from scripts.benchmarks import __main__ as benchmarks
from scripts.benchmarks import contenders, layers, machine, steps, tables
from skipnet_jax.data.folders import open_folder
from skipnet_jax.data.in_memory import InMemory
from skipnet_jax.models.complexity import count
from skipnet_jax.specs import DataSpec, MixingSpec
from tests.data import made_images

ROOT = pathlib.Path(__file__).parents[3]
NUMBER = r"[\d,.]+"

# Hides what the step benchmark must not need, and PyTorch on demand.
BLOCKER = """
import sys
class NoTorch:  # SciPy looks for torch in sys.modules
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError(name)
for name in {hidden!r}:
    if name == "torch":
        sys.meta_path.insert(0, NoTorch())
    else:
        sys.modules[name] = None
sys.path.insert(0, {root!r})
from scripts.benchmarks import __main__
__main__.main(sys.argv[1:])
"""
NOT_FOR_STEPS = ("tensorflow", "tensorflow_datasets", "ml_collections", "clu", "sklearn", "matplotlib")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs the command in a process of its own, on one device, without the hidden modules."""
    folder = tmp_path_factory.mktemp("benchmarks")
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(folder))
    settings = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    settings["XDG_CACHE_HOME"] = str(folder)  # `input` must not forget what was measured on this machine

    def call(*arguments: str, hidden: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", BLOCKER.format(hidden=hidden, root=str(ROOT)), *arguments]
        environment = os.environ | settings
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done

    return call


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("step --models=resnet21", "resnet20"),
        ("step --models=resnet20,resnet20", "expected each only once"),
        ("step --modes=train,test", "expected train or eval or host"),
        ("step --models=resnet20 --batch=6 --bn_group_size=4", "model.bn_group_size"),
        ("step --peer=torch", 'pip install -e ".[peer]"'),
        ("layers --peer=torch", 'pip install -e ".[peer]"'),
        ("input --paths=cifar,mnist", "expected imagenet or cifar"),
        ("input --seconds=0", "expected a number above 0"),
        ("input --repeats=0", "at least 1"),
        ("input --images=8", "--imagenet_batch: got 64, expected at most 8"),
    ],
)
def test_help_and_mistakes(command, words, monkeypatch, capsys):
    """A mistake ends with 2 and one line; the full run of each command is slow."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "scripts.benchmarks.peer_networks", raising=False)
    with pytest.raises(SystemExit) as end:
        benchmarks.main(command.split())
    [line] = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and line.startswith("error: ") and words in line
    with pytest.raises(SystemExit) as end:
        benchmarks.main([command.split()[0], "--help"])
    assert end.value.code == 0 and "--repeats" in capsys.readouterr().out


@pytest.mark.slow
def test_input_of_imagenet(run, tmp_path):
    tiny = ("--images=8", "--imagenet_batch=4", "--seconds=0.05", "--repeats=1", "--steps=0", f"--folder={tmp_path}")
    done = run("input", "--paths=imagenet", *tiny, hidden=("torch",))
    stages = re.findall(rf"^\| ([^|]+) \| {NUMBER} \| \S+ \| {NUMBER} \| {NUMBER} \|$", done.stdout, re.MULTILINE)
    ours = ["read, decode, crop, batch", "+ flip, jitter, lighting", "+ transfer", "all but transfer, from files"]
    assert stages == ours
    assert "Training steps" not in done.stdout and 'pip install -e ".[peer]"' in done.stdout
    assert "round 1 of 1: + transfer" in done.stderr  # progress stays out of the tables
    files = sorted(tmp_path.rglob("train/*/*.jpg"))
    assert len({file.read_bytes() for file in files}) == len(files) == 8
    assert {file.parent.name for file in files} == {"china", "flower"}
    for file in files:
        with Image.open(file) as image:
            assert image.size == (500, 375)


@pytest.mark.slow
def test_input_of_cifar_and_training_steps(run):
    done = run("input", "--paths=cifar", "--cifar_batch=16", "--seconds=0.05", "--repeats=1", "--steps=1")
    rates = dict(
        re.findall(rf"^\| ([^|]+) \| ({NUMBER}) \| \S+ \| {NUMBER} \| {NUMBER} \|$", done.stdout, re.MULTILINE)
    )
    stages = {"read and batch", "+ crop, flip", "+ transfer", "AutoAugment, crop, flip, batch"}
    assert stages <= rates.keys() and all(float(rate.replace(",", "")) > 0 for rate in rates.values())
    assert re.search(rf"^\| {NUMBER} \| {NUMBER} \| {NUMBER}% \|", done.stdout, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["files", "memory"])
def test_the_peer_delivers_what_the_spec_says(tmp_path, kind):
    torch = pytest.importorskip("torch")
    peer_loader = pytest.importorskip("scripts.benchmarks.peer_loader")
    if kind == "files":
        for split in ("train", "test"):
            made_images.write_folders(tmp_path / split, {"a": 3, "b": 2})
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
    plain, normalised = (
        next(peer_loader.batches(source, spec, batch_size=4, workers=1, normalize=normalize)) for normalize in (0, 1)
    )
    for images, labels in (plain, normalised):
        assert images.shape == (4, 3, 32, 32) and images.dtype == torch.float32
        assert set(labels.tolist()) <= {0, 1}
    assert normalised[0].min() < -0.5 < plain[0].min()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("peer", ["none", "torch"])
def test_steps(run, peer, capsys):
    """Every mode, network and framework has its rounds, and all other numbers follow from them."""
    hidden, frameworks, modes = (*NOT_FOR_STEPS, "torch"), ["JAX"], "train,eval,host"
    if peer == "torch":
        pytest.importorskip("scripts.benchmarks.peer_networks")
        hidden, modes = NOT_FOR_STEPS, "train,eval"
        frameworks += ["PyTorch", "PyTorch, channels last"]
    tiny = ("--models=resnet20,skip_resnet20", "--batch=8", "--image_size=16", "--seconds=0.02", "--repeats=2")
    done = run("step", *tiny, f"--peer={peer}", f"--modes={modes}", "--format=json", hidden=hidden)
    assert "round 2 of 2: resnet20, eval, JAX" in done.stderr
    result = json.loads(done.stdout)
    rows = {(row["mode"], row["network"], row["framework"]): row for row in result["steps"]}
    assert len(rows) == len(result["steps"]) == 2 * 2 * len(frameworks)
    for (mode, name, framework), row in rows.items():
        assert framework in frameworks
        assert len(row["rounds_s"]) == 2 and min(row["rounds_s"]) > 0
        assert row["step_s"]["min"] <= row["step_s"]["median"] <= row["step_s"]["max"]
        assert row["images_per_s"] == pytest.approx(8 / row["step_s"]["median"])
        flops = 2 * count(name, image_size=16, num_classes=100).flops * (3 if mode == "train" else 1)
        assert row["flops_per_s"] == pytest.approx(flops * row["images_per_s"])
        assert row["share_of_peak"] is None and row["compile_s"] > 0 and row["init_s"] > 0
        if framework == "JAX":  # at least the parameters, and in training their momentum
            assert row["memory"] > 4 * row["params"] * (2 if mode == "train" else 1)
    taxes = {(row["mode"], row["framework"]): row for row in result["gate_tax"]}
    assert taxes.keys() == {(mode, framework) for mode in ("train", "eval") for framework in frameworks}
    for (mode, framework), row in taxes.items():
        gated, plain = (rows[mode, name, framework]["rounds_s"] for name in ("skip_resnet20", "resnet20"))
        assert row["ratio"]["min"] == pytest.approx(min(gated[0] / plain[0], gated[1] / plain[1]))
    assert len(result["peer"]) == (4 if peer == "torch" else 0)
    for row in result["peer"]:
        key = row["mode"], row["above"]
        fastest = min(frameworks[1:], key=lambda framework: rows[(*key, framework)]["step_s"]["median"])
        assert row["framework"] == f"JAX / {fastest}"
        ours, theirs = (rows[(*key, framework)]["rounds_s"] for framework in ("JAX", fastest))
        assert row["ratio"]["max"] == pytest.approx(max(ours[0] / theirs[0], ours[1] / theirs[1]))
    if peer == "none":
        assert_tables_show(result, capsys)


def assert_tables_show(result, capsys):
    tables.print_result(result, "markdown")
    out = capsys.readouterr().out
    assert "Batch 8, float32, batch norm over the whole batch; 2 rounds." in out
    times = rf"{NUMBER} \| \S+\.\.\S+"
    assert re.findall(rf"^\| train \| (\w+) \| JAX \| 16 \| {times} \|", out, re.M) == ["resnet20", "skip_resnet20"]
    assert re.search(rf"^\| train \| skip_resnet20 \| resnet20 \| JAX \| {times} \| {NUMBER} \|$", out, re.M)
    calls = re.findall(r"^\| (\w+) \| (\d+) \| ([\d.]+) \| \S+ \| ([\d.]+) \| \S+ \|$", out, re.M)
    assert [name for name, *_ in calls] == ["resnet20", "skip_resnet20"]
    assert all(int(arrays) > 100 and 0 < float(call) <= float(ready) for _, arrays, call, ready in calls)


@pytest.mark.slow
def test_starts_and_inits(run):
    out = run("start", "--models=resnet20", "--batch=2", "--image_size=8").stdout
    rows = re.findall(rf"^\| resnet20 \| (\w+) \| {' [|] '.join([f'({NUMBER})'] * 6)} \|$", out, re.M)
    assert [cache for cache, *_ in rows] == ["empty", "filled"]
    cold, again = ([float(cell) for cell in cells] for _, *cells in rows)
    assert again[3] < cold[3]  # compilation
    assert all(sum(times[:-1]) <= times[-1] + 0.3 for times in (cold, again))  # each is rounded
    assert re.search(r"^\| resnet20 (\| [\d.]+ ){4}\|$", run("init", "--models=resnet20", "--repeats=1").stdout, re.M)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("peer", [False, True])
def test_layers(capsys, peer):
    if peer:
        pytest.importorskip("torch")
    cases = (layers.Case(3, 8, 6, 2), layers.Case(3, 8, 6, 8))
    layers.run(batch=2, dtype="float32", peer=peer, effort=steps.Effort(0.001, 3), cases=cases)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| 3x3")]
    assert len(rows) == 3 * 2 * (1 + peer)  # both cases share the ungrouped one
    ratios = {(row[0], row[2]): row[5] for row in rows}
    for framework in ("JAX", "PyTorch")[: 1 + peer]:
        assert ratios["| 3x3, 8 channels, 6 px, ungrouped", framework] == "-"
        for grouped in ("2 groups", "depthwise"):
            assert float(ratios[f"| 3x3, 8 channels, 6 px, {grouped}", framework].replace(",", "")) > 0


@pytest.mark.slow
def test_the_setting_arrives_in_the_recipe():
    setting = contenders.Setting(64, 48, "bfloat16", bn_group_size=32, remat=True)
    spec = contenders.plain_spec("skip_resnet20", setting)
    assert (spec.batch_size, spec.data.image_size) == (64, 48)
    assert (spec.model.dtype, spec.model.bn_group_size, spec.model.remat) == ("bfloat16", 32, True)
    assert spec.mixing == MixingSpec()
    assert contenders.Setting(64).size_of("skip_resnet50") == 224


@pytest.mark.slow
def test_peaks():
    assert machine.peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert machine.peak_flops("TPU v5 lite", "bfloat16") == 197e12
    assert machine.peak_flops("TPU v5p", "bfloat16") == 459e12
    assert machine.peak_flops("NVIDIA H100 PCIe", "bfloat16") is None
    assert machine.peak_flops("NVIDIA H200", "float32") is None
