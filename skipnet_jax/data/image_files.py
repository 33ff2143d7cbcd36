"""Single images, with the pixels that evaluation would give the network."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from skipnet_jax.data import pillow_images, statistics, storage
from skipnet_jax.data.splits import CENTER, WHOLE
from skipnet_jax.errors import DataError

CROPS = (CENTER, WHOLE)


def crop_of(name: str) -> str:
    """Which of `CROPS` evaluation uses, judging only by the name of a data set (as in `specs.DataSpec`).

    The data sets with statistics of their own have small images, which are shown whole.
    """
    return WHOLE if statistics.base_name(name) in statistics.STATISTICS else CENTER


def read(
    image: str | bytes,
    *,
    size: int,
    crop: str,
    share: float = 0.0,
    interpolation: str = "bilinear",
    background: tuple[int, ...] = (255, 255, 255),
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Decodes an image and brings it to the size that the network sees, as evaluation does.

    Args:
      image: path of an image file, local or gs://..., or the content of such a file.
      size: side of the result, in pixels.
      crop: "center" = a share of the shorter side; "whole" = all of it.
      share, interpolation: of a "center" crop, as for `image_ops.eval_crop`.
      background: red, green and blue (0..255) behind transparent pixels.

    Returns:
      The image's centred square, 0..255.

    Raises:
      DataError: there is no such file, or it is not an image.
    """
    import tensorflow as tf

    from skipnet_jax.data import decoding, image_ops

    name = storage.show(image) if isinstance(image, str) else f"an image of {len(image)} bytes"
    try:
        encoded = epath.Path(image).read_bytes() if isinstance(image, str) else image
    except FileNotFoundError:
        raise DataError(name, "no such file", "an image", "Give another path.") from None
    except (OSError, tf.errors.OpError) as error:
        raise DataError(name, f"{error}", "an image that can be read", "Give another path.") from None
    decode = _decoder(size if crop == CENTER else None, share, interpolation, background)
    try:
        pixels = decode(tf.constant(encoded)).numpy()
    except tf.errors.OpError:
        got = f"an image that cannot be decoded ({decoding.why_undecodable(encoded) or 'damaged'})"
        raise DataError(name, got, pillow_images.KINDS, "Replace it.") from None
    return pixels if crop == CENTER else image_ops.resize(_centered_square(pixels)[None], size)[0]


@functools.cache
def _decoder(
    size: int | None, share: float, interpolation: str, background: tuple[int, ...]
) -> Callable[[Any], UInt8[Any, "h w 3"]]:
    """Returns a function that decodes an image, and crops it where a size is given.

    Its 80 operations are one graph. Called one by one from Python, they take several times as long.
    """
    import tensorflow as tf

    from skipnet_jax.data import decoding, image_ops

    def decode(encoded: Any) -> tf.Tensor:
        pixels = decoding.decode(encoded, background)
        return pixels if size is None else image_ops.eval_crop(pixels, size, share, interpolation)

    return tf.function(decode, autograph=False).get_concrete_function(tf.TensorSpec([], tf.string))


def _centered_square(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[Any, "s s 3"]:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]
