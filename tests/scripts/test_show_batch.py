"""scripts/show_batch.py draws augmented images, and reports a mistake in one line."""

import pathlib
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


def call(*flags):
    command = [sys.executable, "scripts/show_batch.py", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("erasing", [1.0, pytest.param(0.0, marks=pytest.mark.slow)])
def test_draws_the_images_of_a_step(tmp_path, erasing):
    """White noise instead of grey digits shows that the device's part of the augmentation is drawn too."""
    path = tmp_path / "batch.png"
    flags = ["--config=configs/digits.py", "--images=9", "--step=5", f"--config.mixing.erasing_prob={erasing}"]
    done = call(*flags, f"--output={path}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{path}: 9 of the 128 images of step 5, digits\n"
    picture = matplotlib.image.imread(path)
    assert min(picture.shape[:2]) > 500
    assert (np.ptp(picture[..., :3], axis=-1).max() < 0.02) == (erasing == 0)  # grey or not


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--config: got nothing"),
        (["--config=configs/digits.py", "--config.seeds=1"], "Did you mean --config.seed?"),
        (["--config=configs/skip_resnet50.py", "--config.data.name=folder"], "Give --config.data.dir."),
        (["--config=configs/digits.py", "--config.model.num_classes=5"], "Set --config.model.num_classes=10."),
    ],
)
def test_a_mistake_is_one_line(flags, message):
    done = call(*flags)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr and "Traceback" not in done.stderr
