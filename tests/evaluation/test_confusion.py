import csv

import numpy as np
import pytest
from etils import epath
from matplotlib import image


def make(names=("cat", "dog", "none, ever"), confusion=((3, 1, 0), (2, 2, 0), (0, 0, 0))):
    return confusion.Details(
        class_names=names,
        confusion=np.array(confusion, np.int32),
        images=np.array([0, 4, 4], np.int32),
        hits=np.array([0, 1, 4], np.int32),
        confidence=np.array([0, 2.0, 3.5], np.float32),
    )


def test_the_expected_calibration_error_by_hand():
    """Bins of 4 images each: accuracy 1/4 at confidence 1/2, and 1 at 7/8."""
    assert make().calibration_error == pytest.approx(0.5 * (1 / 2 - 1 / 4) + 0.5 * (1 - 7 / 8))


def test_the_accuracy_of_each_class():
    assert make().class_accuracy == {"cat": 0.75, "dog": 0.5, "none, ever": None}
    assert make(names=("crane", "dog", "crane")).class_accuracy == {"crane (0)": 0.75, "dog": 0.5, "crane (2)": None}


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
