"""RandAugment: a few operations drawn at random, all of about the same strength.

The operations are Pillow's (`pillow_ops`, `pillow_geometry`), with the ranges of the ConvNeXt and Swin recipes:
strength 0..10, each image's a little different, each operation skipped with a probability.

Considered instead: KerasCV's and Keras' RandAugment (other operations and ranges, one filter, no deviation of the
strength); the TensorFlow model garden's (an older meaning of several strengths, no skipping, nearest neighbours);
torchvision's and timm's (Pillow images under Python's lock); imgaug's (the same lock).

Source: Cubuk et al., RandAugment (NeurIPS 2020), with strengths that vary as in the ConvNeXt recipe; Takeda (MIRU2020).
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from jaxtyping import Bool, Float32, Int32, Int64, UInt8

from skipnet_jax.data import pillow_geometry, pillow_ops

# Operations by number, in the order of `_branches`; the one after the last leaves the image as it is.
NUM_OPERATIONS = 15


def rand_augment(
    image: UInt8[Any, "h w 3"], key: Int64[Any, "2"], *, ops: int, magnitude: float, std: float, prob: float
) -> UInt8[Any, "h w 3"]:
    """Draws operations with replacement and applies them one after the other.

    Args:
      image: of any size from 2x2 on.
      key: for this alone, of TensorFlow's stateless generators.
      ops: number of operations to draw.
      magnitude: mean strength, 0..10.
      std: standard deviation of the strength; it is clipped to 0..10.
      prob: probability that a drawn operation is applied.

    Returns:
      Image of the same size.
    """
    numbers, strengths, negative, bicubic = draw(key, ops=ops, magnitude=magnitude, std=std, prob=prob)

    def apply(step: Int32[Any, ""], changed: UInt8[Any, "h2 w2 3"]) -> tuple[Int32[Any, ""], UInt8[Any, "h2 w2 3"]]:
        branches = _branches(changed, strengths[step], negative[step], bicubic[step])
        return step + 1, tf.switch_case(numbers[step], branches)

    # A loop of the graph's own, since to trace all these branches takes seconds.
    _, changed = tf.while_loop(
        lambda step, _: step < ops,
        apply,
        (tf.constant(0), image),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, None, 3])),
    )
    return tf.ensure_shape(changed, image.shape)  # the loop forgets it


def draw(
    key: Int64[Any, "2"], *, ops: int, magnitude: float, std: float, prob: float
) -> tuple[Int32[Any, "{ops}"], Float32[Any, "{ops}"], Bool[Any, "{ops}"], Bool[Any, "{ops}"]]:
    """Draws the operations and all that they may need.

    Args:
      key: for this alone, of TensorFlow's stateless generators.
      ops, magnitude, std, prob: as `rand_augment`.

    Returns:
      Of each operation: its number (15 = none), strength as a share of the highest (0..1), whether its sign is
      negative, whether its filter is bicubic rather than bilinear.
    """
    fold_in = tf.random.experimental.stateless_fold_in
    uniform = tf.random.stateless_uniform([4, ops], fold_in(key, 0, alg="philox"), alg="philox")
    normal = tf.random.stateless_normal([ops], fold_in(key, 1, alg="philox"), alg="philox")
    numbers = tf.where(uniform[0] < prob, tf.cast(uniform[1] * NUM_OPERATIONS, tf.int32), NUM_OPERATIONS)
    strengths = tf.clip_by_value(magnitude + std * normal, 0.0, 10.0) / 10
    return numbers, strengths, uniform[2] < 0.5, uniform[3] < 0.5


def _branches(
    image: UInt8[Any, "h w 3"], strength: Float32[Any, ""], negative: Bool[Any, ""], bicubic: Bool[Any, ""]
) -> list[Callable[[], UInt8[Any, "h w 3"]]]:
    """All operations at one strength, ready to be called, and last the one that does nothing."""
    points, geometry = pillow_ops, pillow_geometry
    signed = tf.where(negative, -strength, strength)
    factor = 0.1 + 1.8 * strength

    def whole(highest: float) -> Int32[Any, ""]:
        return tf.cast(highest * strength, tf.int32)  # truncated

    def filtered(operation: Callable[..., UInt8[Any, "h w 3"]], value: Float32[Any, ""]) -> UInt8[Any, "h w 3"]:
        return tf.cond(bicubic, lambda: operation(image, value, "bicubic"), lambda: operation(image, value, "bilinear"))

    return [
        lambda: points.autocontrast(image),
        lambda: points.equalize(image),
        lambda: points.invert(image),
        lambda: filtered(geometry.rotate, 30 * signed),
        lambda: points.posterize(image, whole(4.0)),
        lambda: points.solarize(image, tf.cast(whole(256.0), tf.float32)),
        lambda: points.solarize_add(image, whole(110.0)),
        lambda: points.color(image, factor),
        lambda: points.contrast(image, factor),
        lambda: points.brightness(image, factor),
        lambda: points.sharpness(image, factor),
        lambda: filtered(geometry.shear_x, 0.3 * signed),
        lambda: filtered(geometry.shear_y, 0.3 * signed),
        lambda: filtered(geometry.translate_x, 0.45 * signed),
        lambda: filtered(geometry.translate_y, 0.45 * signed),
        lambda: image,
    ]
