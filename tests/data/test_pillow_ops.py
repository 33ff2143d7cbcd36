"""Pillow's point operations: to the last bit, against golden pixels and against Pillow itself."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from skipnet_jax.data import pillow_ops

WITH_VALUE: dict[str, Callable[..., Any]] = {
    "posterize": lambda image, value: pillow_ops.posterize(image, int(value)),
    "solarize": pillow_ops.solarize,
    "solarize_add": lambda image, value: pillow_ops.solarize_add(image, int(value)),
    "color": pillow_ops.color,
    "contrast": pillow_ops.contrast,
    "brightness": pillow_ops.brightness,
    "sharpness": pillow_ops.sharpness,
}
WITHOUT: dict[str, Callable[..., Any]] = {
    "autocontrast": pillow_ops.autocontrast,
    "equalize": pillow_ops.equalize,
    "invert": pillow_ops.invert,
}
ENHANCERS = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}


def images() -> dict[str, np.ndarray]:
    """Images that are hard for histograms: noise, few values, a narrow range, one value."""
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    return {
        "noise": noise,
        "narrow": noise // 8 + 100,
        "few": noise // 100 * 90,
        "flat": np.full((5, 7, 3), 77, np.uint8),
        "small": noise[:12, :22],  # fewer pixels than twice the values: equalize's step is 1
        "tiny": noise[:2, :2],
    }


@pytest.mark.parametrize("operation", [*WITH_VALUE, *WITHOUT])
def test_golden_pixels(golden: pathlib.Path, operation: str) -> None:
    arrays = np.load(golden / "augment" / "augment.npz")
    cases = [case for case in json.loads((golden / "augment" / "augment.json").read_text()) if case["op"] == operation]
    assert len(cases) >= 2
    for case in cases:
        image = tf.constant(arrays[case["input"]])
        got = WITHOUT[operation](image) if operation in WITHOUT else WITH_VALUE[operation](image, case["value"])
        np.testing.assert_array_equal(got, arrays[case["key"]], err_msg=str(case))


@pytest.mark.parametrize("operation", ENHANCERS)
def test_enhancements_are_pillows(operation: str) -> None:
    for name, image in images().items():
        for factor in (0.0, 0.1, 0.28, 0.55, 1.0, 1.37, 1.9):
            expected = ENHANCERS[operation](Image.fromarray(image)).enhance(factor)
            got = WITH_VALUE[operation](tf.constant(image), factor)
            np.testing.assert_array_equal(got, expected, err_msg=f"{name} {factor}")


@pytest.mark.parametrize("operation", WITHOUT)
def test_histogram_operations_are_pillows(operation: str) -> None:
    pillow = {"autocontrast": ImageOps.autocontrast, "equalize": ImageOps.equalize, "invert": ImageOps.invert}
    for name, image in images().items():
        np.testing.assert_array_equal(
            WITHOUT[operation](tf.constant(image)), pillow[operation](Image.fromarray(image)), err_msg=name
        )


def test_thresholds_are_pillows() -> None:
    image = images()["noise"]
    assert not pillow_ops.posterize(tf.constant(image), 0).numpy().any()
    for bits in range(1, 9):
        expected = ImageOps.posterize(Image.fromarray(image), bits)
        np.testing.assert_array_equal(pillow_ops.posterize(tf.constant(image), bits), expected)
    for threshold in (0.0, 0.5, 1.0, 127.0, 127.2, 128.0, 254.5, 255.0, 255.5, 256.0):
        expected = ImageOps.solarize(Image.fromarray(image), threshold)
        np.testing.assert_array_equal(pillow_ops.solarize(tf.constant(image), threshold), expected)
    for amount in (0, 1, 110, 128):
        expected = np.where(image < 128, np.minimum(image.astype(int) + amount, 255), image)
        np.testing.assert_array_equal(pillow_ops.solarize_add(tf.constant(image), amount), expected)
