import csv

import numpy as np
import pytest
from etils import epath
from matplotlib import image

from skipnet_jax.evaluation import confusion

ANSWERS = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.int32)
GUESSES = np.array([0, 0, 0, 1, 0, 0, 1, 1], np.int32)
# Bins of 4, 3 and 1 images: the second holds its upper end, 8/15, and the last holds certainty.
CONFIDENCE = np.array([0.501, 8 / 15, 0.51, 0.52, 0.9, 0.91, 0.92, 1.0], np.float32)


def make(names=("cat", "dog", "none, ever")):
    predictions = {"answer": ANSWERS, "prediction": GUESSES, "confidence": CONFIDENCE}
    return confusion.break_down(predictions, names)


def test_bins_of_confidence_and_their_expected_calibration_error():
    made = make()
    assert np.flatnonzero(made.images).tolist() == [7, 13, 14]
    assert made.images[[7, 13, 14]].tolist() == [4, 3, 1] and made.hits[[7, 13, 14]].tolist() == [3, 1, 1]
    first, second = abs(3 - CONFIDENCE[:4].sum()), abs(1 - CONFIDENCE[4:7].sum())
    assert made.calibration_error == pytest.approx((first + second) / 8)


def test_the_accuracy_of_each_class():
    assert make().class_accuracy == {"cat": 0.75, "dog": 0.5, "none, ever": None}
    assert make(names=("crane", "dog", "crane")).class_accuracy == {"crane (0)": 0.75, "dog": 0.5, "crane (2)": None}


def test_a_network_whose_scores_are_never_finite_has_empty_counts():
    nothing = confusion.break_down(
        {name: np.zeros(0, np.int32) for name in ("answer", "prediction", "confidence")}, ("cat", "dog")
    )
    assert not nothing.confusion.any() and nothing.confusion.shape == (2, 2) and nothing.calibration_error == 0


def test_writes_a_table_and_two_pictures(tmp_path):
    files = make().write(epath.Path(tmp_path), "name")
    assert [file.name for file in files] == ["name_confusion.csv", "name_confusion.png", "name_calibration.png"]
    assert list(csv.reader(files[0].read_text().splitlines())) == [
        ["true class \\ predicted class", "cat", "dog", "none, ever"],
        ["cat", "3", "1", "0"],
        ["dog", "2", "2", "0"],
        ["none, ever", "0", "0", "0"],
    ]
    assert all(image.imread(file).std() > 0 for file in files[1:])
