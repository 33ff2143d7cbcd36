"""Single images, with the pixels that evaluation would give the network."""

from typing import Any

import numpy as np
from jaxtyping import UInt8

from skipnet_jax.data import storage
from skipnet_jax.errors import DataError

# What evaluation shows of an image: of images in files the centre, of data sets that are read into memory all.
CENTER, WHOLE = "center", "whole"
CROPS = (CENTER, WHOLE)
_IN_MEMORY = ("digits", "cifar10", "cifar100", "fashion_mnist")


def crop_of(name: str) -> str:
    """Which of `CROPS` evaluation uses for a data set.

    Args:
      name: as of `specs.DataSpec`.
    """
    return WHOLE if name.partition("/")[0] in _IN_MEMORY else CENTER


def read(image: str | bytes, *, size: int, crop: str) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Decodes an image and brings it to the size that the network sees, as evaluation does.

    A camera's note that the image is to be turned (EXIF) is ignored, as in training.

    Args:
      image: path of a JPEG, PNG or GIF file, local or gs://..., or what is in such a file.
      size: side of the result, in pixels.
      crop: "center" = 0.875 of the shorter side, or all of it from 384 pixels on (`image_ops.eval_crop`);
        "whole" = all of it.

    Returns:
      The image's centred square, 0..255.

    Raises:
      DataError: there is no such file, or it holds no image.
    """
    import tensorflow as tf

    from skipnet_jax.data import image_ops

    name = image if isinstance(image, str) else f"an image of {len(image)} bytes"
    try:
        pixels = image_ops.decode(tf.constant(_encoded(image)))
    except (tf.errors.OpError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            name, "an image that cannot be decoded", "a JPEG, PNG or GIF of one image", "Replace it."
        ) from None
    if crop == CENTER:
        return image_ops.eval_crop(pixels, size).numpy()
    return image_ops.resize(_centered_square(pixels.numpy())[None], size)[0]


def _encoded(image: str | bytes) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return storage.read_bytes(image)
    except FileNotFoundError:
        raise DataError(image, "no such file", "an image", "Give another path.") from None


def _centered_square(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[Any, "s s 3"]:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]
