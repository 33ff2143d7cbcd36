"""RandAugment: the distribution of its draws, and that each number is the published operation."""

import numpy as np
import pytest
import tensorflow as tf

from skipnet_jax.data import pillow_geometry, pillow_ops, rand_augment

SETTINGS = {"magnitude": 9.0, "std": 0.5, "prob": 0.5}


def draws(count: int, ops: int = 2, magnitude: float = 9.0, std: float = 0.5, prob: float = 0.5) -> list[np.ndarray]:
    """Draws for many keys at once."""

    @tf.function
    def many() -> tuple[tf.Tensor, ...]:
        keys = tf.stack([tf.range(count, dtype=tf.int64), tf.fill([count], tf.constant(5, tf.int64))], axis=1)
        return tf.map_fn(
            lambda key: rand_augment.draw(key, ops=ops, magnitude=magnitude, std=std, prob=prob),
            keys,
            fn_output_signature=(tf.int32, tf.float32, tf.bool, tf.bool),
        )

    return [array.numpy() for array in many()]


def test_operations_are_uniform_and_applied_with_the_probability() -> None:
    count = 8000
    numbers, _, negative, bicubic = draws(count, prob=0.3)
    applied = numbers < 15
    assert abs(applied.mean() - 0.3) < 4 * np.sqrt(0.21 / (2 * count))
    cells = np.bincount(numbers[applied], minlength=15)
    expected = applied.sum() / 15
    assert ((cells - expected) ** 2 / expected).sum() < 14 + 4 * np.sqrt(28)  # 14 degrees of freedom
    for coins in (negative, bicubic):
        assert abs(coins.mean() - 0.5) < 4 * 0.5 / np.sqrt(2 * count)
    # Independent draws with replacement: one operation comes twice as often as by chance, and coins are uncorrelated.
    both = applied.all(axis=1)
    same = (numbers[both, 0] == numbers[both, 1]).mean()
    assert abs(same - 1 / 15) < 4 * np.sqrt(1 / 15 / both.sum())
    for one, other in ((negative, bicubic), (negative, applied), (bicubic, applied)):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4 / np.sqrt(2 * count)


def test_strengths_are_normal_and_clipped() -> None:
    strengths = draws(4000, magnitude=6.0, std=0.5)[1].ravel()
    assert abs(strengths.mean() - 0.6) < 4 * 0.05 / np.sqrt(8000)
    assert abs(strengths.std() - 0.05) < 4 * 0.05 / np.sqrt(16000)
    clipped = draws(4000, magnitude=9.0, std=5.0)[1].ravel()
    assert clipped.min() == 0 and clipped.max() == 1
    assert abs((clipped == 1).mean() - 0.4207) < 4 * 0.5 / np.sqrt(8000)  # P(z > 0.2)
    np.testing.assert_allclose(draws(50, std=0.0)[1], 0.9, rtol=1e-6)


@pytest.mark.parametrize(("negative", "bicubic"), [(False, False), (True, True)])
def test_each_number_is_the_published_operation(negative: bool, bicubic: bool) -> None:
    image = tf.constant(np.random.default_rng(1).integers(0, 256, (16, 22, 3), dtype=np.uint8))
    u = 0.86
    sign, name = (-u, "bicubic") if negative else (u, "bilinear")
    points, geometry = pillow_ops, pillow_geometry
    expected = [
        points.autocontrast(image),
        points.equalize(image),
        points.invert(image),
        geometry.rotate(image, tf.constant(np.float32(30 * sign)), name),
        points.posterize(image, 3),  # 3.44 truncated
        points.solarize(image, 220.0),  # 220.16 truncated
        points.solarize_add(image, 94),  # 94.6 truncated
        points.color(image, 0.1 + 1.8 * u),
        points.contrast(image, 0.1 + 1.8 * u),
        points.brightness(image, 0.1 + 1.8 * u),
        points.sharpness(image, 0.1 + 1.8 * u),
        geometry.shear_x(image, 0.3 * sign, name),
        geometry.shear_y(image, 0.3 * sign, name),
        geometry.translate_x(image, 0.45 * sign, name),
        geometry.translate_y(image, 0.45 * sign, name),
        image,
    ]
    branches = rand_augment._branches(image, tf.constant(u), tf.constant(negative), tf.constant(bicubic))
    assert len(branches) == len(expected)
    for number, (branch, pixels) in enumerate(zip(branches, expected, strict=True)):
        difference = np.abs(branch().numpy().astype(int) - pixels.numpy())
        # The strength is float32 here and double there.
        assert difference.max() <= 1 and difference.mean() < 0.01, number


def test_an_image_is_a_function_of_its_key_and_keeps_its_size() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    keys = tf.data.Dataset.range(40).map(lambda i: tf.stack([i, i * 7 + 1]))

    def augmented(key: tf.Tensor) -> tf.Tensor:
        size = 20 + tf.cast(key[0], tf.int32) * 0  # unknown while the graph is traced
        return rand_augment.rand_augment(tf.reshape(pixels, [size, -1, 3]), key, ops=2, **SETTINGS)

    images = keys.map(augmented)
    first, second = ([image.numpy() for image in images] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert np.shape(first) == (40, *pixels.shape)
    unchanged = np.mean([(image == pixels).all() for image in first])
    assert 0.05 < unchanged < 0.55  # a quarter has no operation


def test_nothing_is_applied_at_probability_zero() -> None:
    numbers = draws(100, prob=0.0)[0]
    assert set(numbers.ravel()) == {15}
