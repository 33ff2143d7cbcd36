"""docs/running.md: the commands that it calls run are run, smaller, and those of the TPU script dry."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
MARKERS = ("run", "dry run", "hardware")
BLOCK = re.compile(r"(?:<!-- (.*?) -->\n)?```bash\n(.*?)```", re.DOTALL)
BLOCKS = BLOCK.findall((ROOT / "docs" / "running.md").read_text())
SMALLER = "--config=configs/digits.py --config.model.name=resnet20 --config.data.image_size=8 --config.epochs=1"
DEADLINE = 300


def blocks(marker: str) -> list[str]:
    return [text for found, text in BLOCKS if found == marker]


def run(text: str) -> str:
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "XLA_FLAGS": ""}
    result = subprocess.run(
        ["bash", "-euc", text], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=DEADLINE
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_every_command_says_whether_it_was_run():
    assert len(BLOCKS) > 5
    assert {marker for marker, _ in BLOCKS} == set(MARKERS)


@pytest.mark.slow
@pytest.mark.parametrize("text", blocks("run"))
def test_commands_run(text, tmp_path):
    smaller = text.replace("--config=configs/digits.py", SMALLER).replace("runs/", f"{tmp_path}/")
    assert smaller != text
    assert "finished: 1 epochs" in run(smaller)


@pytest.mark.parametrize("text", blocks("dry run"))
def test_commands_for_a_tpu_run_dry(text):
    assert text.count("run_tpu_pod.sh") == 1
    printed = run(text.replace("run_tpu_pod.sh", "run_tpu_pod.sh --dry_run"))
    assert "gcloud compute tpus tpu-vm ssh skip-resnet50 --zone=us-west4-a --project=my-project --worker=all" in printed


def test_scripts_and_files_that_it_names_are_there():
    text = (ROOT / "docs" / "running.md").read_text()
    for name in re.findall(r"(?:scripts|configs)/\w+\.\w+", text):
        assert (ROOT / name).is_file(), name
