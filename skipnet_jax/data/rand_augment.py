"""RandAugment: a few random operations, all of about the same strength.

The operations are Pillow's (`pillow_ops`, `pillow_geometry`), with the ranges of the ConvNeXt and Swin recipes. The
strength (0..10) varies a little from operation to operation, and each operation is skipped with some probability.

Considered instead: the RandAugment of KerasCV and Keras (other operations and ranges, one filter, a fixed strength), of
the TensorFlow model garden (some strengths in an older sense, no skipping, nearest neighbours), of torchvision and timm
(Pillow images under Python's GIL), and of imgaug (the GIL again).

Source: Cubuk et al., RandAugment (NeurIPS 2020), with strengths that vary as in the ConvNeXt recipe; Takeda (MIRU2020).
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from jaxtyping import Bool, Float32, Int32, Int64, UInt8

from skipnet_jax.data import pillow_geometry, pillow_ops

# Operations are numbered in the order of `_branches`; the number after the last leaves the image unchanged.
NUM_OPERATIONS = 15


def rand_augment(
    image: UInt8[Any, "h w 3"], key: Int64[Any, "2"], *, ops: int, magnitude: float, std: float, prob: float
) -> UInt8[Any, "h w 3"]:
    """Draws operations with replacement and applies them one after the other.

    Args:
      image: of any size from 2x2 on.
      key: for this operation alone.
      ops: number of operations to draw.
      magnitude: mean strength, 0..10.
      std: standard deviation of the strength, which is clipped to 0..10.
      prob: probability that a drawn operation is applied.
    """
    numbers, strengths, negative, bicubic = draw(key, ops=ops, magnitude=magnitude, std=std, prob=prob)

    def apply(step: Int32[Any, ""], changed: UInt8[Any, "h2 w2 3"]) -> tuple[Int32[Any, ""], UInt8[Any, "h2 w2 3"]]:
        branches = _branches(changed, strengths[step], negative[step], bicubic[step])
        return step + 1, tf.switch_case(numbers[step], branches)

    # A loop in the graph, since tracing all these branches takes seconds.
    _, changed = tf.while_loop(
        lambda step, _: step < ops,
        apply,
        (tf.constant(0), image),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, None, 3])),
    )
    return tf.ensure_shape(changed, image.shape)  # the loop forgets the shape


def draw(
    key: Int64[Any, "2"], *, ops: int, magnitude: float, std: float, prob: float
) -> tuple[Int32[Any, "{ops}"], Float32[Any, "{ops}"], Bool[Any, "{ops}"], Bool[Any, "{ops}"]]:
    """Draws the operations and their arguments, given the settings of `rand_augment`.

    Returns:
      For each operation its number (15 = none), its strength as a share of the highest (0..1), whether its sign is
      negative, and whether its filter is bicubic rather than bilinear.
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
    """All operations at one strength with their arguments bound, and at the end the one that does nothing."""
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
