"""Decodes with Pillow the image files that TensorFlow does not decode as a viewer shows them."""

import functools
import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt8

KINDS = "a JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC file"
# JPEG includes MPO. Pillow has more readers, but some of them run other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF")
_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_TAIL = 1 << 20  # bytes that may follow the end mark, such as the second picture of a camera
_FILLING = b"\x5a\xa5" * 64  # any bytes that continue a JPEG's data
_ORIENTATION = 0x0112  # the number of this entry in EXIF
# The brands of the ISO container that mark a HEIC image; AVIF, in the same container, needs no extra.
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def decode(encoded: bytes, background: tuple[int, ...]) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image, or the first one of an animation, and turns it upright.

    Args:
      encoded: the file.
      background: red, green and blue (0..255) behind transparent pixels.

    Raises:
      ValueError: it cannot be decoded; the text says why.
    """
    return _read(encoded, lambda image: _to_rgb(image, background))


def as_png(encoded: bytes) -> bytes:
    """Turns an image upright and stores it as a PNG file, with its transparency; raises as `decode` does."""
    from PIL import Image

    def transparent(image: Any) -> np.ndarray:
        plain = not image.has_transparency_data or image.mode.startswith("I") or image.mode == "F"
        return _to_rgb(image, (0, 0, 0)) if plain else np.asarray(image.convert("RGBA"))

    file = io.BytesIO()
    Image.fromarray(_read(encoded, transparent)).save(file, "PNG")
    return file.getvalue()


def _read(encoded: bytes, pixels_of: Callable[[Any], np.ndarray]) -> np.ndarray:
    """Opens an image, turns it upright and takes its pixels; raises as `decode` does."""
    from PIL import Image, UnidentifiedImageError

    _load_plugins()
    _quieten()
    heic = encoded[4:8] == b"ftyp" and encoded[8:12] in _HEIC
    formats = (*_FORMATS, *(_heif() if heic else ()))

    def read(content: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            image.load()
            return pixels_of(_upright(image))

    try:
        if not encoded.startswith(_JPEG_START) or _JPEG_END in encoded[-_TAIL:]:
            return read(encoded)
        # If only the end mark is missing, more data before it change no pixel.
        pixels = read(encoded + _JPEG_END)
        if np.array_equal(pixels, read(encoded + _FILLING + _JPEG_END)):
            return pixels
        raise ValueError("truncated")
    except UnidentifiedImageError:
        if heic and len(formats) == len(_FORMATS):
            raise ValueError("a HEIC image, which needs pip install pillow-heif") from None
        raise ValueError("no image of a known kind") from None
    except Image.DecompressionBombError:
        raise ValueError("too large, or made to fill the memory") from None
    except Exception as error:  # Pillow's plugins raise whatever they meet: struct.error, SyntaxError, EOFError, ...
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def _upright(image: Any) -> Any:
    """Turns an image as its EXIF or XMP says.

    Pillow's `exif_transpose` also rewrites the EXIF, and fails if any of its other entries has a wrong type.
    """
    from PIL import Image

    turns = Image.Transpose
    turn = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }.get(image.getexif().get(_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Any, background: tuple[int, ...]) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a Pillow image of any mode in 8 bits, with the background behind them."""
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_to_8_bits(np.asarray(image))[..., None], 3, axis=2)
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    pixels = np.asarray(image.convert("RGBA")).astype(np.int32)
    colors, opacity = pixels[..., :3], pixels[..., 3:]
    mixed = colors * opacity + np.asarray(background, np.int32) * (255 - opacity)
    return ((mixed + 127) // 255).astype(np.uint8)  # rounded, as in decoding.py


def _to_8_bits(grey: np.ndarray) -> np.ndarray:
    """Brightness 0..255 from whole numbers of 8 or 16 bits, or from floats 0..1 or 0..255."""
    if grey.dtype == np.uint16:
        return (grey >> 8).astype(np.uint8)
    highest = grey.max(initial=0)
    if np.issubdtype(grey.dtype, np.integer):
        return np.clip(grey >> 8 if highest > 255 else grey, 0, 255).astype(np.uint8)
    return np.clip(np.rint(grey * (255 if highest <= 1 else 1)), 0, 255).astype(np.uint8)


@functools.cache
def _heif() -> tuple[str, ...]:
    """Teaches Pillow HEIC, if the extra is installed."""
    try:
        import pillow_heif
    except ImportError:
        return ()
    pillow_heif.register_heif_opener()
    return ("HEIF",)


@functools.cache
def _load_plugins() -> None:
    """Loads all of Pillow's own readers; given a list of formats, Pillow would load only some of them."""
    from PIL import Image

    Image.init()


def _quieten() -> None:
    """Silences Pillow's warning about large images; Pillow still refuses those above 178 million pixels."""
    from PIL import Image

    if not any(rule[2] is Image.DecompressionBombWarning and rule[0] == "ignore" for rule in warnings.filters):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
