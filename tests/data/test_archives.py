"""Listings of folders and tar files: which images of which class, and what is said of broken ones."""

import os
import tarfile

import numpy as np
import pytest

from skipnet_jax.data import archives, walk
from skipnet_jax.errors import DataError
from tests.data import made_images


def find(path) -> archives.Listing:
    return archives.find_images(str(path), lambda: None)


def classes_of(listing: archives.Listing) -> list[str]:
    return [listing.class_names[label] for label in listing.labels]


def test_a_nested_tar_gives_each_image_unchanged_under_its_class(tmp_path):
    listing = find(made_images.write_train_tar(tmp_path / "train.tar", 5))
    assert listing.class_names == made_images.SYNSETS
    assert not listing.official
    for index in range(15):
        synset, _, name = listing.name(index).partition("/")
        assert classes_of(listing)[index] == synset
        assert listing.read(index) == made_images.encode(int(name.partition("_")[2].removesuffix(".JPEG")))
    assert len({listing.name(index) for index in range(len(listing))}) == 15


def test_official_validation_images_get_their_published_labels(tmp_path):
    listing = find(made_images.write_val_tar(tmp_path / "val.tar", 4))
    assert listing.official
    assert len(listing.class_names) == 1000
    assert listing.class_names == tuple(sorted(listing.class_names))
    # Published: the first validation image is a sea snake, the second an alp.
    assert classes_of(listing)[:2] == ["n01751748", "n09193705"]
    assert list(listing.labels[:2]) == [65, 970]
    assert listing.read(3) == made_images.encode(1004)


def test_unpacked_validation_images_have_the_same_labels(tmp_path):
    tar = made_images.write_val_tar(tmp_path / "val.tar", 4)
    with tarfile.open(tar) as archive:
        archive.extractall(tmp_path / "val", filter="data")
    np.testing.assert_array_equal(find(tmp_path / "val").labels, find(tar).labels)


def test_folders_and_a_tar_of_them_hold_the_same(tmp_path):
    folder = made_images.write_folders(tmp_path / "pets", {"dog": 3, "cat": 2})
    (folder / "cat" / "more").mkdir()
    (folder / "cat" / "more" / "x.png").write_bytes(made_images.encode(7, kind="PNG"))
    listing = find(folder)
    assert listing.class_names == ("cat", "dog")
    assert [listing.name(i) for i in range(6)] == [
        "cat/0.jpg", "cat/1.jpg", "cat/more/x.png", "dog/0.jpg", "dog/1.jpg", "dog/2.jpg"
    ]  # fmt: skip
    assert classes_of(listing) == ["cat"] * 3 + ["dog"] * 3
    assert listing.read(2) == made_images.encode(7, kind="PNG")

    for inner, outer in ((".", "plain.tar"), ("pets", "wrapped.tar"), ("./data/pets", "deeper.tar")):
        with tarfile.open(tmp_path / outer, "w") as archive:
            archive.add(folder, inner)
        packed = find(tmp_path / outer)
        assert packed.class_names == listing.class_names
        assert sorted(zip(classes_of(packed), map(packed.read, range(6)), strict=True)) == sorted(
            zip(classes_of(listing), map(listing.read, range(6)), strict=True)
        )


def test_a_loose_image_does_not_turn_the_folder_of_all_classes_into_a_class(tmp_path):
    folder = made_images.write_folders(tmp_path / "pets", {"dog": 3, "cat": 2})
    (folder / "cover.jpg").write_bytes(made_images.encode(0))
    with tarfile.open(tmp_path / "pets.tar", "w") as archive:
        archive.add(folder, "pets")
    listing = find(tmp_path / "pets.tar")
    assert listing.class_names == ("cat", "dog") and sorted(classes_of(listing)) == ["cat"] * 2 + ["dog"] * 3
    assert listing.left_out.counts == {walk.LOOSE: 1}


def test_what_macos_adds_beside_a_nested_tar_is_left_out(tmp_path):
    inner = {name: made_images.tar({"0.jpg": made_images.encode(number)}) for number, name in enumerate("ab")}
    outer = {f"{name}.tar": content for name, content in inner.items()} | {"._a.tar": b"resource fork"}
    (tmp_path / "train.tar").write_bytes(made_images.tar(outer))
    assert find(tmp_path / "train.tar").class_names == ("a", "b")


def test_other_files_are_left_out_and_counted(tmp_path):
    folder = made_images.write_folders(tmp_path / "pets", {"cat": 1})
    for name in ("notes.txt", "._0.jpg", ".DS_Store", "b.csv", "zero.jpg"):
        (folder / "cat" / name).write_bytes(b"")
    (folder / "stray.jpg").write_bytes(made_images.encode(0))
    (folder / "__MACOSX" / "cat").mkdir(parents=True)
    (folder / "__MACOSX" / "cat" / "x.jpg").write_bytes(b"x")
    with tarfile.open(tmp_path / "pets.tar", "w") as archive:
        archive.add(folder, "")
    for path, system in ((folder, 3), (tmp_path / "pets.tar", 3)):
        listing = find(path)
        assert len(listing) == 1 and listing.class_names == ("cat",) and listing.read(0)
        assert listing.left_out.counts == {
            walk.OTHER: 2, walk.SYSTEM: system, walk.EMPTY: 1, walk.LOOSE: 1
        }  # fmt: skip


def test_the_fingerprint_tells_data_sets_apart(tmp_path):
    folder = made_images.write_folders(tmp_path / "a", {"cat": 2, "dog": 1})
    before = find(folder).fingerprint()
    os.rename(folder, tmp_path / "b")
    assert find(tmp_path / "b").fingerprint() == before
    (tmp_path / "b" / "cat" / "1.jpg").rename(tmp_path / "b" / "cat" / "2.jpg")
    assert find(tmp_path / "b").fingerprint() != before


@pytest.mark.parametrize("cut", [1, 700, 5000, 10_240])
def test_an_archive_that_was_cut_off_is_an_error(tmp_path, cut):
    path = made_images.write_train_tar(tmp_path / "train.tar", 5)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole.rstrip(b"\0")) - cut])
    with pytest.raises(DataError, match=r"train\.tar.*Fetch it again"):
        find(path)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    path = made_images.write_val_tar(tmp_path / "val.tar", 3)
    content = bytearray(path.read_bytes())
    second = content.index(b"ILSVRC2012_val_00000002")
    content[second + 148 : second + 156] = b"99999999"  # checksum
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged at byte"):
        find(path)


def test_a_compressed_archive_is_refused(tmp_path):
    made_images.write_folders(tmp_path / "pets", {"cat": 1})
    with tarfile.open(tmp_path / "pets.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "pets", "pets")
    with pytest.raises(DataError, match="uncompressed"):
        find(tmp_path / "pets.tar.gz")


def test_a_place_without_images_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no file or folder"):
        find(tmp_path / "nothing")
    made_images.write_folders(tmp_path / "pets", {"cat": 1, "dog": 1})
    (tmp_path / "pets" / "dog" / "0.jpg").unlink()
    with pytest.raises(DataError, match="got classes without images: dog"):
        find(tmp_path / "pets")
    (tmp_path / "texts" / "cat").mkdir(parents=True)
    (tmp_path / "texts" / "cat" / "notes.txt").write_text("meow")
    with pytest.raises(DataError, match=r"got no image; other files \(1\): cat/notes\.txt"):
        find(tmp_path / "texts")


def test_images_without_class_folders_are_an_error(tmp_path):
    (tmp_path / "stray.jpg").write_bytes(made_images.encode(0))
    with pytest.raises(DataError, match=r"stray\.jpg, which lies in no folder"):
        find(tmp_path)


def test_a_file_that_changed_since_is_an_error(tmp_path):
    listing = find(made_images.write_folders(tmp_path, {"cat": 1}))
    (tmp_path / "cat" / "0.jpg").write_bytes(b"short")
    with pytest.raises(DataError, match=r"got 5 bytes of cat/0\.jpg"):
        listing.read(0)
    (tmp_path / "cat" / "0.jpg").unlink()
    with pytest.raises(DataError, match=r"0\.jpg: got No such file"):
        listing.read(0)


def test_links_in_a_tar_are_left_out_and_counted(tmp_path):
    """tar stores the second name of a file as a link."""
    folder = made_images.write_folders(tmp_path / "pets", {"cat": 2, "dog": 2})
    (folder / "dog" / "same.jpg").hardlink_to(folder / "cat" / "0.jpg")
    (folder / "dog" / "soft.jpg").symlink_to("0.jpg")
    with tarfile.open(tmp_path / "pets.tar", "w") as archive:
        archive.add(folder, "pets")
    listing = find(tmp_path / "pets.tar")
    assert len(listing) == 4 and listing.left_out.counts == {walk.LINKED: 2}
    assert len(find(folder)) == 6
