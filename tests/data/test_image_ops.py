"""The host's image operations against NumPy, Pillow and golden pixels, and the distribution of their draws."""

import io
import itertools
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance
from scipy import stats

from skipnet_jax.data import decoding, image_ops


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


def test_operations_that_are_off_change_nothing() -> None:
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


def _photo(height: int = 187, width: int = 250) -> Image.Image:
    """Smooth colours with some noise, so that JPEG has something to do."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    return Image.fromarray(np.clip(np.asarray(coarse) + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8))


def _encode(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def _key(number: int) -> tf.Tensor:
    return tf.constant([number, 17], tf.int64)


FILES = {
    "rgb": lambda: _encode(_photo(), "JPEG", quality=90),
    "progressive": lambda: _encode(_photo(), "JPEG", progressive=True),
    "grey": lambda: _encode(_photo().convert("L"), "JPEG"),
    "cmyk": lambda: _encode(_photo().convert("CMYK"), "JPEG"),
    "png": lambda: _encode(_photo(), "PNG"),
    "png_palette": lambda: _encode(_photo().convert("P"), "PNG"),
    "png_grey_alpha": lambda: _encode(_photo().convert("LA"), "PNG"),
    "png_alpha": lambda: _encode(_photo().convert("RGBA"), "PNG"),
    "webp": lambda: _encode(_photo(), "WEBP"),
    "gif": lambda: _encode(_photo().convert("P"), "GIF"),
}


@pytest.mark.parametrize("kind", FILES)
def test_decoding_is_pillows(kind: str) -> None:
    encoded = FILES[kind]()
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    np.testing.assert_array_equal(decoding.decode(tf.constant(encoded)), expected)


def test_sixteen_bits_become_eight() -> None:
    values = np.arange(60 * 50, dtype=np.uint16).reshape(60, 50) * 21
    got = decoding.decode(tf.constant(_encode(Image.fromarray(values), "PNG"))).numpy()
    np.testing.assert_array_equal(got, np.repeat((values >> 8)[..., None], 3, axis=2))


BROKEN = {
    "empty": lambda: b"",
    "text": lambda: b"no image at all",
    "truncated": lambda: FILES["rgb"]()[:3000],
    "truncated_progressive": lambda: FILES["progressive"]()[:3000],
    "header_only": lambda: FILES["rgb"]()[:300],
    "truncated_png": lambda: FILES["png"]()[:5000],
    "truncated_webp": lambda: _encode(_photo(), "WEBP")[:3000],
    "other_format": lambda: _encode(_photo(), "PPM"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_files_that_are_no_images_are_refused(kind: str) -> None:
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError)):
        decoding.decode(tf.constant(BROKEN[kind]()))


def test_a_truncated_file_is_refused_wherever_the_crop_lies() -> None:
    encoded = FILES["rgb"]()
    for number in range(60, 65):
        with pytest.raises(ValueError, match="truncated"):
            image_ops.random_resized_crop(tf.constant(encoded[: len(encoded) // 2]), _key(number), 32, 0.08)
    whole, without_end = (
        image_ops.random_resized_crop(tf.constant(file), _key(60), 32, 1.0) for file in (encoded, encoded[:-2])
    )
    assert np.abs(whole.numpy().astype(int) - without_end.numpy()).max() <= 8


@pytest.mark.parametrize("kind", ["rgb", "progressive", "grey", "cmyk", "png", "gif"])
def test_cropping_a_file_gives_nearly_the_crop_of_its_pixels(kind: str) -> None:
    encoded = tf.constant(FILES[kind]())
    image = decoding.decode(encoded)
    for number in range(4):
        got = image_ops.random_resized_crop(encoded, _key(number), 48, 0.08).numpy()
        expected = image_ops.random_resized_crop_of(image, _key(number), 48, 0.08).numpy()
        assert got.shape == (48, 48, 3)
        difference = np.abs(got.astype(int) - expected)
        # Chroma is interpolated over the rectangle's border where the whole image is decoded.
        assert difference.max() <= 8 and difference.mean() < 0.05


def test_evaluation_crops_are_the_golden_ones(golden: pathlib.Path) -> None:
    arrays = np.load(golden / "augment" / "augment.npz")
    cases = json.loads((golden / "augment" / "augment.json").read_text())
    cases = [case for case in cases if case["op"] == "eval_preprocess"]
    assert len(cases) == 8
    for case in cases:
        got = image_ops.eval_crop(tf.constant(arrays[case["input"]]), case["crop"]).numpy()
        assert got.shape == (case["crop"], case["crop"], 3)
        difference = np.abs(got[::8, ::8].astype(int) - arrays[case["key"]])
        assert difference.max() <= 1 and difference.mean() < 0.2, case["key"]  # Pillow rounds after each direction
        np.testing.assert_allclose(got.mean((0, 1)), case["mean"], atol=0.02)
        np.testing.assert_allclose(got.std((0, 1)), case["std"], atol=0.02)


@pytest.mark.parametrize("size", [384, 390])
def test_large_evaluation_crops_show_the_whole_shorter_side(size: int) -> None:
    photo = _photo(height=250, width=333)
    longer = int(size * 333 / 250)
    left = round((longer - size) / 2)
    expected = np.asarray(photo.resize((longer, size), Image.BILINEAR))[:, left : left + size]
    got = image_ops.eval_crop(tf.constant(np.asarray(photo)), size).numpy()
    assert np.abs(got.astype(int) - expected).max() <= 1


def test_jitter_factors_and_order_are_uniform() -> None:
    count = 4000

    @tf.function
    def many(strength: float) -> tuple[tf.Tensor, tf.Tensor]:
        keys = tf.stack([tf.range(count, dtype=tf.int64), tf.fill([count], tf.constant(9, tf.int64))], axis=1)
        draw = lambda key: image_ops.draw_jitter(key, strength)  # noqa: E731
        return tf.map_fn(draw, keys, fn_output_signature=(tf.float32, tf.int32))

    factors, orders = (array.numpy() for array in many(0.4))
    assert factors.min() > 0.6 and factors.max() < 1.4
    for column in factors.T:
        assert stats.kstest(column, stats.uniform(0.6, 0.8).cdf).pvalue > 1e-4
    correlation = np.corrcoef(np.column_stack([factors, orders]).T)
    assert np.abs(correlation - np.eye(4)).max() < 4 / np.sqrt(count)
    assert stats.chisquare(np.bincount(orders, minlength=6)).pvalue > 1e-4
    assert many(1.5)[0].numpy().min() >= 0


def test_jitter_is_pillows_in_the_drawn_order() -> None:
    photo = _photo()
    steps = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    seen = set()
    for number in range(25):
        factors, order = image_ops.draw_jitter(_key(number), 0.4)
        seen.add(int(order))
        expected = photo
        for step in list(itertools.permutations(range(3)))[int(order)]:
            expected = steps[step](expected).enhance(float(factors[step]))
        got = image_ops.color_jitter(tf.constant(np.asarray(photo)), _key(number), 0.4).numpy()
        difference = np.abs(got.astype(int) - np.asarray(expected))
        assert difference.max() <= 4 and difference.mean() < 1.5, number  # Pillow truncates three times
    assert seen == set(range(6))


def test_lighting_has_the_covariance_of_imagenets_colours() -> None:
    count = 6000

    @tf.function
    def many() -> tf.Tensor:
        keys = tf.stack([tf.range(count, dtype=tf.int64), tf.fill([count], tf.constant(4, tf.int64))], axis=1)
        return tf.map_fn(lambda key: image_ops.draw_lighting(key, 0.1), keys, fn_output_signature=tf.float32)

    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    expected = vectors @ np.diag((0.1 * np.array([0.2175, 0.0188, 0.0045])) ** 2) @ vectors.T
    got = many().numpy()
    np.testing.assert_allclose(np.cov(got.T), expected, rtol=0.1)
    # The small components would not show there, so compare the deviation along each: 0.1 of the data's.
    np.testing.assert_allclose((got @ vectors).std(0), [0.02175, 0.00188, 0.00045], rtol=0.1)
    assert np.abs(got.mean(0)).max() < 4 * 0.0127 / np.sqrt(count)


def test_half_of_the_images_are_mirrored() -> None:
    image = tf.constant(np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3))
    keys = tf.data.Dataset.range(2000).map(lambda i: tf.stack([i, tf.constant(5, tf.int64)]))
    results = np.stack(list(keys.map(lambda key: image_ops.random_flip(image, key)).as_numpy_iterator()))
    mirrored = (results == image.numpy()[:, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored | (results == image.numpy()).all(axis=(1, 2, 3))).all()
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)
