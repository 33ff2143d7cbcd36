from etils import epath
from matplotlib import image

from skipnet_jax.analysis import plots

LINES = [
    {"step": 4, "epoch": 0.5, "train/loss": 2.3, "train/accuracy": 0.1, "learning_rate": 0.02},
    {"step": 8, "epoch": 1.0, "train/loss": 1.3, "train/accuracy": 0.5, "learning_rate": 0.02},
    {"step": 8, "epoch": 1.0, "test/loss": 1.5, "test/accuracy": 0.4},
]


def draw(lines, path):
    plots.plot_curves(lines, epath.Path(path))
    return image.imread(path)


def test_draws_what_is_there(tmp_path):
    full = draw(LINES, tmp_path / "full.png")
    empty = draw([], tmp_path / "empty.png")
    without_test = draw(LINES[:2], tmp_path / "train.png")
    assert full.shape == empty.shape == without_test.shape
    assert (full != empty).any() and (full != without_test).any()
    test_red = (abs(full[..., :3] - [0.753, 0.224, 0.169]) < 0.01).all(-1)
    assert test_red.any()
