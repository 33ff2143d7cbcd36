"""AutoAugment: the published tables, and the distribution of its draws."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from skipnet_jax.data import auto_augment, pillow_geometry, pillow_ops

GOLDEN_NAMES = {"shearX": "shear_x", "shearY": "shear_y", "translateX": "translate_x", "translateY": "translate_y"}
NONE = 14  # the number of no operation


def draws(policy: str, count: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Draws for many keys at once."""

    @tf.function
    def many() -> tuple[tf.Tensor, tf.Tensor]:
        keys = tf.stack([tf.range(count, dtype=tf.int64), tf.fill([count], tf.constant(seed, tf.int64))], axis=1)
        return tf.map_fn(lambda key: auto_augment.draw(key, policy), keys, fn_output_signature=(tf.int32, tf.float32))

    numbers, values = many()
    return numbers.numpy(), values.numpy()


@pytest.mark.parametrize("policy", ["cifar10", "imagenet", "svhn"])
def test_policies_are_the_published_ones(golden: pathlib.Path, policy: str) -> None:
    published = json.loads((golden / "augment" / "autoaugment_policies.json").read_text())[policy]
    expected = [[[GOLDEN_NAMES.get(name, name), share, level] for name, share, level in pair] for pair in published]
    assert auto_augment._POLICIES[policy] == expected


@pytest.mark.parametrize("policy", ["svhn"])
def test_operations_are_drawn_as_often_as_the_policy_says(golden: pathlib.Path, policy: str) -> None:
    published = json.loads((golden / "augment" / "autoaugment_policies.json").read_text())[policy]
    names = list(auto_augment._RANGES)
    count = 6000
    numbers, _ = draws(policy, count)
    for step in range(2):
        expected = np.zeros(NONE + 1)
        for pair in published:
            name, share, _ = pair[step]
            expected[names.index(GOLDEN_NAMES.get(name, name))] += share / 25
        expected[NONE] = 1 - expected.sum()
        frequency = np.bincount(numbers[:, step], minlength=NONE + 1) / count
        assert (np.abs(frequency - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / count)).all()


def test_values_are_the_levels_with_the_signs() -> None:
    names = list(auto_augment._RANGES)
    numbers, values = draws("svhn", 6000)
    rotations = np.unique(values[numbers == names.index("rotate")])
    np.testing.assert_allclose(rotations, [10, 40 / 3], rtol=1e-6)  # levels 3 and 4 of 30 degrees, never negative
    shears = values[:, 0][numbers[:, 0] == names.index("shear_x")]
    np.testing.assert_allclose(np.unique(np.abs(shears)), np.array([2, 4, 6, 9]) / 30, rtol=1e-6)
    assert abs((shears < 0).mean() - 0.5) < 4 * 0.5 / np.sqrt(len(shears))
    moves = values[:, 1][numbers[:, 1] == names.index("translate_y")]
    np.testing.assert_allclose(np.unique(np.abs(moves)), np.array([3, 6, 7]) / 9 * 150 / 331, rtol=1e-6)

    numbers, values = draws("imagenet", 6000)
    contrasts = values[numbers == names.index("contrast")]
    np.testing.assert_allclose(np.unique(contrasts), [0.2, 1.8], rtol=1e-6)  # level 8: 1 +- 0.8
    bits = np.unique(np.round(values[numbers == names.index("posterize")]))
    np.testing.assert_array_equal(bits, [4, 5, 6])  # levels 8, 7 and 6, 5: 8 - 4 k / 9
    thresholds = np.unique(values[numbers == names.index("solarize")])
    np.testing.assert_allclose(thresholds, 256 - 256 / 9 * np.array([8, 7, 5, 4, 3]), rtol=1e-6)


def test_the_two_draws_and_their_signs_are_independent() -> None:
    numbers, values = draws("svhn", 6000)
    applied = numbers != NONE
    for pair in ((applied[:, 0], applied[:, 1]), (values[:, 0] < 0, values[:, 1] < 0)):
        table = np.histogram2d(*pair, bins=2)[0] / len(numbers)
        product = table.sum(1, keepdims=True) * table.sum(0, keepdims=True)
        # Sub-policies differ in their probabilities, which couples the two a little.
        assert np.abs(table - product).max() < 0.03


def test_each_number_is_the_operation_of_its_name() -> None:
    image = tf.constant(np.random.default_rng(1).integers(0, 256, (12, 18, 3), dtype=np.uint8))
    value = tf.constant(0.3)
    for name in ("color", "contrast", "brightness", "sharpness", "solarize"):
        expected = {
            "color": pillow_ops.color,
            "contrast": pillow_ops.contrast,
            "brightness": pillow_ops.brightness,
            "sharpness": pillow_ops.sharpness,
            "solarize": pillow_ops.solarize,
        }[name](image, 0.3)
        np.testing.assert_array_equal(auto_augment._branch(name, image, value)(), expected)
    shear = auto_augment._branch("shear_x", image, value)()
    np.testing.assert_array_equal(shear, pillow_geometry.shear_x(image, 0.3, "bicubic"))
    moved = auto_augment._branch("translate_y", image, value)()
    np.testing.assert_array_equal(moved, pillow_geometry.translate_y(image, 0.3, "nearest"))
    bits = auto_augment._branch("posterize", image, tf.constant(5.6))()
    np.testing.assert_array_equal(bits, pillow_ops.posterize(image, 6))


@pytest.mark.slow  # traces every operation twice; test_rand_augment does it for its own
def test_an_image_is_a_function_of_its_key_and_keeps_its_size() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    keys = tf.data.Dataset.range(60).map(lambda i: tf.stack([i, i * 7 + 1]))

    def augmented(key: tf.Tensor) -> tf.Tensor:
        size = 20 + tf.cast(key[0], tf.int32) * 0  # unknown while the graph is traced
        return auto_augment.auto_augment(tf.reshape(pixels, [size, -1, 3]), key, "cifar10")

    images = keys.map(augmented)
    first, second = ([image.numpy() for image in images] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert np.shape(first) == (60, *pixels.shape)
    unchanged = np.mean([(image == pixels).all() for image in first])
    assert 0 < unchanged < 0.5


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^data\.auto_augment: got 'mnist'"):
        auto_augment.draw(tf.constant([0, 0], tf.int64), "mnist")
