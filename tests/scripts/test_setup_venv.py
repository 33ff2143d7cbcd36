"""scripts/setup_venv.sh with an interpreter that only pretends: when it makes .venv, and when it keeps it."""

import os
import pathlib
import shutil
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "setup_venv.sh"

# Like Python's venv, it writes the environment's folder into the environment.
PYTHON = """#!/usr/bin/env bash
case "$1 $2" in
    "-m venv")
        mkdir -p .venv/bin
        cp "$0" .venv/bin/python
        echo "VIRTUAL_ENV='$(pwd -P)/.venv'" >.venv/bin/activate
        echo VERSION >>made
        ;;
    "-c import"*print*) echo VERSION ;;
esac
"""


@pytest.fixture
def checkout(tmp_path) -> pathlib.Path:
    folder = tmp_path / "a checkout"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPT, folder / "scripts")
    for name in ("setup.cfg", "pyproject.toml"):
        (folder / name).touch()
    return folder


def set_up(checkout: pathlib.Path, version: str | None = None) -> list[str]:
    """Runs the script, with PYTHON if there is a version; returns the versions that have made .venv so far."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    if version:
        python = checkout.parent / f"python {version}"
        python.write_text(PYTHON.replace("VERSION", version))
        python.chmod(0o755)
        environment["PYTHON"] = str(python)
    command = ["bash", str(checkout / "scripts" / "setup_venv.sh"), "run"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return (checkout / "made").read_text().split()


def test_a_moved_checkout_gets_an_environment_of_its_own(checkout):
    assert set_up(checkout, "3.11") == set_up(checkout) == ["3.11"]
    moved = checkout.rename(checkout.with_name("elsewhere"))
    assert set_up(moved, "3.11") == set_up(moved) == ["3.11", "3.11"]
    assert str(moved / ".venv") in (moved / ".venv" / "bin" / "activate").read_text()


def test_python_chooses_the_interpreter_of_an_environment_that_is_there_too(checkout):
    assert set_up(checkout, "3.11") == ["3.11"]
    assert set_up(checkout, "3.12") == set_up(checkout, "3.12") == set_up(checkout) == ["3.11", "3.12"]
