"""From the bytes of an image file to the pixels that a viewer shows, in TensorFlow operations.

A file's first bytes tell its kind; its name does not. TensorFlow decodes JPEG and PNG. Files that it cannot decode
as a viewer does - turned photos (EXIF), CMYK, WebP and so on - go to Pillow, under Python's GIL. For a plain JPEG the
decision takes a few microseconds.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from jaxtyping import Bool, Shaped, UInt8

from skipnet_jax.data import pillow_images, storage

WHITE = (255, 255, 255)

# TensorFlow's decoders refuse images with this many values.
_DECODABLE = 2**29
_JPEG_START, _JPEG_END, _PNG_START = b"\xff\xd8\xff", b"\xff\xd9", b"\x89PNG\r\n\x1a\n"
# Offsets in a JPEG: of the first marker, its length, and the second marker if the first is JFIF's, of 16 bytes.
_MARKER, _LENGTH, _NEXT_MARKER = 2, 4, 20
_JFIF, _EXIF, _TABLES = b"\xff\xe0", b"\xff\xe1", b"\xff\xdb"
# Zeros appended to the start of a file, enough for the offsets above and below: TensorFlow refuses to look past the
# end, and its message quotes the file's bytes, which Python cannot read as text.
_ZEROS = bytes(32)
# How many bytes to search: for usual EXIF; for the orientation in it; for the orientation otherwise (EXIF has at most
# 64 KB).
_START, _NEAR, _FAR = 256, 4096, 1 << 17
# How many bytes to search for the frame's header if the first segment is a table.
_FRAME = 1024
# A frame header of 20 bytes: 8 bits, height, width, four colours.
_FOUR_COLORS = r"(?s)\C*\x00\x14\x08\C\C\C\C\x04\C*"
# The orientation 2..8: entry 0x0112 of a directory in either byte order, a byte, short or long; or the same in XMP.
_TURNED = (
    r"(?s)\C*(?:\x12\x01[\x01\x03\x04]\x00\x01\x00\x00\x00[\x02-\x08]"
    r"|\x01\x12\x00[\x01\x03\x04]\x00\x00\x00\x01(?:\x00|\x00\x00\x00)?[\x02-\x08]"
    r"|tiff:Orientation[=>][\"']?[2-8])\C*"
)
# EXIF whose first directory follows at once.
_USUAL_EXIF = r"(?s)\C*Exif\x00\x00(?:II\*\x00\x08\x00|MM\x00\*\x00\x00\x00\x08)\C*"
_PNG_TURNED = r"(?s)\C*(?:eXIf|Raw profile type|tiff:Orientation)\C*"
_PNG_TRANSPARENT = r"(?s)\C*tRNS\C*"
_PNG_KIND = 25  # the offset of the colour type
_PNG_WITH_ALPHA = (b"\x04", b"\x06")

# Files that are not images, whatever their names say: first bytes -> kind.
_NO_IMAGES = {
    b"<!doctype": "an HTML page",
    b"<html": "an HTML page",
    b"\x00\x05\x16\x07": "data of macOS (AppleDouble)",
    b"version https://git-lfs": "a pointer of Git LFS: run git lfs pull",
}


def decode(encoded: Shaped[Any, ""], background: tuple[int, ...] = WHITE) -> UInt8[Any, "h w 3"]:
    """Decodes an image file.

    JPEGs have Pillow's pixels to the last bit; TensorFlow's default transform is one level off on average, and no
    faster. Values of 16 bits keep their upper 8.

    Args:
      encoded: JPEG, PNG, WebP, GIF or another animation (the first image), BMP, TIFF, AVIF, or HEIC.
      background: red, green and blue (0..255) behind transparent pixels.

    Raises:
      tf.errors.OpError: the file is truncated, too large, or not of these kinds; outside a graph also ValueError.
    """
    plain = is_plain_jpeg(encoded)
    return tf.ensure_shape(
        tf.cond(plain, lambda: _decode_jpeg(encoded), lambda: _decode_other(encoded, background)), [None, None, 3]
    )


def is_plain_jpeg(encoded: Shaped[Any, ""]) -> Bool[Any, ""]:
    """Whether a file is a complete JPEG whose stored pixels are the ones that a viewer shows."""

    def is_plain() -> tf.Tensor:
        # TensorFlow refuses a file without its last two bytes.
        whole = tf.strings.substr(encoded, -len(_JPEG_END), len(_JPEG_END)) == _JPEG_END
        return tf.logical_and(whole, tf.logical_not(_is_turned_or_cmyk(encoded)))

    return tf.cond(tf.strings.substr(encoded, 0, 3) == _JPEG_START, is_plain, lambda: tf.constant(False))


def portable(encoded: bytes) -> bytes:
    """Returns a file that TensorFlow's own decoders turn into the pixels that a viewer shows.

    Args:
      encoded: an image that can be decoded.

    Returns:
      The file itself if it is a plain JPEG or PNG. A turned or CMYK image, or one of another kind, becomes a PNG.
    """
    if _is_portable()(encoded):
        return encoded
    return pillow_images.as_png(encoded)


@functools.cache
def _is_portable() -> Callable[[bytes], Bool[Any, ""]]:
    def is_upright_png(encoded: Any) -> tf.Tensor:
        is_png = tf.strings.substr(encoded, 0, len(_PNG_START)) == _PNG_START
        return tf.logical_and(is_png, tf.logical_not(tf.strings.regex_full_match(encoded, _PNG_TURNED)))

    def is_portable(encoded: Any) -> tf.Tensor:
        return tf.logical_or(is_plain_jpeg(encoded), is_upright_png(encoded))

    return tf.function(is_portable, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)


def why_undecodable(encoded: bytes) -> str:
    """Says why an image file cannot be decoded; empty if it can.

    Reads all data of a JPEG but decodes it at an eighth of its height and width, in about half the time.
    """
    if not encoded:
        return "an empty file"
    start = encoded.lstrip()[:64].lower()
    for beginning, kind in _NO_IMAGES.items():
        if start.startswith(beginning):
            return kind
    try:
        if encoded.startswith(_JPEG_START) and encoded.endswith(_JPEG_END):
            image = tf.io.decode_jpeg(encoded, channels=3, ratio=8, dct_method="INTEGER_FAST")
            if image.shape.num_elements() * 64 >= _DECODABLE:
                return f"too large: {image.shape[0]} x {image.shape[1]} blocks of 8 x 8 pixels"
        elif encoded.startswith(_PNG_START):
            tf.io.decode_png(encoded, channels=3)
        else:
            pillow_images.decode(encoded, WHITE)
    except ValueError as error:
        return str(error)
    except tf.errors.OpError as error:
        return storage.reason(error)
    return ""


def _decode_jpeg(encoded: Any) -> tf.Tensor:
    return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")


def _decode_other(encoded: Any, background: tuple[int, ...]) -> tf.Tensor:
    is_png = tf.strings.substr(encoded, 0, len(_PNG_START)) == _PNG_START
    return tf.cond(is_png, lambda: _decode_png(encoded, background), lambda: _by_pillow(encoded, background))


def _decode_png(encoded: Any, background: tuple[int, ...]) -> tf.Tensor:
    def composed() -> tf.Tensor:
        pixels = tf.cast(tf.io.decode_png(encoded, channels=4), tf.int32)
        colors, opacity = pixels[..., :3], pixels[..., 3:]
        mixed = colors * opacity + tf.constant(background, tf.int32) * (255 - opacity)
        return tf.cast((mixed + 127) // 255, tf.uint8)  # rounded

    kind = tf.strings.substr(_header(encoded), _PNG_KIND, 1)
    transparent = tf.reduce_any(kind == tf.constant(_PNG_WITH_ALPHA))
    transparent = tf.logical_or(transparent, tf.strings.regex_full_match(encoded, _PNG_TRANSPARENT))
    return tf.cond(
        tf.strings.regex_full_match(encoded, _PNG_TURNED),
        lambda: _by_pillow(encoded, background),
        lambda: tf.cond(transparent, composed, lambda: tf.io.decode_png(encoded, channels=3)),
    )


def _header(encoded: Any) -> tf.Tensor:
    return tf.strings.substr(encoded, 0, len(_ZEROS)) + _ZEROS


def _by_pillow(encoded: Any, background: tuple[int, ...]) -> tf.Tensor:
    def read(content: bytes | np.ndarray) -> np.ndarray:
        whole = content if isinstance(content, bytes) else content.item()  # outside a graph it is an array
        return pillow_images.decode(whole, background)

    return tf.ensure_shape(tf.numpy_function(read, [encoded], tf.uint8, stateful=False), [None, None, 3])


def _is_turned_or_cmyk(encoded: Any) -> tf.Tensor:
    """Whether a JPEG may be turned (EXIF, XMP) or CMYK, and so has to go to Pillow.

    TensorFlow treats all CMYK as inverted, as Adobe writes it.
    """

    def turned_within(size: int) -> tf.Tensor:
        return tf.strings.regex_full_match(tf.strings.substr(encoded, 0, size), _TURNED)

    def of_other() -> tf.Tensor:
        start = tf.strings.substr(encoded, 0, _START)
        usual = tf.logical_and(marker == _EXIF, tf.strings.regex_full_match(start, _USUAL_EXIF))
        turned = tf.cond(usual, lambda: turned_within(_NEAR), lambda: turned_within(_FAR))
        # Slower, but the frame's header may lie anywhere.
        return tf.logical_or(turned, tf.io.extract_jpeg_shape(encoded)[2] == 4)

    header = _header(encoded)
    first = tf.strings.substr(header, _MARKER, 2)
    has_jfif = tf.logical_and(first == _JFIF, tf.strings.substr(header, _LENGTH, 2) == b"\x00\x10")
    marker = tf.where(has_jfif, tf.strings.substr(header, _NEXT_MARKER, 2), first)
    frame = tf.strings.substr(encoded, 0, _FRAME)
    return tf.cond(marker == _TABLES, lambda: tf.strings.regex_full_match(frame, _FOUR_COLORS), of_other)
