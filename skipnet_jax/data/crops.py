"""Random rectangles and resizing of one image: the crops of the ImageNet recipes.

Considered instead:
- `tf.image.stateless_sample_distorted_bounding_box`: draws the aspect uniformly, not log-uniformly, and has its own
  rule for rectangles that do not fit. The crops of the TensorFlow model garden and of Keras are not log-uniform either.
- `tf.image.resize`: gives the same numbers as `scale`, but takes 1.5 times as long, since TensorFlow's
  `ScaleAndTranslate` is slow along rows of pixels with three channels. Sparse matrices of weights are slower still.

Source: torchvision's RandomResizedCrop, Resize and CenterCrop, as in Takeda (MIRU2020).
"""

import math
from typing import Any

import tensorflow as tf
from jaxtyping import Float32, Int32, Int64, UInt8

# Rectangles tried until one fits, and the limits of width / height.
_TRIES = 10
_ASPECTS = (3 / 4, 4 / 3)
# Resized columns computed together: wide enough for a matrix product, narrow enough to waste little.
_BLOCK = 16


def draw_crop(
    key: Int64[Any, "2"], height: int | Int32[Any, ""], width: int | Int32[Any, ""], min_area: float
) -> Int32[Any, "4"]:
    """Draws a rectangle: area uniform, aspect log-uniform over 3/4..4/3, place uniform.

    Of ten rectangles, takes the first that fits; if none does, the largest centred one with an allowed aspect.

    Args:
      key: for this operation alone.
      height: of the image in pixels.
      width: of the image in pixels.
      min_area: least area as a share of the image's.

    Returns:
      Top, left, height, width in pixels.
    """
    shape = tf.cast(tf.stack([height, width]), tf.float32)[:, None]
    uniform = tf.random.stateless_uniform([4, _TRIES], key, alg="philox")
    narrow, wide = math.log(_ASPECTS[0]), math.log(_ASPECTS[1])
    areas = tf.reduce_prod(shape) * (min_area + (1 - min_area) * uniform[0])
    roots = tf.exp(0.5 * (narrow + (wide - narrow) * uniform[1]))  # of the aspects
    sides = tf.round(tf.sqrt(areas) * tf.stack([1 / roots, roots]))
    # The last candidate always fits. Its place is fixed just below 1/2: the middle, rounded down.
    largest = tf.minimum(shape, tf.round(tf.reverse(shape, [0]) * [[1 / _ASPECTS[0]], [_ASPECTS[1]]]))
    sides = tf.concat([sides, largest], axis=1)
    places = tf.concat([uniform[2:], tf.fill([2, 1], 0.49999)], axis=1)
    chosen = tf.argmax(tf.reduce_all((sides >= 1) & (sides <= shape), axis=0))
    side = tf.gather(sides, chosen, axis=1)
    place = tf.floor(tf.gather(places, chosen, axis=1) * (shape[:, 0] - side + 1))
    return tf.cast(tf.concat([place, side], axis=0), tf.int32)


def cut(image: UInt8[Any, "h w 3"], box: Int32[Any, "4"]) -> UInt8[Any, "i j 3"]:
    """Cuts out the rectangle (top, left, height, width)."""
    top, left, height, width = (box[i] for i in range(4))
    return image[top : top + height, left : left + width]


def resize_to_square(image: UInt8[Any, "h w 3"], size: int) -> UInt8[Any, "{size} {size} 3"]:
    """Resizes bilinearly, with antialiasing if the image gets smaller."""
    return scale(image, size, size / tf.cast(tf.shape(image)[:2], tf.float32), tf.zeros([2]))


def scale(
    image: UInt8[Any, "h w 3"], size: int, factors: Float32[Any, "2"], offsets: Float32[Any, "2"]
) -> UInt8[Any, "{size} {size} 3"]:
    """Computes a square of the resized image, bilinear with antialiasing; rounds half up, as Pillow does.

    Args:
      image: of any size.
      size: side of the square in pixels.
      factors: size of the whole resized image / size of the image, down and right.
      offsets: of the square's corner in the resized image, in pixels down and right.
    """
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    # Down. Each row counts as one pixel of many channels, since the operation's inner loop over channels is fast.
    rows = tf.raw_ops.ScaleAndTranslate(
        images=tf.reshape(image, [1, height, 1, width * 3]),
        size=tf.constant([size, 1]),
        scale=tf.stack([factors[0], 1.0]),
        translation=tf.stack([-offsets[0], 0.0]),
        kernel_type="triangle",
        antialias=True,
    )
    rows = tf.reshape(rows, [size, width * 3])

    # Right. Each block of columns is a matrix product of the few columns that it depends on and their weights.
    blocks = -(-size // _BLOCK)
    starts, weights = _block_weights(width, blocks, factors[1], offsets[1])
    length = tf.shape(weights)[1]
    read = tf.stack([tf.slice(rows, [0, starts[block] * 3], [size, length]) for block in range(blocks)])
    columns = tf.transpose(tf.matmul(read, weights), [1, 0, 2])
    square = tf.reshape(columns, [size, blocks * _BLOCK, 3])[:, :size]
    return tf.cast(square + 0.5, tf.uint8)


def scale_bicubic(
    image: UInt8[Any, "h w 3"], size: int, factors: Float32[Any, "2"], offsets: Float32[Any, "2"]
) -> UInt8[Any, "{size} {size} 3"]:
    """Does what `scale` does with a cubic filter (a = -0.5, as in Pillow), but more slowly.

    Args:
      image, size, factors, offsets: as for `scale`.
    """
    square = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=tf.constant([size, size]),
        scale=factors,
        translation=-offsets,
        kernel_type="keyscubic",
        antialias=True,
    )[0]
    return tf.cast(tf.clip_by_value(square + 0.5, 0, 255), tf.uint8)


def _block_weights(
    width: Int32[Any, ""], blocks: int, factor: Float32[Any, ""], offset: Float32[Any, ""]
) -> tuple[Int32[Any, "{blocks}"], Float32[Any, "{blocks} n3 48"]]:
    """Computes where each block of 16 resized columns begins to read, and the weights of the columns that it reads.

    Args:
      width: columns of the image.
      factor: columns of the resized image / columns of the image.
      offset: of the first block in the resized image, in columns.

    Returns:
      The first column that each block reads; weights of its n columns' channels for the 16 resized columns' channels.
    """
    support = tf.maximum(1 / factor, 1.0)  # half the filter's width, in columns of the image
    centers = (tf.range(blocks * _BLOCK, dtype=tf.float32) + offset + 0.5) / factor
    needed = tf.cast(tf.math.ceil((_BLOCK - 1) / factor + 2 * support), tf.int32) + 1
    count = tf.minimum(width, needed)
    starts = tf.clip_by_value(tf.cast(tf.floor(centers[::_BLOCK] - support), tf.int32), 0, width - count)
    read = tf.cast(starts[:, None] + tf.range(count), tf.float32) + 0.5
    read, centers = tf.repeat(read, 3, axis=1), tf.repeat(tf.reshape(centers, [blocks, _BLOCK]), 3, axis=1)
    weights = tf.maximum(0.0, 1 - tf.abs(read[:, :, None] - centers[:, None]) / support)
    weights *= tf.tile(tf.eye(3), [count, _BLOCK])  # channels do not mix
    # Past the square's end there may be nothing to read, so the sum may be 0.
    return starts, tf.math.divide_no_nan(weights, tf.reduce_sum(weights, axis=1, keepdims=True))
