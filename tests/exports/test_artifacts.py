import json
import shutil

import numpy as np
import pytest

from skipnet_jax.exports import artifacts, export
from skipnet_jax.exports.artifacts import load_artifact
from tests.exports.small_networks import add_small_networks, write_weights

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    place = tmp_path_factory.mktemp("artifacts")
    with pytest.MonkeyPatch.context() as patch:
        add_small_networks(patch)
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


def test_images_of_another_size_are_refused(folder):
    artifact = load_artifact(folder)
    with pytest.raises(ValueError, match=r"images: got \[3, 4, 8, 3\], expected \[b, 8, 8, 3\] with b >= 1"):
        artifact.logits(IMAGES[:, :4])
    with pytest.raises(ValueError, match=r"images: got \[0, 8, 8, 3\]"):
        artifact.logits(IMAGES[:0])


def test_too_few_class_names_are_told(folder):
    change(folder / "preprocessing.json", class_names=["one", "two"])
    with pytest.raises(ValueError, match=r"got 2 class_names for logits \[3, 10\]"):
        load_artifact(folder).logits(IMAGES)


def test_the_preprocessing_of_another_network_is_refused(folder):
    change(folder / "preprocessing.json", model="resnet110")
    with pytest.raises(ValueError, match=r"got model='resnet110', expected 'tiny' as in export.json"):
        load_artifact(folder)


def test_damaged_preprocessing_is_refused(folder):
    file = folder / "preprocessing.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(ValueError, match=r"preprocessing.json: got no valid JSON .* Export the network again"):
        load_artifact(folder)
    file.unlink()
    with pytest.raises(ValueError, match=r"got no preprocessing.json, expected one beside export.json"):
        load_artifact(folder)


def test_a_folder_that_is_no_export_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got no export.json, expected an exported folder. Make one: python -m"):
        load_artifact(tmp_path)
    with pytest.raises(ValueError, match=r"got no export.json"):
        load_artifact(tmp_path / "none")


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"format": "onnx"}', '{"format": "tflite", "network": {"name": "a"}}']
)
def test_a_damaged_record_is_refused(folder, text):
    (folder / "export.json").write_text(text)
    with pytest.raises(ValueError, match=r"export\.json: got "):
        load_artifact(folder)


def test_a_damaged_or_missing_program_is_told(folder):
    file = folder / "network.stablehlo"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(
        ValueError, match=r"out: got a stablehlo export that cannot be read .* Export the network again"
    ):
        load_artifact(folder)
    file.unlink()
    with pytest.raises(ValueError, match=r"cannot be read \(.*No such file"):
        load_artifact(folder)


def test_a_missing_library_is_told(folder, monkeypatch):
    change(folder / "export.json", format="onnx")
    monkeypatch.setitem(artifacts.NEEDS, "onnx", ("no_such_library",))
    with pytest.raises(ValueError, match=r'got onnx, expected no_such_library to be installed.*"\.\[export\]"'):
        load_artifact(folder)
