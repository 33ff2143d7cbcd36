"""Pillow's affine operations: against golden pixels and against Pillow itself."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from skipnet_jax.data import pillow_geometry

OPERATIONS = {
    "shear_x": pillow_geometry.shear_x,
    "shear_y": pillow_geometry.shear_y,
    "translate_x": pillow_geometry.translate_x,
    "translate_y": pillow_geometry.translate_y,
    "rotate": pillow_geometry.rotate,
}
FILTERS = {"nearest": Image.NEAREST, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}
# Mean absolute difference, in levels of 0..255. Where many true values are whole numbers (slopes of simple fractions,
# as in the golden cases), float32 truncates some of them to one level less.
MEAN_DIFFERENCE = {"nearest": 0.0, "bilinear": 0.07, "bicubic": 0.03}


def pillow(image: np.ndarray, operation: str, value: float, interpolation: str) -> np.ndarray:
    source, (height, width) = Image.fromarray(image), image.shape[:2]
    if operation == "rotate":
        return np.asarray(source.rotate(value, FILTERS[interpolation], fillcolor=(128, 128, 128)))
    coefficients = {
        "shear_x": (1, value, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, value, 1, 0),
        "translate_x": (1, 0, value * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, value * height),
    }[operation]
    grey = (128, 128, 128)
    return np.asarray(source.transform(source.size, Image.AFFINE, coefficients, FILTERS[interpolation], fillcolor=grey))


def assert_close(got: tf.Tensor, expected: np.ndarray, interpolation: str, case: str) -> None:
    difference = np.abs(got.numpy().astype(int) - expected)
    assert difference.max() <= (interpolation != "nearest"), case
    assert difference.mean() <= MEAN_DIFFERENCE[interpolation], case


@pytest.mark.parametrize("operation", OPERATIONS)
def test_golden_pixels(golden: pathlib.Path, operation: str) -> None:
    arrays = np.load(golden / "augment" / "augment.npz")
    cases = [case for case in json.loads((golden / "augment" / "augment.json").read_text()) if case["op"] == operation]
    assert len(cases) >= 8
    for case in cases:
        got = OPERATIONS[operation](tf.constant(arrays[case["input"]]), case["value"], case["interpolation"])
        assert_close(got, arrays[case["key"]], case["interpolation"], str(case))


# Shears with nearest neighbours are in no recipe; Pillow's steps of 1/65536 pixel are not copied there.
@pytest.mark.parametrize(
    ("operation", "interpolation"),
    [(name, kind) for name in OPERATIONS for kind in FILTERS if not (name.startswith("shear") and kind == "nearest")],
)
def test_pixels_are_pillows(operation: str, interpolation: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (41, 29, 3), dtype=np.uint8)
    values = (-29.3, -0.7, 0.0, 3.1, 29.9, 171.3) if operation == "rotate" else (-0.4531, -0.013, 0.0, 0.0871, 0.2987)
    for image in (noise, np.full((9, 14, 3), 201, np.uint8), noise[:1, :1], noise[:2, :5]):
        for value in values:
            got = OPERATIONS[operation](tf.constant(image), value, interpolation)
            expected = pillow(image, operation, value, interpolation)
            assert_close(got, expected, interpolation, f"{image.shape} {value}")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_flat_images_stay_flat(interpolation: str) -> None:
    """Truncation must not take a level off where a filter's weights do not quite sum to one."""
    image = tf.fill([64, 64, 3], tf.constant(128, tf.uint8))
    for operation, value in (("rotate", 17.0), ("shear_x", 0.2345), ("shear_y", -0.17), ("translate_x", 0.123)):
        assert set(np.unique(OPERATIONS[operation](image, value, interpolation))) == {128}
