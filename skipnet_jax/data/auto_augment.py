"""AutoAugment: each image gets one of 25 learnt pairs of operations.

The operations are Pillow's (`pillow_ops`, `pillow_geometry`), the policies those that were found on CIFAR-10, ImageNet
and SVHN.

Considered instead: KerasCV and Keras have no AutoAugment; the TensorFlow model garden's differs in its operations and
their ranges; torchvision and timm have these policies, for Pillow images under Python's lock; imgaug has none.

Source: Cubuk et al., AutoAugment (CVPR 2019), appendix; shear with the bicubic filter, translate and rotate
with nearest neighbours, rotation in one sense only, as in Takeda (MIRU2020).
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from jaxtyping import Float32, Int32, Int64, UInt8

from skipnet_jax.data import pillow_geometry, pillow_ops
from skipnet_jax.errors import UserError

_LEVELS = 9  # the highest

# Sub-policies of each policy: two times (operation, probability, level 0..9).
_POLICIES: dict[str, tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...]] = {
    "cifar10": (
        (("invert", 0.1, 7), ("contrast", 0.2, 6)),
        (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
        (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
        (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
        (("autocontrast", 0.5, 8), ("equalize", 0.9, 2)),
        (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
        (("color", 0.4, 3), ("brightness", 0.6, 7)),
        (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
        (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
        (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
        (("color", 0.7, 7), ("translate_x", 0.5, 8)),
        (("equalize", 0.3, 7), ("autocontrast", 0.4, 8)),
        (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
        (("brightness", 0.9, 6), ("color", 0.2, 8)),
        (("solarize", 0.5, 2), ("invert", 0.0, 3)),
        (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
        (("equalize", 0.2, 8), ("equalize", 0.6, 4)),
        (("color", 0.9, 9), ("equalize", 0.6, 6)),
        (("autocontrast", 0.8, 4), ("solarize", 0.2, 8)),
        (("brightness", 0.1, 3), ("color", 0.7, 0)),
        (("solarize", 0.4, 5), ("autocontrast", 0.9, 3)),
        (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
        (("autocontrast", 0.9, 2), ("solarize", 0.8, 3)),
        (("equalize", 0.8, 8), ("invert", 0.1, 3)),
        (("translate_y", 0.7, 9), ("autocontrast", 0.9, 1)),
    ),
    "imagenet": (
        (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
        (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
        (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
        (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
        (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
        (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
        (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
        (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
        (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
        (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
        (("rotate", 0.8, 8), ("color", 0.4, 0)),
        (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
        (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
        (("invert", 0.6, 4), ("equalize", 1.0, 8)),
        (("color", 0.6, 4), ("contrast", 1.0, 8)),
        (("rotate", 0.8, 8), ("color", 1.0, 2)),
        (("color", 0.8, 8), ("solarize", 0.8, 7)),
        (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
        (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
        (("color", 0.4, 0), ("equalize", 0.6, 3)),
        (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
        (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
        (("invert", 0.6, 4), ("equalize", 1.0, 8)),
        (("color", 0.6, 4), ("contrast", 1.0, 8)),
        (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    ),
    "svhn": (
        (("shear_x", 0.9, 4), ("invert", 0.2, 3)),
        (("shear_y", 0.9, 8), ("invert", 0.7, 5)),
        (("equalize", 0.6, 5), ("solarize", 0.6, 6)),
        (("invert", 0.9, 3), ("equalize", 0.6, 3)),
        (("equalize", 0.6, 1), ("rotate", 0.9, 3)),
        (("shear_x", 0.9, 4), ("autocontrast", 0.8, 3)),
        (("shear_y", 0.9, 8), ("invert", 0.4, 5)),
        (("shear_y", 0.9, 5), ("solarize", 0.2, 6)),
        (("invert", 0.9, 6), ("autocontrast", 0.8, 1)),
        (("equalize", 0.6, 3), ("rotate", 0.9, 3)),
        (("shear_x", 0.9, 4), ("solarize", 0.3, 3)),
        (("shear_y", 0.8, 8), ("invert", 0.7, 4)),
        (("equalize", 0.9, 5), ("translate_y", 0.6, 6)),
        (("invert", 0.9, 4), ("equalize", 0.6, 7)),
        (("contrast", 0.3, 3), ("rotate", 0.8, 4)),
        (("invert", 0.8, 5), ("translate_y", 0.0, 2)),
        (("shear_y", 0.7, 6), ("solarize", 0.4, 8)),
        (("invert", 0.6, 4), ("rotate", 0.8, 4)),
        (("shear_y", 0.3, 7), ("translate_x", 0.9, 3)),
        (("shear_x", 0.1, 6), ("invert", 0.6, 5)),
        (("solarize", 0.7, 2), ("translate_y", 0.6, 7)),
        (("shear_y", 0.8, 4), ("invert", 0.8, 8)),
        (("shear_x", 0.7, 9), ("translate_y", 0.8, 3)),
        (("shear_y", 0.8, 5), ("autocontrast", 0.7, 3)),
        (("shear_x", 0.7, 2), ("invert", 0.1, 5)),
    ),
}

# Operation -> (value at level 0, change up to level 9, whether the change has a random sign).
_RANGES: dict[str, tuple[float, float, bool]] = {
    "shear_x": (0.0, 0.3, True),
    "shear_y": (0.0, 0.3, True),
    "translate_x": (0.0, 150 / 331, True),
    "translate_y": (0.0, 150 / 331, True),
    "rotate": (0.0, 30.0, False),
    "color": (1.0, 0.9, True),
    "contrast": (1.0, 0.9, True),
    "brightness": (1.0, 0.9, True),
    "sharpness": (1.0, 0.9, True),
    "posterize": (8.0, -4.0, False),
    "solarize": (256.0, -256.0, False),
    "autocontrast": (0.0, 0.0, False),
    "equalize": (0.0, 0.0, False),
    "invert": (0.0, 0.0, False),
}
# Operations by number; the one after the last leaves the image as it is.
_NAMES = tuple(_RANGES)


def auto_augment(image: UInt8[Any, "h w 3"], key: Int64[Any, "2"], policy: str) -> UInt8[Any, "h w 3"]:
    """Applies one sub-policy, drawn uniformly: its two operations, each with its probability.

    Args:
      image: of any size from 2x2 on.
      key: for this alone, of TensorFlow's stateless generators.
      policy: cifar10, imagenet or svhn.

    Returns:
      Image of the same size.
    """
    numbers, values = draw(key, policy)
    for step in range(2):
        value = values[step]
        branches = [_branch(name, image, value) for name in _NAMES]
        image = tf.switch_case(numbers[step], [*branches, functools.partial(tf.identity, image)])
    return image


def draw(key: Int64[Any, "2"], policy: str) -> tuple[Int32[Any, "2"], Float32[Any, "2"]]:
    """Draws a sub-policy, which of its operations are applied, and their signs.

    Args:
      key: for this alone, of TensorFlow's stateless generators.
      policy: cifar10, imagenet or svhn.

    Returns:
      Number of each of the two operations, 14 = none; and the value that it is called with.
    """
    if policy not in _POLICIES:
        raise UserError(
            "data.auto_augment", repr(policy), f"one of {', '.join(_POLICIES)}", "Change `data.auto_augment`."
        )
    table = _POLICIES[policy]
    names = np.array([[name for name, _, _ in pair] for pair in table])
    probabilities = np.array([[probability for _, probability, _ in pair] for pair in table], np.float32)
    levels = np.array([[level for _, _, level in pair] for pair in table])
    base, change, signed = (np.array([_RANGES[name][i] for name in names.flat]).reshape(names.shape) for i in range(3))
    change = change * levels / _LEVELS
    operations = np.array([_NAMES.index(name) for name in names.flat], np.int32).reshape(names.shape)

    # Of five numbers the first chooses the sub-policy, two whether its operations are applied, two their signs.
    uniform = tf.random.stateless_uniform([5], key, alg="philox")
    chosen = tf.cast(uniform[0] * len(table), tf.int32)
    applied = uniform[1:3] < tf.gather(probabilities, chosen)
    negative = (uniform[3:5] < 0.5) & tf.gather(signed.astype(bool), chosen)
    ups, downs = (base + change).astype(np.float32), (base - change).astype(np.float32)
    values = tf.where(negative, tf.gather(downs, chosen), tf.gather(ups, chosen))
    return tf.where(applied, tf.gather(operations, chosen), len(_NAMES)), values


def _branch(name: str, image: UInt8[Any, "h w 3"], value: Float32[Any, ""]) -> Callable[[], UInt8[Any, "h w 3"]]:
    """An operation of the table, ready to be called."""
    branches: dict[str, Callable[[], UInt8[Any, "h w 3"]]] = {
        "shear_x": lambda: pillow_geometry.shear_x(image, value, "bicubic"),
        "shear_y": lambda: pillow_geometry.shear_y(image, value, "bicubic"),
        "translate_x": lambda: pillow_geometry.translate_x(image, value, "nearest"),
        "translate_y": lambda: pillow_geometry.translate_y(image, value, "nearest"),
        "rotate": lambda: pillow_geometry.rotate(image, value, "nearest"),
        "color": lambda: pillow_ops.color(image, value),
        "contrast": lambda: pillow_ops.contrast(image, value),
        "brightness": lambda: pillow_ops.brightness(image, value),
        "sharpness": lambda: pillow_ops.sharpness(image, value),
        "posterize": lambda: pillow_ops.posterize(image, tf.cast(tf.round(value), tf.int32)),
        "solarize": lambda: pillow_ops.solarize(image, value),
        "autocontrast": lambda: pillow_ops.autocontrast(image),
        "equalize": lambda: pillow_ops.equalize(image),
        "invert": lambda: pillow_ops.invert(image),
    }
    return branches[name]
