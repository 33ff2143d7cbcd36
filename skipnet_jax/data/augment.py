"""What happens to one training image on the host, from the encoded file to the square that the device gets.

Each image has a key of its own, folded from (seed, epoch, index), and each operation folds its own number into it.
"""

from typing import Any

import tensorflow as tf
from jaxtyping import Float, Int64, UInt8

from skipnet_jax.data import auto_augment, decoding, image_ops, rand_augment
from skipnet_jax.specs import DataSpec

_POLICY, _RAND, _CROP, _PLACE, _JITTER, _LIGHTING = range(6)


def train_image(encoded: Any, key: Int64[Any, "2"], spec: DataSpec, *, whole: bool = False) -> UInt8[Any, "s s 3"]:
    """Decodes and augments an image file.

    AutoAugment and RandAugment see the whole image, before any crop. If both are off, only the crop is decoded. Without
    random crops the image is resized and centre-cropped as in evaluation, and `pad_crop` moves that crop.

    Args:
      encoded: the file, a string scalar.
      key: of the example in this epoch.
      spec: says which operations, and the size s.
      whole: evaluation shows all of the square image, not its centre.
    """
    if spec.crop_min_area and not _has_policy(spec):
        crop_key = _fold(key, _CROP)
        image = image_ops.random_resized_crop(encoded, crop_key, spec.image_size, spec.crop_min_area, spec.background)
    else:
        image = whole_image(decoding.decode(encoded, spec.background), key, spec)
        if not spec.crop_min_area:
            show = image_ops.resize_whole if whole else image_ops.eval_crop
            image = show(image, spec.image_size)
    if spec.pad_crop:
        offsets, mirrored = image_ops.draw_crop_flip(_fold(key, _PLACE), 1, spec.pad_crop, spec.flip)
        image = image_ops.pad_crop_flip(image[None], offsets, mirrored, spec.pad_crop)[0]
    elif spec.flip:
        image = image_ops.random_flip(image, _fold(key, _PLACE))
    return tf.ensure_shape(recolor(image, key, spec), [spec.image_size, spec.image_size, 3])


def changes_whole_images(spec: DataSpec) -> bool:
    """Whether `whole_image` does anything."""
    return _has_policy(spec) or spec.crop_min_area > 0


def whole_image(image: UInt8[Any, "h w 3"], key: Int64[Any, "2"], spec: DataSpec) -> UInt8[Any, "h2 w2 3"]:
    """Applies AutoAugment, RandAugment and then the random resized crop, each if it is on."""
    if spec.auto_augment != "none":
        image = auto_augment.auto_augment(image, _fold(key, _POLICY), spec.auto_augment)
    if spec.rand_augment_ops:
        image = rand_augment.rand_augment(
            image,
            _fold(key, _RAND),
            ops=spec.rand_augment_ops,
            magnitude=spec.rand_augment_magnitude,
            std=spec.rand_augment_std,
            prob=spec.rand_augment_prob,
        )
    if spec.crop_min_area:
        image = image_ops.random_resized_crop_of(image, _fold(key, _CROP), spec.image_size, spec.crop_min_area)
    return image


def recolor(image: UInt8[Any, "s s 3"], key: Int64[Any, "2"], spec: DataSpec) -> UInt8[Any, "s s 3"]:
    """Applies colour jitter, if it is on; after the crop, since it depends on the image's mean."""
    return image_ops.color_jitter(image, _fold(key, _JITTER), spec.color_jitter) if spec.color_jitter else image


def lighting(key: Int64[Any, "2"], spec: DataSpec) -> Float[Any, "3"]:
    """Draws offsets of the three colours on the 0..1 scale, for the device to add."""
    return image_ops.draw_lighting(_fold(key, _LIGHTING), spec.lighting)


def _has_policy(spec: DataSpec) -> bool:
    return spec.auto_augment != "none" or spec.rand_augment_ops > 0


def _fold(key: Int64[Any, "2"], number: int) -> Int64[Any, "2"]:
    # The result takes the number's type, so the number is int64.
    return tf.random.experimental.stateless_fold_in(key, tf.constant(number, tf.int64), alg="philox")
