import os

import pytest

from skipnet_jax.data import storage
from skipnet_jax.errors import DataError


def test_paths_join_alike_on_disks_and_in_buckets():
    assert storage.join("a/b", "c") == storage.join("a/b/", "c") == "a/b/c"
    assert storage.join("gs://a/b/", "c") == "gs://a/b/c"
    assert storage.join("/", "c") == "/c"
    assert storage.join("", "c") == "c"
    assert storage.is_bucket("gs://a")
    assert not storage.is_bucket("/gs:/a")


def test_reading_tells_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="cannot be read"):
        storage.read_bytes(str(tmp_path))
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(DataError, match="cannot be read"):
        storage.read_bytes(str(tmp_path / "file" / "below"))


def test_text_replaces_the_old_as_a_whole(tmp_path):
    path = str(tmp_path / "file")
    storage.write_text(path, "old and longer")
    storage.write_text(path, "new")
    assert storage.read_bytes(path) == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_published_file_has_moved(tmp_path):
    (tmp_path / "new").write_bytes(b"x")
    storage.publish(str(tmp_path / "new"), str(tmp_path / "file"))
    assert os.listdir(tmp_path) == ["file"]
    with storage.local_copy(str(tmp_path / "file")) as path:
        assert path == str(tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]


def test_hash_is_that_of_the_whole_file(tmp_path):
    (tmp_path / "file").write_bytes(b"abc" * 1_000_000)
    size, sha256 = storage.hash_file(str(tmp_path / "file"))
    assert size == 3_000_000
    # sha256sum's answer
    assert sha256 == "f4096a131e7e6ebfa7a512b5c299e13b065df34d15624ee1202ab394cc4d7e90"
