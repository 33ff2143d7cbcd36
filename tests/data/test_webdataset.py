"""WebDataset's tars: the same images and classes as in folders, in an order of the seed and the step alone."""

import json
import os
import pathlib

import numpy as np
import pytest

from skipnet_jax.command import shards as program
from skipnet_jax.data import pipeline, sources, tars, webdataset
from skipnet_jax.errors import DataError, UserError
from skipnet_jax.specs import DataSpec
from tests.data import made_images


def samples(first: int, count: int, label=lambda k: {"cls": str(k % 3).encode()}) -> dict[str, bytes]:
    """Files of samples, whose image is another one for each number."""
    files: dict[str, bytes] = {}
    for k in range(first, first + count):
        files |= {f"{k:06d}.{kind}": content for kind, content in label(k).items()}
        files[f"{k:06d}.jpg"] = made_images.encode(k)
    return files


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    for number in range(3):
        (tmp_path / f"pets-train-{number:06d}.tar").write_bytes(made_images.tar(samples(8 * number, 8)))
    (tmp_path / "pets-val-000000.tar").write_bytes(made_images.tar(samples(100, 6)))
    return tmp_path


def spec_of(folder: pathlib.Path, **changes: object) -> DataSpec:
    return DataSpec(name="webdataset", dir=str(folder), image_size=8, pad_crop=0, **changes)


def take(split, spec: DataSpec, steps: int, start: int = 0, hosts: int = 1) -> list[dict[str, np.ndarray]]:
    readers = [
        pipeline.train_batches(
            split, spec, batch_size=8, seed=3, start_step=start, process_index=host, process_count=hosts
        )
        for host in range(hosts)
    ]
    parts = [[next(reader) for reader in readers] for _ in range(steps)]
    return [{key: np.concatenate([part[key] for part in batch]) for key in batch[0]} for batch in parts]


def test_samples_are_read_as_the_images_that_they_are(folder):
    spec = spec_of(folder)
    train, test = sources.load(spec, "train"), sources.load(spec, "test")
    assert (train.num_examples, test.num_examples, train.class_names) == (24, 6, ("0", "1", "2"))
    assert train.labels.tolist() == [k % 3 for k in range(24)]
    assert [train.listing.read(k) for k in range(24)] == [made_images.encode(k) for k in range(24)]
    (batch,) = pipeline.eval_batches(test, spec, batch_size=6)
    assert batch["label"].tolist() == [k % 3 for k in range(100, 106)]
    assert test.describe(1) == f"{folder}/pets-val-000000.tar/000101.jpg"


def test_the_order_is_a_function_of_the_seed_and_the_step(folder):
    spec = spec_of(folder)
    split = sources.load(spec, "train")
    whole = take(split, spec, 6)
    for resumed in (take(split, spec, 4, start=2), take(split, spec, 4, start=2, hosts=2)):
        for batch, other in zip(whole[2:], resumed, strict=True):
            for key in batch:
                np.testing.assert_array_equal(batch[key], other[key])
    epoch = np.concatenate([batch["label"] for batch in whole[:3]])
    assert sorted(epoch) == sorted(split.labels) and epoch.tolist() != split.labels.tolist()


@pytest.mark.parametrize(
    ("label", "class_names"),
    [
        (lambda k: {"json": json.dumps({"label": k % 2, "width": 9}).encode()}, ("0", "1")),
        (lambda k: {"json": json.dumps({"class_name": ("dog", "cat")[k % 2]}).encode()}, ("cat", "dog")),
        (lambda k: {"txt": ("dog\n", "cat\n")[k % 2].encode()}, ("cat", "dog")),
        (lambda k: {"cls": b"1" if k % 2 else b"0", "txt": b"a photo %d" % k, "json": b"{}"}, ("0", "1")),
        (lambda k: {"txt": b"a photo", "cls": b"1" if k % 2 else b"0", "seg.png": b"x"}, ("0", "1")),
    ],
)
def test_labels_are_numbers_or_words_in_three_kinds_of_files(tmp_path, label, class_names):
    (tmp_path / "000000.tar").write_bytes(made_images.tar(samples(0, 8, label)))
    train = sources.load(spec_of(tmp_path, holdout="0.25"), "train")
    assert (train.num_examples, train.class_names) == (6, class_names)
    named = [train.class_names[label] for label in train.labels]
    wanted = {0: class_names[1], 1: class_names[0]} if "cat" in class_names else {0: "0", 1: "1"}
    assert named == [wanted[int(number) % 2] for number in train.numbers]


def test_the_user_names_the_image_and_the_label_of_a_sample(tmp_path):
    files = {}
    for k in range(6):
        files |= {f"{k}.left.jpg": made_images.encode(k), f"{k}.right.jpg": made_images.encode(50 + k)}
        files[f"{k}.json"] = json.dumps({"label": 0, "species": ("cat", "dog")[k % 2]}).encode()
    (tmp_path / "0.tar").write_bytes(made_images.tar(files))
    train = sources.load(spec_of(tmp_path, holdout="1", image_key="right.jpg", label_key="species"), "train")
    assert train.class_names == ("cat", "dog")
    assert {train.listing.read(k) for k in range(6)} == {made_images.encode(50 + k) for k in range(6)}
    with pytest.raises(UserError, match="image_key: got 'jpg' for folder"):
        sources.load(DataSpec(name="folder", dir=str(tmp_path), image_key="jpg"), "train")


def test_shards_of_tars_hold_the_same_images(folder, tmp_path, capsys):
    out = tmp_path / "out"
    command = [f"--train={folder}/*train-{{000000..000002}}.tar".replace("*", "pets-"), "--train_shards=2"]
    assert program.main([*command, f"--test={folder}/pets-val-*.tar", "--test_shards=1", f"--out={out}"]) == 0
    assert "train: 24 images of 3 classes" in capsys.readouterr().out
    made = DataSpec(name="tfrecords", dir=str(out), image_size=8, pad_crop=0)
    for split, count in (("train", 24), ("test", 6)):
        (batch,) = pipeline.eval_batches(sources.load(made, split), made, batch_size=count)
        read = sources.load(spec_of(folder), split)
        (wanted,) = pipeline.eval_batches(read, spec_of(folder), batch_size=count)
        pairs = sorted((image.tobytes(), label) for image, label in zip(batch["image"], batch["label"], strict=True))
        assert pairs == sorted(
            (image.tobytes(), label) for image, label in zip(wanted["image"], wanted["label"], strict=True)
        )


def test_names_that_lead_elsewhere_are_harmless(tmp_path):
    inside = tmp_path / "wds"
    inside.mkdir()
    files = {}
    for k, name in enumerate(("../../up/a", "/etc/b", "..", "./c/../../d")):
        files |= {f"{name}.jpg": made_images.encode(k), f"{name}.cls": str(k % 2).encode()}
    (inside / "000000.tar").write_bytes(made_images.tar(files))
    before = sorted(os.walk(tmp_path))
    spec = spec_of(inside, holdout="1")
    train = sources.load(spec, "train")
    contents = [train.listing.read(int(number)) for number in train.numbers]
    assert set(contents) <= {made_images.encode(k) for k in range(4)} and len(contents) >= 2
    assert sorted(os.walk(tmp_path)) == before


def test_what_is_no_whole_sample_is_counted_and_named(tmp_path, caplog):
    files = samples(0, 6) | {
        "lonely.jpg": made_images.encode(50),
        "empty.jpg": b"",
        "empty.cls": b"1",
        "label.cls": b"1",
        "notes.md": b"x",
        "__MACOSX/000000.jpg": b"x",
    }
    (tmp_path / "000000.tar").write_bytes(made_images.tar(files))
    train = sources.load(spec_of(tmp_path, holdout="1"), "train")
    assert train.num_examples == 5
    for words in ("images without a label (1): 000000.tar/lonely.jpg", "empty files (1)", "other files (1)"):
        assert words.replace("000000.tar/", "") in caplog.text.replace("000000.tar/", "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: made_images.tar({"a.jpg": made_images.encode(1)}), "no labelled image; images without a label"),
        (lambda: made_images.tar(samples(0, 4))[:5000], "no tar, or a broken or compressed one"),
        (lambda: b"\x1f\x8b" + bytes(2000), "no tar, or a broken or compressed one"),
        (lambda: made_images.tar(samples(0, 4, lambda k: {"txt": b"caption %d a" % k})), "rather than captions"),
        (lambda: made_images.tar(samples(0, 4, lambda k: {"cls": b"1", "png": b"x"})), "one image in each sample"),
        (lambda: made_images.tar(samples(0, 4, lambda k: {"cls": b"%d" % (k * 10**7)})), "numbers of classes"),
    ],
)
def test_tars_that_cannot_be_used_are_one_line(tmp_path, content, words):
    (tmp_path / "000000.tar").write_bytes(content())
    with pytest.raises(DataError, match=words):
        sources.load(spec_of(tmp_path, holdout="1"), "train")


def test_the_place_of_each_split_is_found_or_asked_for(tmp_path, folder):
    with pytest.raises(DataError, match=r"got no tars, expected DIR/train/\*\.tar"):
        (tmp_path / "empty").mkdir()
        tars.find(spec_of(tmp_path / "empty"))
    for name in ("Train", "validation"):
        (tmp_path / "by_folder" / name).mkdir(parents=True)
        (tmp_path / "by_folder" / name / "0.tar").write_bytes(made_images.tar(samples(0, 6)))
    assert sources.load(spec_of(tmp_path / "by_folder"), "test").num_examples == 6
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "000000.tar").write_bytes(made_images.tar(samples(0, 10)))
    with pytest.raises(DataError, match=r"1 tars, none to test with.*data\.holdout"):
        sources.require_available(spec_of(flat))
    assert sources.load(spec_of(flat, holdout="0.2"), "test").num_examples == 2
    (tmp_path / "by_folder" / "validation" / "0.tar").write_bytes(
        made_images.tar(samples(0, 6, lambda k: {"cls": b"7"}))
    )
    with pytest.raises(DataError, match=r"only in validation/: 7"):
        sources.load(spec_of(tmp_path / "by_folder"), "test")


def test_a_tar_of_class_folders_is_not_taken_for_samples(tmp_path):
    path = tmp_path / "pets.tar"
    path.write_bytes(made_images.tar({"cat/0.jpg": made_images.encode(0), "cat/readme.txt": b"x"}))
    assert not webdataset.is_given(str(path))
    path.write_bytes(made_images.tar(samples(0, 2)))
    assert webdataset.is_given(str(path))


@pytest.mark.parametrize(
    ("path", "folder"), [("/train-0.tar", "/"), ("train-0.tar", "."), ("/data/train-0.tar", "/data")]
)
def test_a_tar_is_looked_for_where_its_path_says(path, folder, monkeypatch):
    class Listed(Exception):
        pass

    def list_samples(*arguments, **options):
        raise Listed(*arguments[:2])

    monkeypatch.setattr(webdataset, "tars_in", lambda place: [f"train-{len(place)}.tar", "train-0.tar"])
    monkeypatch.setattr(webdataset.storage, "is_folder", lambda path: False)
    monkeypatch.setattr(webdataset.storage, "is_file", lambda path: True)
    monkeypatch.setattr(webdataset, "list_samples", list_samples)
    with pytest.raises(Listed) as listed:
        webdataset.list_given(path, print)
    assert listed.value.args == (folder, ["train-0.tar"])
    prefix = path.removesuffix("train-0.tar")
    assert webdataset.expand(f"{prefix}train-*.tar") == [f"{prefix}train-{len(folder)}.tar", path]


def test_a_tar_belongs_to_one_split_only(tmp_path):
    """The name of a data set may be the word for a split."""
    for name, first in (("test-train-000.tar", 0), ("test-val-000.tar", 8)):
        (tmp_path / name).write_bytes(made_images.tar(samples(first, 8)))
    with pytest.raises(DataError, match=r"got test-train-000\.tar, whose name says train and test"):
        tars.find(spec_of(tmp_path))


def test_a_tar_beside_the_folders_of_the_splits_does_not_replace_them(tmp_path):
    for name in ("train/0.tar", "val/0.tar", "raw.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(made_images.tar(samples(0, 6)))
    with pytest.raises(DataError, match=r"got tars both in train and val and beside these folders \(raw\.tar\)"):
        sources.load(spec_of(tmp_path, holdout="2"), "train")


def test_a_named_label_comes_from_json_alone(tmp_path):
    files = samples(0, 6, lambda k: {"cls": b"%d" % k, "json": json.dumps({"species": ("cat", "dog")[k % 2]}).encode()})
    (tmp_path / "0.tar").write_bytes(made_images.tar(files))
    assert sources.load(spec_of(tmp_path, holdout="1", label_key="species"), "train").class_names == ("cat", "dog")
    with pytest.raises(DataError, match="no labelled image"):
        sources.load(spec_of(tmp_path, holdout="1", label_key="specis"), "train")


def test_a_named_image_may_be_in_capitals(tmp_path):
    files = {}
    for k in range(6):
        files |= {f"{k}.Left.JPG": made_images.encode(k), f"{k}.cls": b"%d" % (k % 2)}
    (tmp_path / "0.tar").write_bytes(made_images.tar(files))
    assert sources.load(spec_of(tmp_path, holdout="1", image_key="Left.JPG"), "train").num_examples == 5


def test_a_range_that_runs_backwards_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"got the empty range \{000005\.\.000003\}, expected the lower number first"):
        webdataset.list_given(f"{tmp_path}/train-{{000005..000003}}.tar", lambda: None)
