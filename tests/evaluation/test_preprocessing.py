import dataclasses
import io
import json

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from skipnet_jax import specs
from skipnet_jax.data import pipeline, sources, statistics
from skipnet_jax.errors import DataError
from skipnet_jax.evaluation import preprocessing
from skipnet_jax.evaluation.preprocessing import Preprocessing
from skipnet_jax.training import mixing

GIVEN = Preprocessing("skip_resnet20", 16, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), ("cat", "Köter", "猫"))


def photo(height, width, seed=0):
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def encoded(image, kind="png"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_comes_back_from_json():
    text = GIVEN.to_json()
    assert Preprocessing.from_json(text) == Preprocessing.from_json(text.encode()) == GIVEN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 0}, "got image_size=0"),
        ({"image_size": "16"}, "got image_size='16'"),
        ({"image_size": True}, "got image_size=True"),
        ({"mean": [0.1, 0.2]}, r"got mean=\(0.1, 0.2\), expected three numbers"),
        ({"mean": 0.1}, "got mean=0.1"),
        ({"mean": [0.1, 0.2, float("nan")]}, "got mean"),
        ({"std": [0.1, 0.2, 0.0]}, "expected three numbers above 0"),
        ({"class_names": ["one"]}, "expected two names or more"),
        ({"class_names": ["one", 2]}, "expected two names or more"),
        ({"class_names": "cats"}, "expected two names or more"),
        ({"crop": "centre"}, "got crop='centre', expected one of center, whole"),
        ({"model": ""}, "expected the name of a network"),
        ({"colour": "RGB"}, "got class_names, colour, crop"),
    ],
)
def test_other_json_is_refused(change, message):
    content = json.loads(GIVEN.to_json()) | change
    with pytest.raises(ValueError, match=f"preprocessing.json: .*{message}"):
        Preprocessing.from_json(json.dumps(content))


@pytest.mark.parametrize("text", ["", "{", b"\xff\xfe", "[]", "{}", "3"])
def test_what_is_no_such_json_is_refused(text):
    with pytest.raises(ValueError, match=r"preprocessing\.json: got .*, expected .* Export the network again"):
        Preprocessing.from_json(text)


def test_a_missing_field_is_named():
    content = json.loads(GIVEN.to_json())
    del content["std"]
    with pytest.raises(ValueError, match=r"got class_names, crop, image_size, mean, model, expected .* std"):
        Preprocessing.from_json(json.dumps(content))


def test_that_of_the_digits_is_that_of_their_source():
    data = specs.DataSpec(name="digits", image_size=8, pad_crop=0)
    source = sources.load(data, "test")
    made = Preprocessing.of_data("resnet20", data, source.class_names)
    assert (made.mean, made.std, made.class_names) == (
        source.statistics.mean,
        source.statistics.std,
        source.class_names,
    )
    assert (made.image_size, made.crop) == (8, "whole")


def test_what_is_not_measured_is_normalised_as_imagenet():
    data = specs.DataSpec(name="folder", image_size=64, pad_crop=0)
    made = Preprocessing.of_data("resnet50", data, ("a", "b"))
    assert (made.mean, made.std, made.crop) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "center")
    assert statistics.of_data("cifar10/3.0.2") == statistics.of_data("cifar10") != statistics.of_data("cifar100")


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("size", [24, 384])
def test_a_file_has_the_pixels_that_evaluation_gives(tmp_path, kind, size):
    for number, shape in enumerate([(50, 70), (61, 40)]):
        (tmp_path / "test" / str(number)).mkdir(parents=True)
        photo(*shape, seed=number).save(tmp_path / "test" / str(number) / f"image.{kind}")
    data = specs.DataSpec(name="folder", dir=str(tmp_path), image_size=size, pad_crop=0)
    source = sources.load(data, "test")
    [batch] = pipeline.eval_batches(source, data, batch_size=2)
    made = Preprocessing.of_data("resnet50", data, source.class_names)
    loaded = np.stack([preprocessing.load_image(path, made) for path in source.paths])
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, batch["image"])


def test_bytes_and_any_kind_of_path_are_the_same(tmp_path):
    file = tmp_path / "image.png"
    photo(30, 20).save(file)
    images = [preprocessing.load_image(image, GIVEN) for image in (file, str(file), file.read_bytes())]
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])


@pytest.mark.parametrize("size", [8, 16, 12])
def test_data_sets_in_memory_show_the_whole_image(size):
    """As `sources.load` resizes them; and what is not square is cut to its centre."""
    whole = dataclasses.replace(GIVEN, image_size=size, crop="whole")
    pixels = np.asarray(photo(16, 16))
    from skipnet_jax.data import image_ops

    shown = preprocessing.load_image(encoded(photo(16, 16)), whole)
    np.testing.assert_array_equal(shown, image_ops.resize(pixels[None], size)[0])
    wide = np.concatenate([np.zeros((16, 5, 3), np.uint8), pixels, np.zeros((16, 6, 3), np.uint8)], axis=1)
    np.testing.assert_array_equal(preprocessing.load_image(encoded(PIL.Image.fromarray(wide)), whole), shown)


def test_grey_and_transparent_images_become_rgb():
    grey = preprocessing.load_image(encoded(photo(20, 20).convert("L")), GIVEN)
    assert grey.shape == (16, 16, 3) and (grey[..., :1] == grey).all()
    assert preprocessing.load_image(encoded(photo(20, 20).convert("RGBA")), GIVEN).shape == (16, 16, 3)


def test_a_file_that_is_no_image_is_named(tmp_path):
    whole = encoded(photo(30, 30), "jpeg")
    for name, content in {"text.png": b"no image", "empty.jpg": b"", "cut.jpg": whole[: len(whole) // 2]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: got an image that cannot be decoded"):
            preprocessing.load_image(tmp_path / name, GIVEN)
    with pytest.raises(DataError, match="an image of 8 bytes: got an image that cannot be decoded"):
        preprocessing.load_image(b"no image", GIVEN)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.png: got no such file"):
        preprocessing.load_image(tmp_path / "none.png", GIVEN)
    with pytest.raises(DataError, match="cannot be read"):
        preprocessing.load_image(tmp_path, GIVEN)


def test_animations_are_refused():
    file = io.BytesIO()
    photo(9, 9).save(file, "gif", save_all=True, append_images=[photo(9, 9, seed=1)])
    with pytest.raises(DataError, match="cannot be decoded"):
        preprocessing.load_image(file.getvalue(), GIVEN)


def test_normalises_as_the_device_does_in_evaluation():
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 3), np.uint8)
    expected = mixing.normalize(jnp.asarray(images), GIVEN.mean, GIVEN.std, jnp.float32)
    normalized = preprocessing.normalize(images, GIVEN)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized, expected, rtol=0, atol=1e-6)
