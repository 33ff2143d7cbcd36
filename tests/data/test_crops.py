"""The distribution of random rectangles, and resizing against TensorFlow and Pillow."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from scipy import stats

from skipnet_jax.data import crops


def boxes(height: int, width: int, min_area: float, count: int) -> np.ndarray:
    """Draws for many keys at once."""

    @tf.function
    def many() -> tf.Tensor:
        keys = tf.stack([tf.range(count, dtype=tf.int64), tf.fill([count], tf.constant(2, tf.int64))], axis=1)
        draw = lambda key: crops.draw_crop(key, height, width, min_area)  # noqa: E731
        return tf.map_fn(draw, keys, fn_output_signature=tf.int32)

    return many().numpy()


def test_rectangles_have_the_published_areas_aspects_and_places() -> None:
    # In a square image, rectangles of up to 3/4 of the area always fit: there, the first draw shows its distribution.
    top, left, height, width = boxes(3000, 3000, 0.08, 5000).T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 3000).all() and (left + width <= 3000).all()
    area, aspect = height * width / 3000**2, width / height
    assert area.min() > 0.079 and area.max() <= 1
    fitting = area < 0.75
    assert stats.kstest(area[fitting], stats.uniform(0.08, 0.67).cdf).pvalue > 1e-4
    log_aspect = np.log(aspect[fitting])
    assert stats.kstest(log_aspect, stats.uniform(np.log(3 / 4), np.log(16 / 9)).cdf).pvalue > 1e-4
    small = area < 0.2
    for place, side in ((top[small], height[small]), (left[small], width[small])):
        assert stats.kstest(place / (3000 - side), "uniform").pvalue > 1e-4
    independent = np.corrcoef([area[fitting], log_aspect, (top / (3001 - height))[fitting]])
    assert np.abs(independent - np.eye(3)).max() < 4 / np.sqrt(fitting.sum())


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (100, 1000, [0, 433, 100, 133]),  # wider than 4/3: all of the height
        (1001, 90, [440, 0, 120, 90]),  # narrower than 3/4: all of the width
        (60, 60, [0, 0, 60, 60]),
    ],
)
def test_the_middle_is_taken_if_nothing_fits(height: int, width: int, expected: list[int]) -> None:
    found = boxes(height, width, 1.0, 40)
    fits = found[:, 2] * found[:, 3] > 0.999 * height * width  # a square itself may be drawn
    assert (found[~fits] == expected).all() if height == width else (found == expected).all()


def test_tiny_images_give_rectangles_inside() -> None:
    for height, width in ((1, 1), (1, 9), (2, 3)):
        top, left, rows, columns = boxes(height, width, 0.08, 30).T
        assert (rows >= 1).all() and (columns >= 1).all() and (top >= 0).all() and (left >= 0).all()
        assert (top + rows <= height).all() and (left + columns <= width).all()


def test_cut_is_a_slice() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(crops.cut(tf.constant(image), tf.constant([3, 7, 11, 13])), image[3:14, 7:20])


@pytest.mark.parametrize("size", [30, 224])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (16, 300), (131, 97), (300, 29), (401, 500)])
def test_resizing_is_tensorflows_and_nearly_pillows(shape: tuple[int, int], size: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    got = crops.resize_to_square(tf.constant(image), size).numpy().astype(int)
    exact = tf.image.resize(image, (size, size), method="bilinear", antialias=True).numpy()
    assert np.abs(got - exact).max() < 0.5 + 2e-3
    pillow = np.asarray(Image.fromarray(image).resize((size, size), Image.BILINEAR))
    assert np.abs(got - pillow).max() <= 1


def test_part_of_a_resized_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    whole = tf.image.resize(image, (126, 56), method="bilinear", antialias=True).numpy()[61:101, 9:49]
    part = crops.scale(tf.constant(image), 40, tf.constant([1.4, 0.8]), tf.constant([61.0, 9.0])).numpy()
    assert np.abs(part - whole).max() < 0.5 + 2e-3
