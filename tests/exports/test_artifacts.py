import json
import shutil

import numpy as np
import pytest

from skipnet_jax.errors import UserError
from skipnet_jax.exports import export
from skipnet_jax.exports.artifacts import load_artifact
from tests.exports.small_networks import add_small_networks, write_weights

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)


@pytest.fixture(scope="module", autouse=True)
def networks():
    with pytest.MonkeyPatch.context() as patch:
        add_small_networks(patch)
        yield


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    place = tmp_path_factory.mktemp("artifacts")
    export.export_workdir(write_weights(place / "weights", "tiny"), "stablehlo", place / "out")
    return place / "out"


@pytest.fixture
def folder(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "out")
    return tmp_path / "out"


def change(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_images_are_normalised_as_the_folder_says(folder):
    before = load_artifact(folder).logits(IMAGES)
    change(folder / "preprocessing.json", mean=[0.9, 0.9, 0.9])
    assert np.abs(load_artifact(folder).logits(IMAGES) - before).max() > 1e-3


def test_images_and_class_names_that_do_not_fit_are_refused(folder):
    artifact = load_artifact(folder)
    with pytest.raises(UserError, match=r"images: got \[3, 4, 8, 3\], expected \[b, 8, 8, 3\] with b >= 1"):
        artifact.logits(IMAGES[:, :4])
    with pytest.raises(UserError, match=r"images: got \[0, 8, 8, 3\]"):
        artifact.logits(IMAGES[:0])
    change(folder / "preprocessing.json", class_names=["one", "two"])
    with pytest.raises(UserError, match=r"got 2 class_names for logits \[3, 10\]"):
        load_artifact(folder).logits(IMAGES)


def test_the_preprocessing_belongs_to_the_network(folder):
    change(folder / "preprocessing.json", model="resnet110")
    with pytest.raises(UserError, match=r"got model='resnet110', expected 'tiny' as in export.json"):
        load_artifact(folder)
    (folder / "preprocessing.json").unlink()
    with pytest.raises(UserError, match=r"got no preprocessing.json, expected one beside export.json"):
        load_artifact(folder)


def test_a_folder_that_is_no_export_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"got no export.json, expected an exported folder. Make one: python -m"):
            load_artifact(path)


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("{", "no valid JSON"),
        ("{}", "no format"),
        ('{"format": ["onnx"], "network": {}}', "format="),
        ('{"format": "tflite", "network": {}}', "format='tflite'"),
        ('{"format": "onnx", "network": {"name": "tiny"}}', "no num_classes"),
        ('{"format": "onnx", "network": {"name": "tiny", "num_classes": "10"}}', "num_classes='10'"),
        ('{"format": "onnx", "network": {"name": "tiny", "num_classes": 10, "depth": 3}}', "the unknown field 'depth'"),
        ('{"format": "onnx", "network": {"name": "tiny", "num_classes": 10, "dropout": 2.0}}', "model.dropout=2.0"),
    ],
)
def test_a_damaged_record_is_one_error_of_the_user(folder, text, got):
    (folder / "export.json").write_text(text)
    with pytest.raises(UserError, match=r"export\.json.*: got .* Export the network again") as error:
        load_artifact(folder)
    assert error.value.got.startswith(got)


def test_a_record_of_an_earlier_version_lacks_the_newest_settings(folder):
    change(folder / "export.json", network={"name": "tiny", "num_classes": 10})
    assert load_artifact(folder).logits(IMAGES).shape == (3, 10)


def test_a_damaged_or_missing_program_is_reported(folder):
    file = folder / "network.stablehlo"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"got an unreadable stablehlo export .* Export the network again"):
        load_artifact(folder)
    file.unlink()
    with pytest.raises(UserError, match=r"unreadable stablehlo export \(.*No such file"):
        load_artifact(folder)
