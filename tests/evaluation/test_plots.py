import numpy as np
import pytest
from etils import epath
from matplotlib import colors, image

from skipnet_jax.evaluation import plots


def draw_confusion(path, confusion):
    names = [f"class {number} of a name that is far too long" for number in range(len(confusion))]
    plots.plot_confusion(confusion, names, epath.Path(path))
    return image.imread(path)[..., :3]


def count(picture, color):
    """Pixels of a colour."""
    return (abs(picture[..., :3] - np.array(colors.to_rgb(color))) < 0.01).all(-1).sum()


@pytest.mark.parametrize("classes", [2, 100, 1000])
def test_any_number_of_classes_has_a_picture_that_a_screen_can_show(tmp_path, classes):
    confusion = np.diag(np.full(classes, 9))
    confusion[0, 1] = 4
    picture = draw_confusion(tmp_path / "a.png", confusion)
    assert max(picture.shape[:2]) < 2600
    assert (count(picture, plots.WRONG) > 0) == (classes > plots.MAX_NAMED)  # bars instead of a matrix


def test_without_images_or_mistakes_there_is_a_picture_too(tmp_path):
    assert draw_confusion(tmp_path / "a.png", np.zeros((3, 3), int)).std() > 0
    assert draw_confusion(tmp_path / "b.png", np.eye(200, dtype=int)).std() > 0


def test_the_bars_of_the_reliability_diagram_are_as_high_as_the_accuracy(tmp_path):
    def draw(hits):
        path = epath.Path(tmp_path / "a.png")
        plots.plot_calibration(np.array([10, 10]), np.array(hits), np.array([4.0, 8.0]), error=0.1, path=path)
        return count(image.imread(path), plots.RIGHT)

    low, high = draw([0, 2]), draw([0, 8])
    assert 3.5 < high / low < 4.5
    assert draw([8, 8]) > 1.8 * high
