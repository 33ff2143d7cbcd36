"""Any data set of TensorFlow Datasets: real builders with made-up examples, one's own, and those of another kind."""

import dataclasses
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from skipnet_jax.data import image_files, pipeline, sources, tfds_builders, tfds_sources
from skipnet_jax.data.in_memory import InMemory
from skipnet_jax.data.shards import Shards
from skipnet_jax.errors import DataError, UserError
from skipnet_jax.specs import DataSpec
from tests.data import made_tfds


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfds_builders, "_why_unreachable", lambda url: pytest.fail("asked the network"))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    path = tmp_path_factory.mktemp("own")
    made_tfds.own(path, num_shards=3)
    return DataSpec(name="own", dir=str(path), image_size=8, label_key="one", pad_crop=0)


def _evaluated(spec: DataSpec, split: str = "test") -> tuple[np.ndarray, np.ndarray]:
    """The images of a split, as evaluation shows them, and their labels."""
    batches = list(pipeline.eval_batches(sources.load(spec, split), spec, batch_size=16))
    images, labels, mask = (np.concatenate([batch[key] for batch in batches]) for key in ("image", "label", "mask"))
    return images[mask], labels[mask]


def _numbers(split: InMemory) -> list[int]:
    """The first pixel of each image, which says which one it is."""
    return sorted(split.images[:, 0, 0, 0].tolist())


@pytest.mark.parametrize(
    ("name", "sizes", "judge", "test", "classes", "small"),
    [
        ("fashion_mnist", {"train": 9, "test": 5}, None, ("test", 5), 10, True),
        ("oxford_flowers102", {"train": 5, "validation": 4, "test": 3}, ("validation", 4), ("test", 3), 102, False),
        pytest.param(
            "food101",
            {"train": 6, "validation": 4},
            None,
            ("validation (there are no test images)", 4),
            101,
            False,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "imagenette/160px-v2",
            {"train": 5, "validation": 4},
            None,
            ("validation (", 4),
            10,
            False,
            marks=pytest.mark.slow,
        ),
        ("patch_camelyon", {"train": 5, "validation": 4, "test": 3}, ("validation", 4), ("test", 3), 2, True),
        ("smallnorb", {"train": 5, "test": 3}, None, ("test (image, label_category)", 3), 5, True),  # grey; other keys
        pytest.param(
            "wake_vision",
            {"train_large": 3, "train": 5, "test": 3},
            None,
            ("test (image, person)", 3),
            2,
            False,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "places365_small",
            {"train": 4, "validation": 2},
            None,
            ("validation (", 2),
            365,
            False,
            marks=pytest.mark.slow,
        ),  # three such keys
        pytest.param(
            "dtd",
            {"train": 5, "validation": 4, "test": 3},
            ("validation", 4),
            ("test", 3),
            47,
            False,
            marks=pytest.mark.slow,
        ),  # names no keys
    ],
)
def test_real_builders_train_and_are_evaluated(
    name: str,
    sizes: dict[str, int],
    judge: tuple[str, int] | None,
    test: tuple[str, int],
    classes: int,
    small: bool,
    tmp_path: pathlib.Path,
) -> None:
    made_tfds.prepare(tmp_path, name, sizes)
    builder = tfds.builder(name, data_dir=tmp_path)
    side = builder.info.features["image"].shape[0] or 16
    spec = DataSpec(name=name, dir=str(tmp_path), image_size=side, pad_crop=0)
    train, tested, held_out = sources.load(spec, "train"), sources.load(spec, "test"), sources.load_holdout(spec)
    assert (train.num_examples, train.num_classes, train.place.split()[0]) == (sizes["train"], classes, "train")
    assert tested.place.startswith(test[0]) and tested.num_examples == test[1]
    assert (None if held_out is None else (held_out.place, held_out.num_examples)) == judge
    assert isinstance(tested, InMemory) == small and tested.crop == ("whole" if small else "center")
    batch = next(pipeline.train_batches(train, spec, batch_size=sizes["train"], seed=0, start_step=0))
    (_, key, *_) = builder.info.supervised_keys or ("image", "label")
    expected = {split: list(tfds.as_numpy(builder.as_dataset(split=split))) for split in ("train", test[0].split()[0])}
    assert sorted(batch["label"]) == sorted(example[key] for example in expected["train"])
    images, labels = _evaluated(spec)
    told = expected[test[0].split()[0]]
    assert sorted(labels) == sorted(example[key] for example in told)
    if small:
        pixels = {np.broadcast_to(example["image"], (side, side, 3)).tobytes(): example[key] for example in told}
        assert [pixels[image.tobytes()] for image in images] == labels.tolist()


def test_without_test_images_the_output_says_how_to_divide(tmp_path: pathlib.Path) -> None:
    made_tfds.prepare(tmp_path, "eurosat", {"train": 20})
    spec = DataSpec(name="eurosat/rgb", dir=str(tmp_path), image_size=64)
    with pytest.raises(DataError, match=r"no test images: it has train \(20 images\).*data\.holdout=0\.1"):
        sources.load(spec, "test")
    divided = dataclasses.replace(spec, train_split="train[:90%]", test_split="train[90%:]")
    assert [sources.load(divided, split).num_examples for split in ("train", "test")] == [18, 2]
    kept = dataclasses.replace(spec, holdout="5")  # which then is tested too
    assert [sources.load(kept, split).num_examples for split in ("train", "holdout", "test")] == [15, 5, 5]
    assert sources.load(kept, "test").held_out and sources.load(kept, "train").num_classes == 10


def test_splits_go_by_the_language_of_tfds(own: DataSpec) -> None:
    builder = tfds.builder("own", data_dir=own.dir)
    for expression in ("train[:90%]", "validation+train[7:-20]", "train[1shard]"):
        found = sources.load(dataclasses.replace(own, test_split=expression), "test")
        expected = tfds.as_numpy(builder.as_dataset(split=expression))
        assert _numbers(found) == sorted(example["number"] for example in expected), expression
        assert found.place == f"{expression} (photo, one)"


@pytest.mark.parametrize(
    ("expression", "got"),
    [("trian", "'trian'"), ("train[", r"'train\['"), ("train[:5%", "'train"), ("train[9:9]", ".* selects no images")],
)
def test_unknown_splits_list_the_known_ones(own: DataSpec, expression: str, got: str) -> None:
    for field, split in (("train_split", "train"), ("test_split", "test"), ("holdout", "holdout")):
        spec = dataclasses.replace(own, **{field: expression})
        known = r"expected splits of own/1\.0\.0.*: train \(60 images\), validation \(20 images\)"
        with pytest.raises(UserError, match=rf"^data\.{field}: got {got}.*{known}"):
            sources.load(spec, split)


def test_a_hold_out_is_a_number_a_fraction_or_a_split(own: DataSpec) -> None:
    for text, train, held_out in (
        ("0.1", 54, 6),
        ("15", 45, 15),
        ("train[10:20]", 50, 10),
    ):
        spec = dataclasses.replace(own, holdout=text)
        kept, rest = sources.load_holdout(spec), sources.load(spec, "train")
        assert (rest.num_examples, kept.num_examples) == (train, held_out)
        assert sorted(_numbers(rest) + _numbers(kept)) == list(range(60)) and kept.held_out
        if text == "15":
            assert np.bincount(kept.labels).tolist() == [5, 5, 5]
    assert sources.load(spec, "test").num_examples == 20
    assert sources.load_holdout(dataclasses.replace(own, holdout="none")) is None


def test_validation_images_that_choose_do_not_test(own: DataSpec) -> None:
    spec = dataclasses.replace(own, holdout="validation")
    assert sources.load(spec, "train").num_examples == 60
    assert sources.load(spec, "test").held_out and sources.load(spec, "test").num_examples == 20


def test_no_image_has_two_uses(own: DataSpec) -> None:
    for changes, got in (
        ({"test_split": "train[90%:]"}, r"data\.test_split: got train\[90%:\], of which 6 images belong to train too"),
        ({"train_split": "all"}, r"data\.test_split: got validation.*20 images belong to all too"),
        ({"holdout": "validation[:5]"}, r"of which 5 images belong to validation\[:5\] too"),
        ({"train_split": "train+train[:9]"}, r"data\.train_split: got .*of which 9 images belong to train too"),
        ({"holdout": "train"}, r"data\.holdout: got 'train', which is all of train"),
    ):
        with pytest.raises(UserError, match=got):
            sources.load(dataclasses.replace(own, **changes), "train")
    assert sources.load(dataclasses.replace(own, test_split="train[90%:]"), "test").num_examples == 6  # evaluation may


@pytest.mark.parametrize(
    ("key", "names", "label"),
    [
        ("one", ("0", "1", "2"), lambda k: k % 3),
        ("two", ("even", "odd"), lambda k: k % 2),
        ("digit", ("1", "2", "3"), lambda k: k % 3),  # the number 1 is class 0
        ("word", ("a", "b", "c"), lambda k: k % 3),
        ("facts/odd", ("False", "True"), lambda k: k % 2),
    ],
)
def test_labels_are_numbers_texts_or_yes_and_no(own: DataSpec, key: str, names: tuple, label) -> None:
    image_key = "raw" if key in ("one", "word") else "photo"
    split = sources.load(dataclasses.replace(own, label_key=key, image_key=image_key, test_split="train[:20]"), "test")
    assert split.class_names == names
    numbers = split.images[:, 0, 0, 0].astype(int)
    assert split.labels.tolist() == [label(k) for k in numbers] and len(numbers) == 20


def test_a_label_that_is_no_class_is_refused(own: DataSpec) -> None:
    with pytest.raises(UserError, match=r"^data\.label_key: got 'number', which has 60 values in 60 images"):
        sources.load(dataclasses.replace(own, label_key="number"), "train")


def test_keys_are_asked_for_where_there_are_several(own: DataSpec) -> None:
    with pytest.raises(
        UserError, match=r"^data\.label_key: got nothing for own, expected one of its one or two\. Give"
    ):
        sources.load(dataclasses.replace(own, label_key=""), "train")
    with pytest.raises(
        UserError, match=r"^data\.label_key: got 'digits', which is none .* a class label of own: digit"
    ):
        sources.load(dataclasses.replace(own, label_key="digits"), "train")
    with pytest.raises(
        UserError, match=r"^data\.image_key: got 'one', which is ClassLabel.*: (photo or raw|raw or photo)"
    ):
        sources.load(dataclasses.replace(own, image_key="one"), "train")


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        ("coco", r"lacks a class label for each example: it has image \(Image.*objects \(Sequence"),
        ("imdb_reviews", r"lacks an image for each example: it has label \(ClassLabel\), text \(Text\), expected"),
        ("binarized_mnist", r"lacks a class label for each example: it has image"),
        ("bigearthnet", r"for training, whose labels may list several classes, expected a data set with one label"),
        ("div2k", r"lacks a class label for each example: it has hr \(Image.*, lr \(Image"),
        ("titanic", r"lacks an image for each example"),  # its supervised keys are no names
        ("ucf101", r"lacks an image for each example: it has .*video \(Video"),
    ],
)
def test_other_kinds_are_refused_before_any_download(name: str, lacks: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=rf"^data\.name: got {name}.*{lacks}"):
        sources.require_available(DataSpec(name=name, dir=str(tmp_path)), to_train=True)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_tfds_has_prepared_needs_no_name(own: DataSpec) -> None:
    named = sources.load(own, "train")
    for place in ("own/1.0.0", "own", ""):
        spec = dataclasses.replace(own, name="tfds", dir=f"{own.dir}/{place}")
        found = sources.load(spec, "train")
        assert found.name == "own/1.0.0"
        np.testing.assert_array_equal(found.images, named.images)
    prepared = dataclasses.replace(own, dir=f"{own.dir}/own/1.0.0")
    assert sources.load(prepared, "test").num_examples == 20
    with pytest.raises(
        UserError, match=r"^data\.dir: got .*own/1\.0\.0, which holds own, expected cifar10, or the folder"
    ):
        sources.load(dataclasses.replace(prepared, name="cifar10"), "test")
    with pytest.raises(DataError, match=r"got no dataset_info\.json, expected a folder that TensorFlow Datasets has"):
        sources.load(dataclasses.replace(prepared, name="tfds", dir=str(pathlib.Path(__file__).parent)), "test")


def test_a_data_set_that_needs_more_packages_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def lack(name: str, data_dir: str | None) -> None:
        raise ModuleNotFoundError("No module named 'pandas'", name="pandas")

    monkeypatch.setattr(tfds, "builder", lack)
    with pytest.raises(DataError, match=r"^qm9: got No module named 'pandas' while opening it.*pip install pandas"):
        sources.require_available(DataSpec(name="qm9"))


def test_near_names_and_known_versions_are_told(own: DataSpec) -> None:
    with pytest.raises(UserError, match=r"got 'owm', expected one of own, "):  # lies in data.dir
        sources.require_available(dataclasses.replace(own, name="owm"))
    with pytest.raises(UserError, match=r"got 'oxford_flowers', expected one of oxford_flowers102"):
        sources.require_available(DataSpec(name="oxford_flowers"))
    with pytest.raises(UserError, match=r"got 'cifar10:9\.9\.9', expected version 3\.0\.2"):
        sources.require_available(DataSpec(name="cifar10:9.9.9", dir=own.dir))
    assert sources.load(dataclasses.replace(own, name="own:1.0.0"), "test").num_examples == 20
    with pytest.raises(UserError, match=r"got 'own:2\.0\.0'"):
        sources.load(dataclasses.replace(own, name="own:2.0.0"), "test")


def test_images_that_do_not_fit_into_memory_are_shown_whole_from_shards(
    own: DataSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = dataclasses.replace(own, image_size=12)
    images, labels = _evaluated(spec)
    monkeypatch.setattr(tfds_sources, "_IN_MEMORY", 0)
    assert isinstance(sources.load(spec, "test"), Shards)
    shown, told = _evaluated(spec)
    assert sorted(map(bytes, images)) == sorted(map(bytes, shown)) and sorted(labels) == sorted(told)
    train = dataclasses.replace(spec, flip=False, train_split="validation", test_split="train")
    batch = next(pipeline.train_batches(sources.load(train, "train"), train, batch_size=20, seed=0, start_step=0))
    assert sorted(map(bytes, batch["image"])) == sorted(map(bytes, images))


def test_every_host_reads_its_share_of_shards(own: DataSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfds_sources, "_IN_MEMORY", 0)
    spec = dataclasses.replace(own, holdout="0.1")
    for split, count in (("train", 54), ("holdout", 6)):
        found = sources.load(spec, split)
        hosts = [
            [*pipeline.eval_batches(found, spec, batch_size=16, process_index=host, process_count=2)] for host in (0, 1)
        ]
        seen = [int(image[0, 0, 0]) for batches in hosts for b in batches for image in b["image"][b["mask"]]]
        assert len(seen) == len(set(seen)) == count


def test_unshuffled_records_need_a_split_to_hold_out(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made_tfds.own(tmp_path, shuffled=False)
    spec = DataSpec(name="own", dir=str(tmp_path), image_size=8, label_key="one", holdout="0.1")
    assert sources.load_holdout(spec).num_examples == 6  # in memory any are taken
    monkeypatch.setattr(tfds_sources, "_IN_MEMORY", 0)
    with pytest.raises(UserError, match=r"^data\.holdout: got a number for own/1\.0\.0, which is not shuffled"):
        sources.load_holdout(spec)
    assert sources.load(dataclasses.replace(spec, holdout="train[:6]"), "train").num_examples == 54
    assert "is not shuffled" in caplog.text


def test_test_images_without_labels_are_passed_over(tmp_path: pathlib.Path) -> None:
    """As ImageNet's, since TensorFlow Datasets takes them up if their archive is there."""
    features = {
        "image": tfds.features.Image(shape=(8, 8, 3)),
        "label": tfds.features.ClassLabel(names=["a", "b"]),
    }
    image = np.zeros((8, 8, 3), np.uint8)
    splits = {
        split: [{"image": image, "label": k % 2 if split != "test" else -1} for k in range(count)]
        for split, count in (("train", 8), ("validation", 4), ("test", 5))
    }
    made_tfds.store(tmp_path, "own", features, splits)
    spec = DataSpec(name="own", dir=str(tmp_path), image_size=8)
    test = sources.load(spec, "test")
    assert (test.num_examples, test.place) == (4, "validation (the images of test have no labels)")
    assert sources.load_holdout(spec) is None
    with pytest.raises(DataError, match=r"label -1 among test, expected 0\.\.1"):
        sources.load(dataclasses.replace(spec, test_split="test"), "test")


def test_the_name_alone_tells_how_published_data_are_shown() -> None:
    names = ("digits", "cifar10:3.0.2", "fashion_mnist", "imagenet2012", "own", "imagenet_v2/topimages:3.0.0", "tfds")
    assert [image_files.crop_of(name) for name in names] == ["whole"] * 3 + ["center"] * 4
