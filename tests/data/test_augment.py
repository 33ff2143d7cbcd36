"""Which operations change a training image, and in which order."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from skipnet_jax.data import augment, auto_augment, decoding, image_ops, keys, rand_augment
from skipnet_jax.specs import DataSpec
from tests.data import made_images

PLAIN = DataSpec(name="folder", image_size=8, pad_crop=0, flip=False)
FILE = made_images.encode(1, side=24)


def key(index: int = 0) -> tf.Tensor:
    return keys.example_key(0, tf.constant(0, tf.int64), tf.constant(index, tf.int64))


def make(spec: DataSpec, index: int = 0, file: bytes = FILE) -> np.ndarray:
    return augment.train_image(tf.constant(file), key(index), spec).numpy()


def test_without_augmentation_images_are_as_in_evaluation() -> None:
    np.testing.assert_array_equal(make(PLAIN), image_ops.eval_crop(decoding.decode(tf.constant(FILE)), 8).numpy())


def test_flip_and_pad_crop_move_the_centre_crop() -> None:
    centre = make(PLAIN)
    flipped = [make(dataclasses.replace(PLAIN, flip=True), index) for index in range(16)]
    mirrored = [np.array_equal(image, centre[:, ::-1]) for image in flipped]
    assert 1 < sum(mirrored) < 15
    assert all(np.array_equal(image, centre) for image, other in zip(flipped, mirrored, strict=True) if not other)
    padded = np.pad(centre, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    windows = {padded[y : y + 8, x : x + 8].tobytes() for y in range(5) for x in range(5)}
    moved = {make(dataclasses.replace(PLAIN, pad_crop=2), index).tobytes() for index in range(20)}
    assert moved <= windows and len(moved) > 8


def test_only_the_crop_is_decoded_if_no_policy_needs_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "decode", lambda *given: pytest.fail("decoded the whole image"))
    spec = dataclasses.replace(PLAIN, crop_min_area=0.3)
    assert len({make(spec, index).tobytes() for index in range(6)}) == 6
    np.testing.assert_array_equal(make(spec, 3), make(spec, 3))


@pytest.mark.parametrize("crop_min_area", [0.0, 0.3])
def test_policies_see_the_whole_image(crop_min_area: float, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def auto(image, key, policy):
        seen.append(("auto", tuple(image.shape), policy))
        return image

    def rand(image, key, *, ops, magnitude, std, prob):
        seen.append(("rand", tuple(image.shape), (ops, magnitude, std, prob)))
        return tf.zeros_like(image)

    monkeypatch.setattr(auto_augment, "auto_augment", auto)
    monkeypatch.setattr(rand_augment, "rand_augment", rand)
    spec = dataclasses.replace(
        PLAIN,
        crop_min_area=crop_min_area,
        auto_augment="imagenet",
        rand_augment_ops=2,
        rand_augment_magnitude=7.0,
        rand_augment_std=0.25,
        rand_augment_prob=0.75,
    )
    assert not make(spec).any()
    assert seen == [("auto", (24, 24, 3), "imagenet"), ("rand", (24, 24, 3), (2, 7.0, 0.25, 0.75))]


def test_jitter_comes_after_the_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(image_ops, "color_jitter", lambda image, key, strength: (seen.append(image.shape), image)[1])
    make(dataclasses.replace(PLAIN, crop_min_area=0.3, color_jitter=0.4))
    assert seen == [(8, 8, 3)]


def test_draws_of_an_example_are_independent_and_repeatable() -> None:
    spec = dataclasses.replace(PLAIN, lighting=0.1)
    offsets = np.array([augment.lighting(key(index), spec) for index in range(50)])
    np.testing.assert_array_equal(offsets[7], augment.lighting(key(7), spec))
    assert offsets.dtype == np.float32 and len(np.unique(offsets[:, 0])) == 50
    later = keys.example_key(0, tf.constant(256, tf.int64), tf.constant(0, tf.int64))
    assert not np.array_equal(augment.lighting(later, spec), offsets[0])
