import dataclasses
import io
import json

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from skipnet_jax import specs
from skipnet_jax.data import image_ops, pipeline, sources
from skipnet_jax.errors import DataError, UserError
from skipnet_jax.evaluation import preprocessing
from skipnet_jax.evaluation.preprocessing import Preprocessing
from skipnet_jax.specs import DataSpec
from skipnet_jax.training import mixing

STATISTICS = specs.Statistics((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
GIVEN = Preprocessing("skip_resnet20", 16, STATISTICS, ("cat", "Köter", "猫"))


def photo(height, width, seed=0):
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def encoded(image, kind="png"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_travels_as_json(tmp_path):
    file = tmp_path / "preprocessing.json"
    file.write_text(GIVEN.to_json())
    assert Preprocessing.read(file) == GIVEN
    assert list(json.loads(GIVEN.to_json())) == ["model", "image_size", "mean", "std", "class_names", "crop"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 0}, "got image_size=0, expected a number of pixels"),
        ({"image_size": True}, "got image_size=True"),
        ({"mean": [0.1, 0.2]}, r"got mean=\[0.1, 0.2\], expected three numbers"),
        ({"mean": [0.1, 0.2, float("nan")]}, "got mean"),
        ({"std": [0.1, 0.2, 0.0]}, "expected three numbers above 0"),
        ({"class_names": ["one"]}, "expected two names or more"),
        ({"class_names": ["one", 2]}, "got class_names"),
        ({"crop": "centre"}, "got crop='centre', expected one of center, whole"),
        ({"model": ""}, "expected the name of a network"),
        ({"colour": "RGB"}, "got colour='RGB', expected nothing but model, image_size"),
        (None, "got no valid JSON"),
    ],
)
def test_other_content_is_refused(tmp_path, change, message):
    file = tmp_path / "preprocessing.json"
    file.write_text("{" if change is None else json.dumps(json.loads(GIVEN.to_json()) | change))
    with pytest.raises(UserError, match=f"preprocessing.json: .*{message}.* Export the network again"):
        Preprocessing.read(file)


def test_data_sets_have_their_own_statistics_and_crops():
    digits = specs.DataSpec(name="digits", image_size=8, pad_crop=0)
    source = sources.load(digits, "test")
    made = Preprocessing.of_data("resnet20", digits, source.class_names)
    assert made == Preprocessing("resnet20", 8, source.statistics, source.class_names, "whole")
    made = Preprocessing.of_data("resnet50", specs.DataSpec(name="folder", image_size=64), ("a", "b"))
    assert (made.statistics.mean, made.statistics.std, made.crop) == (
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
        "center",
    )


@pytest.mark.parametrize(
    ("kind", "size", "settings"),
    [("png", 24, {}), ("jpeg", 384, {}), ("png", 24, {"eval_crop": 0.95, "interpolation": "bicubic"})],
)
def test_a_file_has_the_pixels_that_evaluation_gives(tmp_path, kind, size, settings):
    for number, shape in enumerate([(50, 70), (61, 40)]):
        (tmp_path / "test" / str(number)).mkdir(parents=True)
        photo(*shape, seed=number).save(tmp_path / "test" / str(number) / f"image.{kind}")
    data = specs.DataSpec(name="folder", dir=str(tmp_path), image_size=size, pad_crop=0, **settings)
    source = sources.load(data, "test")
    [batch] = pipeline.eval_batches(source, data, batch_size=2)
    made = Preprocessing.of_data("resnet50", data, source.class_names)
    loaded = np.stack([preprocessing.load_image(path, made) for path in source.paths])
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, batch["image"])


def test_a_share_and_a_filter_of_its_own_are_pillow_s(tmp_path):
    image = photo(120, 90)
    image.save(tmp_path / "image.png")
    given = dataclasses.replace(GIVEN, image_size=38, crop="center", crop_share=0.95, interpolation="bicubic")
    shown = preprocessing.load_image(tmp_path / "image.png", given).astype(int)
    whole = image.resize((40, 53) if image.width < image.height else (53, 40), PIL.Image.Resampling.BICUBIC)
    left, top = (round((side - 38) / 2) for side in whole.size)
    expected = np.asarray(whole.crop((left, top, left + 38, top + 38))).astype(int)
    assert np.abs(shown - expected).max() <= 2
    linear = preprocessing.load_image(tmp_path / "image.png", dataclasses.replace(given, interpolation="bilinear"))
    assert np.abs(shown - linear.astype(int)).max() > 2


def test_statistics_of_its_own_replace_the_data_set_s():
    own = specs.DataSpec(name="digits", image_size=8, pad_crop=0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    statistics = sources.load(own, "test").statistics
    assert statistics == Preprocessing.of_data("resnet20", own, ("a", "b")).statistics
    assert (statistics.mean, statistics.std) == (own.mean, own.std)


def test_bytes_and_any_kind_of_path_are_the_same(tmp_path):
    file = tmp_path / "image.png"
    photo(30, 20).save(file)
    images = [preprocessing.load_image(image, GIVEN) for image in (file, str(file), file.read_bytes())]
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])


@pytest.mark.parametrize("size", [8, 16])
def test_data_sets_in_memory_show_the_whole_image(size):
    """They are resized as in `sources.load`; of an image that is not square, the centre is shown."""
    whole = dataclasses.replace(GIVEN, image_size=size, crop="whole")
    pixels = np.asarray(photo(16, 16))
    shown = preprocessing.load_image(encoded(photo(16, 16)), whole)
    np.testing.assert_array_equal(shown, image_ops.resize(pixels[None], size)[0])
    wide = np.concatenate([np.zeros((16, 5, 3), np.uint8), pixels, np.zeros((16, 6, 3), np.uint8)], axis=1)
    np.testing.assert_array_equal(preprocessing.load_image(encoded(PIL.Image.fromarray(wide)), whole), shown)


def test_grey_and_transparent_images_become_rgb():
    grey = preprocessing.load_image(encoded(photo(20, 20).convert("L")), GIVEN)
    assert grey.shape == (16, 16, 3) and (grey[..., :1] == grey).all()
    assert preprocessing.load_image(encoded(photo(20, 20).convert("RGBA")), GIVEN).shape == (16, 16, 3)
    blank = encoded(PIL.Image.new("RGBA", (20, 20), (9, 9, 9, 0)))
    assert (preprocessing.load_image(blank, GIVEN) == 255).all()
    black = Preprocessing.of_data("resnet20", DataSpec(name="folder", image_size=16, background=(0, 0, 0)), ["a", "b"])
    assert not preprocessing.load_image(blank, black).any()


def test_a_background_travels_with_the_network(tmp_path):
    data = DataSpec(name="folder", image_size=16)
    for background in ((255, 255, 255), (0, 99, 0)):
        black = Preprocessing.of_data("resnet20", dataclasses.replace(data, background=background), ["a", "b"])
        (tmp_path / "file").write_text(black.to_json())
        assert Preprocessing.read(tmp_path / "file") == black
        assert ("background" in black.to_json()) == (background != (255, 255, 255))


def test_a_file_that_is_no_image_is_named(tmp_path):
    whole = encoded(photo(30, 30), "jpeg")
    contents = {
        "text.png": b"no image",
        "empty.jpg": b"",
        "cut.jpg": whole[: len(whole) // 2],
        "page.jpg": b"<!DOCTYPE html>",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: got an image that cannot be decoded"):
            preprocessing.load_image(tmp_path / name, GIVEN)
    with pytest.raises(DataError, match="an image of 8 bytes: got an image that cannot be decoded"):
        preprocessing.load_image(b"no image", GIVEN)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(DataError, match=path.name):
            preprocessing.load_image(path, GIVEN)


def test_normalises_as_the_device_does_in_evaluation():
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 3), np.uint8)
    expected = mixing.normalize_images(jnp.asarray(images), STATISTICS, jnp.float32)
    normalized = preprocessing.normalize(images, STATISTICS)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized, expected, rtol=0, atol=1e-6)
