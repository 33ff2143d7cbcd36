"""scripts/fashion_mnist.py reads IDX files, as Debian packages them, and refuses any other images."""

import gzip
import pathlib
import struct

import numpy as np
import pytest

from scripts import fashion_mnist
from skipnet_jax.errors import DataError


def _write_idx(file: pathlib.Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    file.write_bytes(gzip.compress(header + array.tobytes()))


def test_idx_files_are_read_and_others_refused(tmp_path):
    images = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    _write_idx(tmp_path / "a.gz", images)
    np.testing.assert_array_equal(fashion_mnist.read_idx(tmp_path / "a.gz", (5, 4, 3)), images)
    with pytest.raises(DataError, match=r"a\.gz: got another header or length, expected .* shape \(4, 4, 3\)"):
        fashion_mnist.read_idx(tmp_path / "a.gz", (4, 4, 3))


def test_a_damaged_file_is_one_line(tmp_path, capsys):
    file = tmp_path / "train-images-idx3-ubyte.gz"
    _write_idx(file, np.zeros((5, 4, 3), np.uint8))
    whole = file.read_bytes()
    for damaged in (whole[:-9], whole[:12] + b"\xff" + whole[13:], b"no gzip"):
        file.write_bytes(damaged)
        assert fashion_mnist.main([f"--idx={tmp_path}"]) == 2
        assert f"{file}: got a damaged file" in capsys.readouterr().err


def test_other_images_are_refused_by_their_hash():
    splits = {
        split: (np.zeros((count, 28, 28, 1), np.uint8), np.arange(count) % 10)
        for split, (_, count) in fashion_mnist.SPLITS.items()
    }
    with pytest.raises(DataError, match="got the hash"):
        fashion_mnist.require_original(splits)
    splits["test"] = (splits["test"][0], np.zeros(10_000, np.int64))
    with pytest.raises(DataError, match=r"test images: got \[10000, 0"):
        fashion_mnist.require_original(splits)


def test_missing_files_end_with_one_line(tmp_path, capsys):
    assert fashion_mnist.main([f"--idx={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert "train-images-idx3-ubyte.gz: got No such file" in said and "dataset-fashion-mnist" in said


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys, monkeypatch):
    images, labels = np.zeros((2, 28, 28, 1), np.uint8), np.zeros(2, np.int64)
    monkeypatch.setattr(fashion_mnist, "read_split", lambda folder, split: (images, labels))
    monkeypatch.setattr(fashion_mnist, "require_original", lambda splits: None)
    (tmp_path / "file").touch()
    assert fashion_mnist.main([f"--out={tmp_path / 'file'}"]) == 2
    assert "error: --out: got [Errno 20] Not a directory" in capsys.readouterr().err
