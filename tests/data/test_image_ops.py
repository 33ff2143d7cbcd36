"""The host's image operations: against NumPy's own padding, and in their distribution."""

import numpy as np
import pytest
import tensorflow as tf

from skipnet_jax.data import image_ops


def _images(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def _draw(seed: int, count: int, pad: int, flip: bool) -> tuple[np.ndarray, np.ndarray]:
    offsets, mirrored = image_ops.draw_crop_flip(tf.constant([seed, 0], tf.int64), count, pad, flip)
    return offsets.numpy(), mirrored.numpy()


@pytest.mark.parametrize("pad", [0, 1, 4, 7])
def test_pad_crop_flip_is_numpys_reflection_and_slice(pad: int) -> None:
    images = _images(count=2 * (2 * pad + 1) ** 2, size=8)
    grid = np.stack(np.meshgrid(range(2 * pad + 1), range(2 * pad + 1), [0, 1]), axis=-1).reshape(-1, 3)
    offsets, mirrored = grid[:, :2].astype(np.int32), grid[:, 2] == 1
    result = image_ops.pad_crop_flip(tf.constant(images), tf.constant(offsets), tf.constant(mirrored), pad).numpy()
    for image, (down, right), mirror, got in zip(images, offsets, mirrored, result, strict=True):
        padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
        expected = padded[down : down + 8, right : right + 8]
        np.testing.assert_array_equal(got, expected[:, ::-1] if mirror else expected)


def test_draws_are_uniform_and_independent() -> None:
    count, pad = 18_000, 4
    offsets, mirrored = _draw(seed=3, count=count, pad=pad, flip=True)
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(count)
    cells = np.bincount(offsets[:, 0] * 9 + offsets[:, 1], minlength=81)
    assert len(cells) == 81
    chi_square = ((cells - count / 81) ** 2 / (count / 81)).sum()
    assert chi_square < 80 + 4 * np.sqrt(2 * 80)  # 80 degrees of freedom, four standard deviations
    for axis in (0, 1):
        assert abs(np.corrcoef(offsets[:, axis], mirrored)[0, 1]) < 4 / np.sqrt(count)


def test_draws_depend_on_the_key_alone() -> None:
    first, second, other = (_draw(seed, count=500, pad=4, flip=True) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert (first[0] != other[0]).mean() > 0.8
    assert 0.4 < (first[1] != other[1]).mean() < 0.6


def test_what_is_off_changes_nothing() -> None:
    offsets, mirrored = _draw(seed=1, count=100, pad=0, flip=False)
    assert not offsets.any() and not mirrored.any()


def test_resize_keeps_means_and_rounds() -> None:
    flat = np.full((3, 8, 8, 3), 100.5, np.float32)
    assert set(np.unique(image_ops.resize(flat, 20))) == {100}  # to the even neighbour, as rint does
    images = _images(count=1203, size=8)  # more than a chunk
    larger, smaller = image_ops.resize(images, 16), image_ops.resize(images, 4)
    assert larger.shape == (1203, 16, 16, 3) and smaller.shape == (1203, 4, 4, 3)
    np.testing.assert_array_equal(image_ops.resize(images, 8), images)
    np.testing.assert_array_equal(larger[-1:], image_ops.resize(images[-1:], 16))
    # Antialiasing: each of the 4x4 pixels averages more than four of the 8x8, so noise shrinks by more than half.
    assert smaller.std() < 0.5 * images.std()
