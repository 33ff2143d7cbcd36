"""Pillow's point operations on one image as TensorFlow functions: half of AutoAugment's and RandAugment's operations.

They give Pillow's pixels to the last bit, since they round and truncate where Pillow does. `pillow_geometry` has the
other half.

Considered instead:
- Pillow itself through `tf.numpy_function`: Python's GIL admits one image at a time, whatever the number of cores.
- `tf.image`: its contrast has a mean per channel, its saturation works in HSV, it does not truncate, and it lacks
  equalize.
- Layers of KerasCV and Keras: float images in batches, other meanings of contrast and sharpness.
- The TensorFlow model garden: heavy, and its contrast and sharpness only come close to Pillow's.
- imgaug: NumPy, so the GIL again, and no longer maintained.

The code follows TensorFlow's costs for 500x375 pixels on one CPU core: `tf.where` over a whole image takes 2 ms, where
arithmetic with a mask takes 0.5; `gather` by value takes 6, where `gather_nd` takes 2.3; and a broadcast over the three
channels takes longer than the operation itself.

Source: Pillow's ImageOps and ImageEnhance; Cubuk et al., AutoAugment (CVPR 2019), appendix.
"""

from typing import Any

import tensorflow as tf
from jaxtyping import Float, Float32, Int, Int32, UInt8

# Weights of red, green and blue in Pillow's luma, in units of 1/65536; float32 holds all their sums exactly.
_LUMA = (19595.0, 38470.0, 7471.0)


def invert(image: UInt8[Any, "h w 3"]) -> UInt8[Any, "h w 3"]:
    """Makes the negative."""
    return 255 - image


def posterize(image: UInt8[Any, "h w 3"], bits: int | Int[Any, ""]) -> UInt8[Any, "h w 3"]:
    """Keeps the upper bits of each value: 0 (black) to 8 (unchanged)."""
    mask = 256 - tf.bitwise.left_shift(1, 8 - tf.cast(bits, tf.int32))
    return tf.bitwise.bitwise_and(image, tf.cast(mask, tf.uint8))


def solarize(image: UInt8[Any, "h w 3"], threshold: float | Float[Any, ""]) -> UInt8[Any, "h w 3"]:
    """Inverts the values from `threshold` (0..256) on."""
    above = tf.range(256, dtype=tf.float32) >= tf.cast(threshold, tf.float32)
    first = 256 - tf.math.count_nonzero(above, dtype=tf.int32)  # 256: no value reaches the threshold
    negative = tf.cast(image >= tf.cast(tf.minimum(first, 255), tf.uint8), tf.uint8)
    negative *= tf.where(first > 255, tf.constant(0, tf.uint8), tf.constant(255, tf.uint8))
    return tf.bitwise.bitwise_xor(image, negative)


def solarize_add(image: UInt8[Any, "h w 3"], amount: int | Int[Any, ""], threshold: int = 128) -> UInt8[Any, "h w 3"]:
    """Adds `amount` (0..128) to the values below `threshold`, up to white."""
    amount = tf.cast(amount, tf.uint8)
    below = tf.cast(image < threshold, tf.uint8)
    return image + below * tf.minimum(255 - image, amount)


def autocontrast(image: UInt8[Any, "h w 3"]) -> UInt8[Any, "h w 3"]:
    """Stretches each channel so that its values reach from 0 to 255."""
    pixels = tf.reshape(image, [-1, 3])
    low = tf.cast(tf.reduce_min(pixels, axis=0), tf.float64)[:, None]
    high = tf.cast(tf.reduce_max(pixels, axis=0), tf.float64)[:, None]
    # In double precision and in Pillow's order, so that whole numbers come out the same way.
    values = tf.range(256, dtype=tf.float64)[None]
    scale = 255 / tf.maximum(high - low, 1)
    stretched = tf.where(high > low, values * scale - low * scale, values)
    return _look_up(image, tf.cast(tf.clip_by_value(stretched, 0, 255), tf.uint8))


def equalize(image: UInt8[Any, "h w 3"]) -> UInt8[Any, "h w 3"]:
    """Spreads each channel's values until their histogram is as even as whole numbers allow."""
    counts = tf.math.bincount(_by_channel(image), minlength=768, maxlength=768)
    counts = tf.reshape(counts, [3, 256])
    values = tf.range(256)[None]
    highest = tf.reduce_max(tf.where(counts > 0, values, 0), axis=1)
    # The highest value is not counted, so an image of one value has step 0 and stays unchanged.
    step = (tf.reduce_sum(counts, axis=1) - tf.gather(counts, highest, batch_dims=1))[:, None] // 255
    spread = (step // 2 + tf.cumsum(counts, axis=1, exclusive=True)) // tf.maximum(step, 1)
    return _look_up(image, tf.cast(tf.where(step > 0, tf.minimum(spread, 255), values), tf.uint8))


def brightness(image: UInt8[Any, "h w 3"], factor: float | Float[Any, ""]) -> UInt8[Any, "h w 3"]:
    """Moves away from black: factor 0 is black, 1 the image itself, and more is brighter."""
    return _blend(tf.constant(0.0), tf.cast(image, tf.float32), factor)


def contrast(image: UInt8[Any, "h w 3"], factor: float | Float[Any, ""]) -> UInt8[Any, "h w 3"]:
    """Moves away from the grey of the mean luma: factor 0 is that grey, 1 the image itself."""
    pixels = tf.cast(image, tf.float32)
    luma = tf.cast(_luma(pixels), tf.int64)  # whole numbers, whose sum float32 could not hold
    mean = tf.reduce_sum(luma) / tf.size(luma, tf.int64)  # TensorFlow's division is in double precision here
    return _blend(tf.cast(tf.floor(mean + 0.5), tf.float32), pixels, factor)


def color(image: UInt8[Any, "h w 3"], factor: float | Float[Any, ""]) -> UInt8[Any, "h w 3"]:
    """Moves away from the grey image: factor 0 is grey, 1 the image itself, and more has stronger colours."""
    pixels = tf.cast(image, tf.float32)
    return _blend(_luma(pixels), pixels, factor)


def sharpness(image: UInt8[Any, "h w 3"], factor: float | Float[Any, ""]) -> UInt8[Any, "h w 3"]:
    """Moves away from the smoothed image: factor 0 is smooth, 1 the image itself.

    Each pixel weighs 5, its neighbours 1. Pixels at the border stay unchanged. Images have at least two rows and
    columns.
    """
    pixels = tf.cast(image, tf.float32)
    rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
    inner = pixels[1:-1, 1:-1]
    smooth = tf.floor((rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * inner) / 13 + 0.5)
    return _blend(pixels + tf.pad(smooth - inner, [[1, 1], [1, 1], [0, 0]]), pixels, factor)


def _luma(pixels: Float32[Any, "h w 3"]) -> Float32[Any, "h w 3"]:
    """Pillow's grey image: whole numbers, the same in all three channels."""
    # A matrix product makes all three channels at once, which is faster than copying one to three.
    sums = tf.matmul(tf.reshape(pixels, [-1, 3]), tf.constant([[weight] * 3 for weight in _LUMA]))
    return tf.reshape(tf.floor((sums + 32768) / 65536), tf.shape(pixels))


def _blend(
    degenerate: Float32[Any, "*shape"], pixels: Float32[Any, "h w 3"], factor: float | Float[Any, ""]
) -> UInt8[Any, "h w 3"]:
    """Blends: factor 0 is the degenerate image, 1 the image itself; the result is clipped and truncated."""
    blended = degenerate + tf.cast(factor, tf.float32) * (pixels - degenerate)
    return tf.cast(tf.clip_by_value(blended, 0, 255), tf.uint8)


def _by_channel(image: UInt8[Any, "h w 3"]) -> Int32[Any, "h w 3"]:
    """Shifts the three channels apart: 0..255, 256..511, 512..767."""
    return tf.cast(image, tf.int32) + tf.constant([0, 256, 512])


def _look_up(image: UInt8[Any, "h w 3"], table: UInt8[Any, "3 256"]) -> UInt8[Any, "h w 3"]:
    """Replaces each value of each channel by its entry in the table."""
    return tf.gather_nd(tf.reshape(table, [768]), _by_channel(image)[..., None])
