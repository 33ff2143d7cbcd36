"""AutoAugment: each image gets one of 25 learnt pairs of operations.

The operations are Pillow's (`pillow_ops`, `pillow_geometry`); the policies were found on CIFAR-10, ImageNet and SVHN.

Considered instead: KerasCV, Keras and imgaug have no AutoAugment. The TensorFlow model garden has other operations and
ranges. torchvision and timm have these policies, but for Pillow images, under Python's GIL.

Source: Cubuk et al., AutoAugment (CVPR 2019), appendix. As in Takeda (MIRU2020), shear has the bicubic filter,
translate and rotate take nearest neighbours, and rotations go one way only.
"""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from jaxtyping import Float32, Int32, Int64, UInt8

from skipnet_jax.data import pillow_geometry, pillow_ops
from skipnet_jax.errors import UserError

_LEVELS = 9  # the highest

# Sub-policies of each policy: two triples (operation, probability, level 0..9).
_POLICIES: dict[str, list[list[tuple[str, float, int]]]] = json.loads(
    pathlib.Path(__file__).with_name("auto_augment_policies.json").read_text()
)

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
# Operations by number; the number after the last leaves the image unchanged.
_NAMES = tuple(_RANGES)


def auto_augment(image: UInt8[Any, "h w 3"], key: Int64[Any, "2"], policy: str) -> UInt8[Any, "h w 3"]:
    """Applies a random sub-policy: its two operations, each with its probability.

    Args:
      image: of any size from 2x2 on.
      key: for this operation alone.
      policy: cifar10, imagenet or svhn.
    """
    numbers, values = draw(key, policy)
    for step in range(2):
        value = values[step]
        branches = [_branch(name, image, value) for name in _NAMES]
        image = tf.switch_case(numbers[step], [*branches, functools.partial(tf.identity, image)])
    return image


def draw(key: Int64[Any, "2"], policy: str) -> tuple[Int32[Any, "2"], Float32[Any, "2"]]:
    """Draws a sub-policy, and for each of its two operations whether it is applied and with which sign.

    Args:
      key: for this operation alone.
      policy: cifar10, imagenet or svhn.

    Returns:
      The numbers of the two operations (14 = none), and their arguments.
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

    # The first number chooses the sub-policy, the next two whether its operations apply, and the last two their signs.
    uniform = tf.random.stateless_uniform([5], key, alg="philox")
    chosen = tf.cast(uniform[0] * len(table), tf.int32)
    applied = uniform[1:3] < tf.gather(probabilities, chosen)
    negative = (uniform[3:5] < 0.5) & tf.gather(signed.astype(bool), chosen)
    ups, downs = (base + change).astype(np.float32), (base - change).astype(np.float32)
    values = tf.where(negative, tf.gather(downs, chosen), tf.gather(ups, chosen))
    return tf.where(applied, tf.gather(operations, chosen), len(_NAMES)), values


def _branch(name: str, image: UInt8[Any, "h w 3"], value: Float32[Any, ""]) -> Callable[[], UInt8[Any, "h w 3"]]:
    """An operation of the table, with its arguments bound."""
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
