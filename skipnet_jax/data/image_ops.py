"""Image operations of the host: crops, mirror, resizing, colour jitter and lighting.

The CIFAR crop works on whole batches, since tf.data costs far more per element than these pixels do; the other
operations take one image of any size. All random draws are functions of a key, and each operation needs its own.

Considered instead:
- `tf.image.stateless_random_brightness` and its siblings: they add instead of multiplying, and use neither luma nor a
  common mean.
- Layers of KerasCV and Keras: they take batches of floats, decoded whole.
- imgaug, Pillow and torchvision through `tf.numpy_function`: Python's GIL admits one image at a time.

`crops` has the rectangles and the resizing of the ImageNet recipes.

Source: torchvision's ColorJitter, as in Takeda (MIRU2020), for the jitter; Krizhevsky et al., ImageNet Classification
with Deep Convolutional Neural Networks (NIPS 2012), section 4.1, for the lighting.
"""

import functools
import itertools
from typing import Any

import numpy as np
import tensorflow as tf
from jaxtyping import Bool, Float32, Int32, Int64, Num, Shaped, UInt8

from skipnet_jax.data import crops, decoding

# Images resized at a time, which bounds the float32 copies of a whole data set.
_RESIZE_CHUNK = 1000

# Folded into the key of `draw_crop_flip`. The other operations draw once, from the key itself.
_OFFSETS, _MIRROR = 0, 1

# Evaluation shows this share of the shorter side, and all of it from this image size on.
_EVAL_SHARE, _EVAL_WHOLE_FROM = 0.875, 384
# Principal components of ImageNet's colours on the 0..1 scale, one a column, and their standard deviations.
_COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
_COMPONENT_STDS = (0.2175, 0.0188, 0.0045)
# Luma of red, green and blue (ITU-R 601), and the six orders of brightness (0), contrast (1) and saturation (2).
_LUMA = (0.299, 0.587, 0.114)
_ORDERS = tuple(itertools.permutations(range(3)))


def resize(images: Num[np.ndarray, "n h w c"], size: int) -> UInt8[np.ndarray, "n {size} {size} c"]:
    """Resizes images to squares, bilinearly, with antialiasing where they get smaller.

    Args:
      images: values 0..255, of any number type.
      size: side of the result in pixels.

    Returns:
      Rounded uint8 images.
    """
    resized = np.empty((len(images), size, size, images.shape[3]), np.uint8)
    for start in range(0, len(images), _RESIZE_CHUNK):
        chunk = slice(start, start + _RESIZE_CHUNK)
        pixels = tf.image.resize(images[chunk], (size, size), method="bilinear", antialias=True).numpy()
        resized[chunk] = np.clip(np.rint(pixels), 0, 255)
    return resized


def resize_whole(image: UInt8[Any, "h w 3"], size: int) -> UInt8[Any, "{size} {size} 3"]:
    """Resizes one image as `resize` does, in TensorFlow operations."""
    pixels = tf.image.resize(image, (size, size), method="bilinear", antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(pixels), 0, 255), tf.uint8)


def draw_crop_flip(
    key: Int64[Any, "2"], num_examples: int, pad: int, flip: bool
) -> tuple[Int32[Any, "{num_examples} 2"], Bool[Any, "{num_examples}"]]:
    """Draws where each example is cropped and whether it is mirrored.

    Args:
      key: of TensorFlow's stateless generators, with the seed and the epoch folded in.
      num_examples: in the data set. Row i belongs to example i, wherever in the epoch it comes.
      pad: pixels of padding on each side; offsets are uniform over 0..2 * pad.
      flip: mirror with probability 1/2; otherwise never.

    Returns:
      Offsets (down, right) in pixels of the padded image [num_examples, 2]; mirror or not [num_examples].
    """
    fold_in, uniform = tf.random.experimental.stateless_fold_in, tf.random.stateless_uniform
    offsets = uniform([num_examples, 2], fold_in(key, _OFFSETS, alg="philox"), 0, 2 * pad + 1, tf.int32, alg="philox")
    coins = uniform([num_examples], fold_in(key, _MIRROR, alg="philox"), 0, 2, tf.int32, alg="philox")
    return offsets, tf.logical_and(coins == 1, flip)


def pad_crop_flip(
    images: UInt8[Any, "b s s c"], offsets: Int32[Any, "b 2"], mirrored: Bool[Any, "b"], pad: int
) -> UInt8[Any, "b s s c"]:
    """Pads each image by reflection, crops it back to its size, and mirrors it left to right.

    Reads only the pixels of the result, by looking up rows and columns at their reflected coordinates.

    Args:
      images: before padding.
      offsets: of the crop (down, right), 0..2 * pad pixels; (pad, pad) is the image itself.
      mirrored: which images are mirrored, after the crop.
      pad: pixels on each side, less than s.
    """
    last = images.shape[1] - 1
    coordinates = tf.abs(offsets[:, :, None] - pad + tf.range(last + 1))  # reflected at the first pixel
    coordinates = last - tf.abs(last - coordinates)  # and at the last
    rows, columns = coordinates[:, 0], coordinates[:, 1]
    columns = tf.where(mirrored[:, None], columns[:, ::-1], columns)
    cropped = tf.gather(images, rows, batch_dims=1)
    return tf.gather(cropped, columns, axis=2, batch_dims=1)


def random_resized_crop(
    encoded: Shaped[Any, ""],
    key: Int64[Any, "2"],
    size: int,
    min_area: float,
    background: tuple[int, ...] = decoding.WHITE,
) -> UInt8[Any, "{size} {size} 3"]:
    """Cuts a random rectangle out of an encoded image and resizes it to a square.

    Decodes only the rectangle's rows of a JPEG.

    Args:
      encoded, background: as for `decoding.decode`.
      key: for this operation alone.
      size: side of the result in pixels.
      min_area: least area of the rectangle as a share of the image's.

    Returns:
      The same as `random_resized_crop_of` the decoded image, except for a few levels at the rectangle's border.

    Raises:
      tf.errors.InvalidArgumentError: no image, or a truncated one.
    """

    def of_jpeg() -> tf.Tensor:
        shape = tf.io.extract_jpeg_shape(encoded)
        box = crops.draw_crop(key, shape[0], shape[1], min_area)
        return tf.io.decode_and_crop_jpeg(encoded, box, channels=3, dct_method="INTEGER_ACCURATE")

    def of_other() -> tf.Tensor:
        image = decoding.decode(encoded, background)
        return crops.cut(image, crops.draw_crop(key, tf.shape(image)[0], tf.shape(image)[1], min_area))

    return crops.resize_to_square(tf.cond(decoding.is_plain_jpeg(encoded), of_jpeg, of_other), size)


def random_resized_crop_of(
    image: UInt8[Any, "h w 3"], key: Int64[Any, "2"], size: int, min_area: float
) -> UInt8[Any, "{size} {size} 3"]:
    """Does the work of `random_resized_crop` on a decoded image."""
    box = crops.draw_crop(key, tf.shape(image)[0], tf.shape(image)[1], min_area)
    return crops.resize_to_square(crops.cut(image, box), size)


def random_flip(image: UInt8[Any, "h w 3"], key: Int64[Any, "2"]) -> UInt8[Any, "h w 3"]:
    """Mirrors left to right with probability 1/2; half a millisecond faster than `pad_crop_flip` at 224 pixels."""
    coin = tf.random.stateless_uniform([], key, 0, 2, tf.int32, alg="philox")
    return tf.cond(coin == 1, lambda: tf.reverse(image, [1]), lambda: image)


def eval_crop(
    image: UInt8[Any, "h w 3"], size: int, share: float = 0.0, interpolation: str = "bilinear"
) -> UInt8[Any, "{size} {size} 3"]:
    """Resizes the shorter side to `size` / `share` and cuts out the centre.

    Computes only the pixels of the result.

    Args:
      size: side of the result, in pixels.
      share: 0 = 0.875, or all of it from 384 pixels on. Another share is rounded down to whole pixels, as in timm.
      interpolation: bilinear or bicubic.
    """
    published = size if size >= _EVAL_WHOLE_FROM else round(size / _EVAL_SHARE)
    shorter = int(size / share) if share else published
    shape = tf.shape(image)[:2]
    sides = shorter * shape // tf.reduce_min(shape)  # the longer one rounded down
    # The offset is rounded half to even, as Python does.
    offsets = tf.round(tf.cast(sides - size, tf.float32) / 2)
    factors = tf.cast(sides, tf.float32) / tf.cast(shape, tf.float32)
    resize = crops.scale_bicubic if interpolation == "bicubic" else crops.scale
    return resize(image, size, factors, offsets)


def color_jitter(image: UInt8[Any, "h w 3"], key: Int64[Any, "2"], strength: float) -> UInt8[Any, "h w 3"]:
    """Changes brightness, contrast and saturation by random factors, in random order.

    As in Pillow, the image moves away from black, from the grey of its mean luma, and from the grey image. Unlike in
    Pillow, values are clipped after each step but truncated only once, at the end.

    Args:
      image: of any size.
      key: for this operation alone.
      strength: factors are uniform over 1 - strength..1 + strength, and never negative.
    """
    factors, order = draw_jitter(key, strength)
    pixels = tf.reshape(tf.cast(image, tf.float32), [tf.shape(image)[0], -1])

    def adjusted(steps: tuple[int, ...]) -> tf.Tensor:
        values = pixels
        for step in steps:
            values = _JITTERS[step](values, factors[step])
        return values

    values = tf.switch_case(order, [functools.partial(adjusted, steps) for steps in _ORDERS])
    return tf.reshape(tf.cast(values, tf.uint8), tf.shape(image))


def draw_jitter(key: Int64[Any, "2"], strength: float) -> tuple[Float32[Any, "3"], Int32[Any, ""]]:
    """Draws the factors of brightness, contrast and saturation, and one of their six orders."""
    uniform = tf.random.stateless_uniform([4], key, alg="philox")
    least = max(0.0, 1 - strength)
    return least + (1 + strength - least) * uniform[:3], tf.cast(uniform[3] * len(_ORDERS), tf.int32)


def draw_lighting(key: Int64[Any, "2"], std: float) -> Float32[Any, "3"]:
    """Draws a shift of all pixels along the principal components of ImageNet's colours.

    Args:
      key: for this operation alone.
      std: standard deviation of the shift along each component, in standard deviations of the data.

    Returns:
      Offsets of red, green and blue on the 0..1 scale.
    """
    shift = std * tf.random.stateless_normal([3], key, alg="philox") * tf.constant(_COMPONENT_STDS)
    return tf.linalg.matvec(tf.constant(_COMPONENTS), shift)


def _brighten(pixels: Float32[Any, "h w3"], factor: Float32[Any, ""]) -> Float32[Any, "h w3"]:
    return tf.minimum(pixels * factor, 255)


def _contrast(pixels: Float32[Any, "h w3"], factor: Float32[Any, ""]) -> Float32[Any, "h w3"]:
    mean = tf.reduce_mean(pixels, axis=0)
    grey = tf.reduce_sum(tf.reduce_mean(tf.reshape(mean, [-1, 3]), axis=0) * tf.constant(_LUMA))
    return tf.clip_by_value(pixels * factor + grey * (1 - factor), 0, 255)


def _saturate(pixels: Float32[Any, "h w3"], factor: Float32[Any, ""]) -> Float32[Any, "h w3"]:
    # One matrix product: the pixel times the factor, plus its luma times (1 - factor) in each channel.
    luma = tf.constant([[weight] * 3 for weight in _LUMA])
    mixed = tf.matmul(tf.reshape(pixels, [-1, 3]), factor * tf.eye(3) + (1 - factor) * luma)
    return tf.clip_by_value(tf.reshape(mixed, tf.shape(pixels)), 0, 255)


# By the numbers of `_ORDERS`.
_JITTERS = (_brighten, _contrast, _saturate)
