"""Image files as people have them: the pixels that a viewer shows, in training, evaluation and prediction."""

import io
import itertools
import pathlib
import struct
import sys
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from skipnet_jax.data import augment, decoding, image_files, image_ops, pipeline, sources
from skipnet_jax.errors import DataError
from skipnet_jax.specs import DataSpec

HEIGHT, WIDTH = 40, 60
ROWS, COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH]
RGB = np.stack([COLUMNS * 4, ROWS * 6, 255 - COLUMNS * 4], axis=-1).astype(np.uint8)  # differs on every side
IMAGE = Image.fromarray(RGB)
OTHER = Image.fromarray(RGB[::-1, ::-1])
BLUE_ON_WHITE = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
BLUE_ON_WHITE[10:30, 20:40] = (0, 0, 255)
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


REFUSED = (tf.errors.OpError, ValueError)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def shown(encoded: bytes) -> np.ndarray:
    """What Pillow shows."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB"))


def decode(encoded: bytes, background: tuple[int, ...] = decoding.WHITE) -> np.ndarray:
    return decoding.decode(tf.constant(encoded), background).numpy()


def exif(orientation: int, byte_order: str = "<", *, filler: int = 0) -> bytes:
    """An EXIF segment's content, whose directory begins after `filler` bytes."""
    mark = b"II*\0" if byte_order == "<" else b"MM\0*"
    entry = struct.pack(byte_order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    directory = struct.pack(byte_order + "H", 1) + entry + bytes(4)
    return b"Exif\0\0" + mark + struct.pack(byte_order + "I", 8 + filler) + bytes(filler) + directory


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def turned(orientation: int, kind: str = "JPEG", **options: object) -> bytes:
    note = Image.Exif()
    note[0x0112] = orientation
    return encode(IMAGE.transpose(TURNS[orientation]), kind, exif=note, **options)


PLAIN = encode(IMAGE, "JPEG", quality=95)
TURNED_6 = encode(IMAGE.transpose(TURNS[6]), "JPEG", quality=95)
CMYK = encode(IMAGE.convert("CMYK"), "JPEG", quality=95)
_adobe = CMYK.index(b"\xff\xee")
CMYK_PLAIN = CMYK[:_adobe] + CMYK[_adobe + 2 + struct.unpack(">H", CMYK[_adobe + 2 : _adobe + 4])[0] :]
JPEGS = {
    "plain": PLAIN,
    "progressive": encode(IMAGE, "JPEG", progressive=True),
    "grey": encode(IMAGE.convert("L"), "JPEG"),
    "cmyk": CMYK,
    "cmyk_without_adobe": CMYK_PLAIN,
    "of_two_pictures": encode(IMAGE, "MPO", save_all=True, append_images=[OTHER]),
    "without_end": PLAIN[:-2],
    "bytes_after_the_end": PLAIN + b"garbage" * 100,
    "zeros_before_the_end": PLAIN[:-2] + bytes(1142) + PLAIN[-2:],
    "upright_with_exif": encode(IMAGE, "JPEG", exif=exif(1)),
    "motorola_exif": TURNED_6[:2] + segment(0xE1, exif(6, ">")) + TURNED_6[2:],
    "exif_after_jfif": TURNED_6[:20] + segment(0xE1, exif(6)) + TURNED_6[20:],
    "exif_after_a_long_profile": TURNED_6[:20]
    + segment(0xE2, b"ICC_PROFILE\0" + bytes(50_000))
    + segment(0xE1, exif(6))
    + TURNED_6[20:],
    "exif_with_a_late_directory": TURNED_6[:2] + segment(0xE1, exif(6, filler=30_000)) + TURNED_6[2:],
    "exif_of_another_number": TURNED_6[:2]
    + segment(0xE1, exif(6).replace(b"\x12\x01\x03", b"\x12\x01\x04"))
    + TURNED_6[2:],
} | {f"turned_{number}": turned(number) for number in TURNS}


@pytest.mark.parametrize("kind", JPEGS)
def test_jpegs_are_decoded_as_viewers_do(kind: str) -> None:
    got, expected = decode(JPEGS[kind]), shown(PLAIN if kind == "without_end" else JPEGS[kind])
    assert got.shape == expected.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(got, expected)
    if "turned" in kind:  # the check itself is upright
        assert np.abs(got.astype(int) - RGB).mean() < 8


@pytest.mark.parametrize(("tag", "text"), [(0x0128, b"2\0"), (0x0100, b"60\0")], ids=["unit", "width"])
def test_an_entry_of_a_wrong_type_beside_the_orientation_does_no_harm(tag: int, text: bytes) -> None:
    entries = sorted([(0x0112, 3, 1, struct.pack("<HH", 6, 0)), (tag, 2, len(text), text.ljust(4, b"\0"))])
    note = b"II*\0" + struct.pack("<IH", 8, 2) + b"".join(struct.pack("<HHI4s", *entry) for entry in entries) + bytes(4)
    photo = TURNED_6[:2] + segment(0xE1, b"Exif\0\0" + note) + TURNED_6[2:]
    np.testing.assert_array_equal(decode(photo), shown(JPEGS["motorola_exif"]))


def test_only_unusual_jpegs_cost_pythons_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding.pillow_images, "decode", lambda *given: pytest.fail("Pillow was asked"))
    for kind in ("plain", "progressive", "grey", "zeros_before_the_end", "upright_with_exif", "of_two_pictures"):
        decode(JPEGS[kind])
    decode(PNGS["rgba"][0])


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _pngs() -> dict[str, tuple[bytes, np.ndarray]]:
    rgba = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    rgba[..., 0] = 255  # red where nothing is seen
    rgba[10:30, 20:40] = (0, 0, 255, 255)
    palette = Image.fromarray(rgba[..., 3] // 255)
    palette.putpalette([0, 255, 0, 0, 0, 255])
    grey = (COLUMNS * 4).astype(np.uint8)
    grey_alpha = Image.fromarray(np.stack([grey, np.full_like(grey, 255)], axis=-1), "LA")
    deep = (COLUMNS * 1000 + ROWS * 100).astype(np.uint16)
    stamped = turned(6, "PNG")
    begin = stamped.index(b"eXIf") - 4
    end = begin + 12 + struct.unpack(">I", stamped[begin : begin + 4])[0]
    late = stamped[:begin] + stamped[end:-12] + stamped[begin:end] + stamped[-12:]  # the note follows the pixels

    def three(values: np.ndarray) -> np.ndarray:
        return np.repeat(values[..., None], 3, axis=-1)

    return {
        "plain": (encode(IMAGE, "PNG"), RGB),
        "rgba": (encode(Image.fromarray(rgba), "PNG"), BLUE_ON_WHITE),
        "palette": (encode(IMAGE.quantize(16), "PNG"), np.asarray(IMAGE.quantize(16).convert("RGB"))),
        "palette_transparent": (encode(palette, "PNG", transparency=0), BLUE_ON_WHITE),
        "rgb_transparent": (
            encode(
                Image.fromarray(np.where(BLUE_ON_WHITE == 255, (9, 8, 7), BLUE_ON_WHITE).astype(np.uint8)),
                "PNG",
                transparency=(9, 8, 7),
            ),
            np.where(
                (BLUE_ON_WHITE == 255).all(-1, keepdims=True),
                255,
                np.where(BLUE_ON_WHITE == 255, (9, 8, 7), BLUE_ON_WHITE),
            ),
        ),
        "grey_alpha": (encode(grey_alpha, "PNG"), three(grey)),
        "grey16": (encode(Image.fromarray(deep), "PNG"), three((deep >> 8).astype(np.uint8))),
        "bilevel": (encode(Image.fromarray(grey > 99), "PNG"), three(np.where(grey > 99, 255, 0))),
        "animated": (encode(IMAGE, "PNG", save_all=True, append_images=[OTHER]), RGB),
        "turned": (stamped, RGB),
        "turned_at_the_end": (late, RGB),
    }


PNGS = _pngs()


@pytest.mark.parametrize("kind", PNGS)
def test_pngs_are_decoded_as_viewers_do(kind: str) -> None:
    encoded, expected = PNGS[kind]
    np.testing.assert_array_equal(decode(encoded), expected)


OTHERS = {
    "webp": (encode(IMAGE, "WEBP", lossless=True), RGB),
    "webp_turned": (turned(8, "WEBP", lossless=True), RGB),
    "webp_animated": (encode(IMAGE, "WEBP", lossless=True, save_all=True, append_images=[OTHER]), RGB),
    "webp_transparent": (encode(Image.open(io.BytesIO(PNGS["rgba"][0])), "WEBP", lossless=True), BLUE_ON_WHITE),
    "gif": (encode(IMAGE.quantize(16), "GIF"), np.asarray(IMAGE.quantize(16).convert("RGB"))),
    "gif_animated": (
        encode(IMAGE.quantize(16), "GIF", save_all=True, append_images=[OTHER.quantize(16)]),
        np.asarray(IMAGE.quantize(16).convert("RGB")),
    ),
    "bmp": (encode(IMAGE, "BMP"), RGB),
    "tiff": (encode(IMAGE, "TIFF"), RGB),
    "tiff_grey16": (
        encode(Image.fromarray((COLUMNS * 1000).astype(np.uint16)), "TIFF"),
        np.repeat((COLUMNS * 1000 >> 8)[..., None], 3, axis=-1),
    ),
    "tiff_of_fractions": (
        encode(Image.fromarray((COLUMNS / 59).astype(np.float32)), "TIFF"),
        np.repeat(np.rint(COLUMNS / 59 * 255)[..., None], 3, axis=-1),
    ),
    "avif": (encode(IMAGE, "AVIF"), None),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_decoded_by_pillow(kind: str) -> None:
    encoded, expected = OTHERS[kind]
    np.testing.assert_array_equal(decode(encoded), shown(encoded) if expected is None else expected)


def test_half_transparent_pixels_show_the_background() -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[...] = (200, 0, 0, 128)
    for kind in ("PNG", "WEBP"):
        encoded = encode(Image.fromarray(rgba), kind, **({"lossless": True} if kind == "WEBP" else {}))
        assert decode(encoded)[0, 0].tolist() == [227, 127, 127]
        assert decode(encoded, (0, 100, 0))[0, 0].tolist() == [100, 50, 0]


BAD = {
    "nothing": (b"", "an empty file"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
    "macos": (b"\0\5\26\7\0\2\0\0Mac OS X        " + bytes(100), "data of macOS"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
    "truncated": (PLAIN[: len(PLAIN) // 2], "truncated"),
    "start of a JPEG": (PLAIN[:7], "truncated"),
    "start of a PNG": (b"\x89PNG\r\n\x1a\n\0", "PNG"),
    "text": (b"no image at all", "no image of a known kind"),
    "script": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known kind"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_image_says_what_it_is(kind: str) -> None:
    content, words = BAD[kind]
    assert words.lower() in decoding.why_undecodable(content).lower()
    with pytest.raises(REFUSED):
        decode(content)
    with pytest.raises(DataError, match=r"got an image that cannot be decoded \(.*\), expected a JPEG, PNG, WebP"):
        image_files.read(content, size=8, crop="center")


def test_heic_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    decoding.pillow_images._heif.cache_clear()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    content = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50)
    assert "pip install pillow-heif" in decoding.why_undecodable(content)
    decoding.pillow_images._heif.cache_clear()


def bombs() -> dict[str, bytes]:
    """Small files of 30,000 x 30,000 pixels."""
    row = zlib.compress(bytes(3_751) * 300)  # of black and white; the rest is missing
    size = struct.pack(">II", 30_000, 30_000)
    png = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", size + bytes([8, 2, 0, 0, 0])) + png_chunk(b"IDAT", row)
    at = PLAIN.index(b"\xff\xc0") + 5
    jpeg = PLAIN[:at] + struct.pack(">HH", 30_000, 30_000) + PLAIN[at + 4 :]
    gif = encode(IMAGE.quantize(16), "GIF")
    bmp = encode(IMAGE, "BMP")
    return {
        "png": png + png_chunk(b"IEND", b""),
        "jpeg": jpeg,
        "gif": gif[:6] + struct.pack("<HH", 30_000, 30_000) + gif[10:],
        "bmp": bmp[:18] + struct.pack("<II", 30_000, 30_000) + bmp[26:],
    }


@pytest.mark.parametrize("kind", bombs())
def test_images_that_would_fill_the_memory_are_refused(kind: str) -> None:
    content = bombs()[kind]
    with pytest.raises(REFUSED):
        decode(content)
    assert decoding.why_undecodable(content)


def test_training_evaluation_and_prediction_turn_alike() -> None:
    spec = DataSpec(name="folder", image_size=40, pad_crop=0, flip=False)
    key = tf.constant([1, 2], tf.int64)
    upright = image_ops.eval_crop(tf.constant(shown(JPEGS["turned_6"])), 40)
    trained = augment.train_image(tf.constant(JPEGS["turned_6"]), key, spec)
    np.testing.assert_array_equal(trained, upright)
    np.testing.assert_array_equal(image_files.read(JPEGS["turned_6"], size=40, crop="center"), upright)
    cropped = image_ops.random_resized_crop(tf.constant(JPEGS["turned_6"]), key, 40, 0.3).numpy()
    expected = image_ops.random_resized_crop_of(tf.constant(shown(JPEGS["turned_6"])), key, 40, 0.3).numpy()
    np.testing.assert_array_equal(cropped, expected)


def test_a_folder_of_all_kinds_is_trained_on_and_bad_files_are_explained(tmp_path: pathlib.Path) -> None:
    files = [*JPEGS.values(), *(content for content, _ in (*PNGS.values(), *OTHERS.values()))]
    for number, content in enumerate(files):
        place = tmp_path / "train" / "ab"[number % 2] / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    for name in "ab":
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "test" / name / "bad.jpg").write_bytes(BAD["html"][0])
    spec = DataSpec(name="folder", dir=str(tmp_path), image_size=16, pad_crop=0, crop_min_area=0.5)
    batches = pipeline.train_batches(sources.load(spec, "train"), spec, batch_size=len(files), seed=0, start_step=0)
    (batch,) = itertools.islice(batches, 1)
    assert batch["image"].any(axis=(1, 2, 3)).all() and set(batch["label"]) == {0, 1}
    message = r"test/a/bad\.jpg: got an image that cannot be decoded \(an HTML page\)"
    with pytest.raises(DataError, match=message):
        next(pipeline.eval_batches(sources.load(spec, "test"), spec, batch_size=2))
