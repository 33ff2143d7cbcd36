"""The wheel in a fresh environment, without the checkout."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SMALLER = ["--config.model.name=resnet20", "--config.data.image_size=8", "--config.epochs=1"]
SMALLER += ["--config.optim.warmup_epochs=0"]
LINES = """
from skipnet_jax import config_files
from skipnet_jax.train import train_and_evaluate
config = config_files.load("digits")
config.model.name, config.data.image_size, config.epochs, config.optim.warmup_epochs = "resnet20", 8, 1, 0
train_and_evaluate(config, "runs/lines")
"""


def files(folder: pathlib.Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("skipnet_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", f"--wheel-dir={out}", source], check=True, capture_output=True)
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs a program of a fresh environment in an empty folder. It borrows the libraries of the tests' environment."""
    place, folder = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("empty")
    venv.create(place, symlinks=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pip = [sys.executable, "-m", "pip", f"--python={place / 'bin' / 'python'}", "--disable-pip-version-check"]
    install = [*pip, "install", "--no-index", "--no-deps", wheel]
    subprocess.run(install, check=True, capture_output=True, env=environment)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(
        sysconfig.get_path("purelib")
    )  # only now: pip would find this package there

    def run(program: str, *arguments: str) -> str:
        command = [place / "bin" / program, *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    run.folder = folder
    assert str(place) in run("python", "-c", "import skipnet_jax; print(skipnet_jax.__file__)")
    return run


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package_and_the_configs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name.removeprefix("skipnet_jax/") for name in archive.namelist() if ".dist-info/" not in name}
    configs = {f"shipped/configs/{name}" for name in files(ROOT / "configs") if "__pycache__" not in name}
    assert names == configs | {name for name in files(ROOT / "skipnet_jax") if "__pycache__" not in name}


@pytest.mark.slow
def test_the_installed_commands_do_the_quickstart_in_an_empty_folder(installed):
    printed = installed("skipnet", "train", "--config=digits", *SMALLER)
    assert printed.startswith("no --workdir is given: training in runs/digits\n") and "finished: 1 epochs" in printed
    printed = installed("python", "-m", "skipnet_jax.main", "--config=configs/digits.py", *SMALLER)
    assert "already complete: 1 epochs" in printed  # the command of the manual, on the same run
    assert "of 360 images" in installed("skipnet", "evaluate", "--workdir=runs/digits")
    assert "skip_resnet50" in installed("skipnet", "models", "skip_resnet50")
    assert files(installed.folder) >= {"runs/digits/config.json", "runs/digits/results.json"}


@pytest.mark.slow
def test_three_lines_of_a_notebook_train(installed):
    assert "finished: 1 epochs" in installed("python", "-c", LINES)
