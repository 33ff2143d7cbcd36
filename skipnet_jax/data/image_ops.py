"""Image operations of the host: resizing, and the random crop and mirror of the CIFAR recipes.

Whole batches at a time, since tf.data's cost per element would be far more than that of the pixels. TensorFlow is
imported inside the functions, so that importing the package stays free of it.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Int64, Num, UInt8

# Images resized at a time, which bounds the float32 copies of a whole data set.
_RESIZE_CHUNK = 1000


def resize(images: Num[np.ndarray, "n h w c"], size: int) -> UInt8[np.ndarray, "n {size} {size} c"]:
    """Resizes images to squares, bilinearly, with antialiasing where they get smaller.

    Args:
      images: values 0..255, of any number type.
      size: side of the result in pixels.

    Returns:
      Rounded uint8 images.
    """
    import tensorflow as tf

    resized = np.empty((len(images), size, size, images.shape[3]), np.uint8)
    for start in range(0, len(images), _RESIZE_CHUNK):
        chunk = slice(start, start + _RESIZE_CHUNK)
        pixels = tf.image.resize(images[chunk], (size, size), method="bilinear", antialias=True).numpy()
        resized[chunk] = np.clip(np.rint(pixels), 0, 255)
    return resized


def draw_crop_flip(
    key: Int64[Any, "2"], num_examples: int, pad: int, flip: bool
) -> tuple[Int32[Any, "{num_examples} 2"], Bool[Any, "{num_examples}"]]:
    """Draws where each example is cropped and whether it is mirrored: a pure function of the key.

    Args:
      key: a key of TensorFlow's stateless generators; fold the seed and the epoch into it.
      num_examples: of the data set: row i belongs to example i, wherever in the epoch it comes.
      pad: pixels of padding on each side; offsets are uniform over 0..2 * pad.
      flip: mirror with probability 1/2; otherwise never.

    Returns:
      Offsets (down, right) in pixels of the padded image [num_examples, 2]; mirror or not [num_examples].
    """
    import tensorflow as tf

    # The generator is named, since "auto_select" would differ where TensorFlow sees another kind of device.
    fold_in, uniform = tf.random.experimental.stateless_fold_in, tf.random.stateless_uniform
    offsets = uniform([num_examples, 2], fold_in(key, 0, alg="philox"), 0, 2 * pad + 1, tf.int32, alg="philox")
    coins = uniform([num_examples], fold_in(key, 1, alg="philox"), 0, 2, tf.int32, alg="philox")
    return offsets, tf.logical_and(coins == 1, flip)


def pad_crop_flip(
    images: UInt8[Any, "b s s c"], offsets: Int32[Any, "b 2"], mirrored: Bool[Any, "b"], pad: int
) -> UInt8[Any, "b s s c"]:
    """Pads by reflection, crops back to the size and mirrors left to right, each image in its own way.

    Only the pixels of the result are read: rows and columns are looked up by their reflected coordinates.

    Args:
      images: before padding.
      offsets: of the crop (down, right), 0..2 * pad pixels; (pad, pad) is the image itself.
      mirrored: which images are mirrored, after the crop.
      pad: pixels on each side, less than s.

    Returns:
      Images of the same size [b, s, s, c].
    """
    import tensorflow as tf

    last = images.shape[1] - 1
    coordinates = tf.abs(offsets[:, :, None] - pad + tf.range(last + 1))  # reflected at the first pixel
    coordinates = last - tf.abs(last - coordinates)  # and at the last
    rows, columns = coordinates[:, 0], coordinates[:, 1]
    columns = tf.where(mirrored[:, None], columns[:, ::-1], columns)
    cropped = tf.gather(images, rows, batch_dims=1)
    return tf.gather(cropped, columns, axis=2, batch_dims=1)
