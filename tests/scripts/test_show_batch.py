import pathlib
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


def call(*flags):
    command = [sys.executable, str(ROOT / "scripts" / "show_batch.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_draws_the_images_of_a_step(tmp_path):
    """White noise instead of a digit shows that the device's part of the augmentation is drawn too."""
    flags = [f"--config={ROOT / 'configs' / 'digits.py'}", "--images=9"]
    pictures = {}
    for name, step, erasing in (("plain", 0, 0.0), ("step", 5, 0.0), ("noise", 0, 1.0)):
        path = tmp_path / f"{name}.png"
        done = call(*flags, f"--step={step}", f"--config.mixing.erasing_prob={erasing}", f"--output={path}")
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{path}: 9 of the 128 images of step {step}, digits\n"
        pictures[name] = matplotlib.image.imread(path)
    assert min(pictures["plain"].shape[:2]) > 500
    grey = [np.ptp(picture[..., :3], axis=-1).max() < 0.02 for picture in pictures.values()]
    assert grey == [True, True, False]  # digits are, noise is not
    assert pictures["plain"].shape != pictures["step"].shape or np.any(pictures["plain"] != pictures["step"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--config: got nothing"),
        (["--config=configs/digitz.py"], "did you mean configs/digits.py?"),
        (["--config=configs/digits.py", "--config.seeds=1"], "did you mean --config.seed?"),
        (["--config=configs/skip_resnet50.py", "--config.data.name=folder"], "Give --config.data.dir=DIR"),
    ],
)
def test_a_mistake_is_one_line(flags, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    done = call(*flags)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr and "Traceback" not in done.stderr
