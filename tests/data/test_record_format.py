"""Shards as others write them: keys, kinds of labels and compression are found, or refused with what was found."""

import gzip
import io
import pathlib
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from skipnet_jax.data import pipeline, record_format, shard_checker, sources, storage
from skipnet_jax.errors import DataError, UserError
from skipnet_jax.specs import DataSpec
from tests.data import made_images

SIDE = 12


def pixels(number: int) -> np.ndarray:
    """A flat colour, which even JPEG keeps."""
    return np.full((SIDE, SIDE, 3), (20 * number + 10, 100, 200 - 20 * number), np.uint8)


def jpeg(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(number)).save(file, "JPEG", quality=95)
    return file.getvalue()


def feature(value: object) -> tf.train.Feature:
    values = value if isinstance(value, list) else [value]
    if isinstance(values[0], bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    if isinstance(values[0], float):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def example(**values: object) -> bytes:
    features = {key.replace("__", "/"): feature(value) for key, value in values.items()}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def write(folder: pathlib.Path, records: list[bytes], compression: str = "") -> pathlib.Path:
    folder.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / "train-0"), tf.io.TFRecordOptions(compression)) as writer:
        for record in records:
            writer.write(record)
    return folder


def describe(folder: pathlib.Path, *, label_offset: int = 0, class_names=(), image_key: str = "", label_key: str = ""):
    return shard_checker.describe(
        str(folder),
        {"train": "train-*"},
        name="theirs",
        label_offset=label_offset,
        class_names=class_names,
        image_key=image_key,
        label_key=label_key,
        threads=1,
        advance=lambda records: None,
    )


def read(folder: pathlib.Path) -> tuple[list[int], np.ndarray]:
    """The labels and the middle pixels as evaluation sees them, once the check has found nothing wrong."""
    assert shard_checker.check(str(folder), threads=1, advance=lambda records: None)[1] == []
    spec = DataSpec(name="tfrecords", dir=str(folder), image_size=SIDE, eval_crop=1.0, pad_crop=0)
    split = sources.load(spec, "train")
    (batch,) = pipeline.eval_batches(split, spec, batch_size=split.num_examples)
    return batch["label"].tolist(), batch["image"][:, SIDE // 2, SIDE // 2]


LABELS = [2, 0, 1, 1]
SLIM = [
    example(
        image__encoded=jpeg(k),
        image__class__label=k + 1,
        image__filename=b"x.jpg",
        image__format=b"JPEG",
        image__class__synset=b"n0",
        image__height=SIDE,
        image__width=SIDE,
        image__object__bbox__label=[k + 1],
    )
    for k in LABELS
]
WRITERS = {
    "tfds": [example(image=jpeg(k), label=k, file_name=b"x.jpg") for k in LABELS],
    "float": [example(image__encoded=jpeg(k), image__class__label=float(k)) for k in LABELS],
    "digits": [example(image__encoded=jpeg(k), image__class__label=str(k).encode()) for k in LABELS],
    "raw": [example(image_raw=pixels(k).tobytes(), label=k, height=SIDE, width=SIDE, depth=3) for k in LABELS],
    "rows": [example(data=pixels(k).tobytes(), targetLabel=k, rows=SIDE, cols=SIDE) for k in LABELS],
    "png": [example(jpeg=made_images.encode(k, side=SIDE, kind="PNG"), cls=k, score=0.5) for k in LABELS],
    "two_labels": [example(jpg=jpeg(k), label=k, coarse_label=k // 2, id=7 * k) for k in LABELS],
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_keys_of_other_writers_are_found(tmp_path, name):
    index = describe(write(tmp_path / name, WRITERS[name]))
    assert index.class_names == ("0", "1", "2")
    labels, middles = read(tmp_path / name)
    assert labels == LABELS
    if name == "png":
        wanted = [np.asarray(Image.open(io.BytesIO(made_images.encode(k, side=SIDE, kind="PNG")))) for k in LABELS]
        np.testing.assert_array_equal(middles, [image[SIDE // 2, SIDE // 2] for image in wanted])
    else:
        np.testing.assert_allclose(middles, [pixels(k)[0, 0] for k in LABELS], atol=0 if name in ("raw", "rows") else 3)


def test_grey_raw_pixels_become_three_equal_channels(tmp_path):
    grey = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)
    write(
        tmp_path / "grey", [example(image_raw=(grey + k).tobytes(), label=k, height=SIDE, width=SIDE) for k in (0, 1)]
    )
    describe(tmp_path / "grey")
    _, middles = read(tmp_path / "grey")
    np.testing.assert_array_equal(middles, np.repeat([[grey[6, 6]], [grey[6, 6] + 1]], 3, axis=1))


@pytest.mark.parametrize("compression", ["GZIP", "ZLIB"])
def test_compressed_shards_are_recognised_by_their_first_bytes(tmp_path, compression):
    folder = write(tmp_path / "slim", SLIM, compression)
    index = describe(folder, label_offset=1)
    assert [shard.compression for shard in index.splits["train"]] == [compression]
    assert read(folder)[0] == LABELS
    whole = (folder / "train-0").read_bytes()
    (folder / "train-0").write_bytes(whole[: len(whole) // 2])
    problems = shard_checker.check(str(folder), threads=1, advance=lambda records: None)[1]
    assert any("bytes, expected" in problem for problem in problems) and any("damaged" in line for line in problems)


def test_a_plain_shard_is_not_taken_for_a_compressed_one(tmp_path):
    """The length of its first record begins with the bytes that begin a compressed file."""
    for start in (b"\x1f\x8b\x08", b"\x78\x9c", b"\x78\x01"):
        path = write(tmp_path / "plain", [bytes(int.from_bytes(start, "little"))]) / "train-0"
        assert path.read_bytes().startswith(start)
        assert storage.compression_of(str(path)) == ""


def test_joined_gzip_files_are_read_to_the_end(tmp_path):
    path = tmp_path / "joined"
    content = np.random.default_rng(0).bytes(3_000_000)
    path.write_bytes(gzip.compress(content) + gzip.compress(b"and the rest"))
    with storage.decompressed(str(path), storage.compression_of(str(path))) as plain:
        assert pathlib.Path(plain).read_bytes() == content + b"and the rest"
    path.write_bytes(zlib.compress(bytes(5_000_000)))
    with storage.decompressed(str(path), storage.compression_of(str(path))) as plain:
        assert pathlib.Path(plain).read_bytes() == bytes(5_000_000)


def test_labels_in_words_name_the_classes(tmp_path):
    names = ("red fish", "blue", "grün")
    records = [example(image=jpeg(k), label=names[k].encode()) for k in LABELS]
    index = describe(write(tmp_path / "words", records))
    assert index.class_names == tuple(sorted(names))
    assert read(tmp_path / "words")[0] == [sorted(names).index(names[k]) for k in LABELS]
    index = describe(write(tmp_path / "named", records), class_names=names)
    assert read(tmp_path / "named")[0] == LABELS
    with pytest.raises(DataError, match=r"not among the class names: blue, expected some of red fish, green"):
        describe(write(tmp_path / "fewer", records[2:]), class_names=("red fish", "green"))
    with pytest.raises(UserError, match="label_offset: got 1, but the labels are words"):
        describe(write(tmp_path / "offset", records), label_offset=1)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (
            example(image__encoded=jpeg(1), image__class__text=b"red"),
            r"got the keys image/class/text \(bytes\), image/encoded \(bytes\), expected a label too",
        ),
        (example(label=1, text=b"no image"), r"the keys label \(whole number\), text \(bytes\), expected one image"),
        (example(image_raw=pixels(1).tobytes(), label=1), "raw pixels .* with height and width"),
        (example(left=jpeg(1), right=jpeg(2), label=1), "images in left and in right.*image_key=left"),
        (example(image=jpeg(1), fine_label=1, coarse_label=0), "labels in coarse_label and in fine_label"),
        (example(image=jpeg(1), label=[0.0, 1.0]), r"label \(2 x float\)"),
        (example(image=jpeg(1), label=0.5), "label 0.5, expected a whole number"),
        (example(image=jpeg(1), label=float("inf")), "label inf, expected a whole number"),
        (b"no example", r"record 0: got no tf\.Example"),
    ],
    # Records themselves would not do: the order of their keys differs between processes.
    ids=[
        "no label",
        "no image",
        "no sides",
        "two images",
        "two labels",
        "two numbers",
        "half",
        "infinite",
        "no example",
    ],
)
def test_what_is_missing_is_said_with_the_keys_that_are_there(tmp_path, record, words):
    with pytest.raises(DataError, match=words):
        describe(write(tmp_path / "other", [record] * 2))
    assert not (tmp_path / "other" / "dataset.json").exists()


def test_the_user_names_keys_that_are_not_found(tmp_path):
    records = [example(left=jpeg(k), right=jpeg(3 + k), species=k, label=0) for k in LABELS]
    folder = write(tmp_path / "pairs", records)
    describe(folder, image_key="right", label_key="species")
    labels, middles = read(folder)
    assert labels == LABELS
    np.testing.assert_allclose(middles, [pixels(3 + k)[0, 0] for k in LABELS], atol=3)
    (folder / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"^image_key: got 'up', but .* has the keys label \(whole number\), left"):
        describe(folder, image_key="up")
    with pytest.raises(UserError, match=r"^label_key: got 'kind', but"):
        describe(folder, image_key="left", label_key="kind")
    with pytest.raises(UserError, match=r"^image_key: got 'label', which holds no image"):
        describe(folder, image_key="label")


def test_a_record_that_differs_from_the_first_ones_is_named(tmp_path):
    records = [example(image=jpeg(0), label=k % 2) for k in range(record_format.LOOKED_AT)]
    folder = write(tmp_path / "mixed", [*records, example(image=jpeg(0), other=1)])
    with pytest.raises(DataError, match=r"train-0, record 8: got no tf\.Example with image and label"):
        describe(folder)
    raw = [example(raw=pixels(0).tobytes(), label=k % 2, height=SIDE, width=SIDE) for k in range(8)]
    folder = write(tmp_path / "short", [*raw, example(raw=b"123", label=1, height=SIDE, width=SIDE)])
    with pytest.raises(DataError, match=r"train-0, record 8: .*as many pixels as height x width"):
        describe(folder)
