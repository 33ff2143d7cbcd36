"""Small images in the layouts that data sets come in."""

import io
import pathlib
import tarfile
from collections.abc import Mapping

import numpy as np
from PIL import Image

SYNSETS = ("n01440764", "n01443537", "n01751748")


def encode(number: int, *, side: int = 16, mode: str = "RGB", kind: str = "JPEG") -> bytes:
    """An image file, another for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def tar(files: Mapping[str, bytes]) -> bytes:
    """An uncompressed archive."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def write_train_tar(path: pathlib.Path, per_class: int, *, side: int = 16) -> pathlib.Path:
    """Like ILSVRC2012_img_train.tar: an archive per class within one archive."""
    numbers = {synset: range(i * per_class, (i + 1) * per_class) for i, synset in enumerate(SYNSETS)}
    inner = {
        f"{synset}.tar": tar({f"{synset}_{i}.JPEG": encode(i, side=side) for i in numbers[synset]})
        for synset in reversed(SYNSETS)  # not sorted
    }
    path.write_bytes(tar(inner))
    return path


def write_val_tar(path: pathlib.Path, images: int) -> pathlib.Path:
    """Like ILSVRC2012_img_val.tar: no folders, the labels are elsewhere."""
    path.write_bytes(tar({f"ILSVRC2012_val_{i:08d}.JPEG": encode(1000 + i) for i in range(1, images + 1)}))
    return path


def write_folders(path: pathlib.Path, classes: Mapping[str, int]) -> pathlib.Path:
    """One folder of images per class."""
    for name, images in classes.items():
        (path / name).mkdir(parents=True)
        for i in range(images):
            (path / name / f"{i}.jpg").write_bytes(encode(hash_of(name) + i))
    return path


def hash_of(name: str) -> int:
    """A number for a name, the same in every process."""
    return int.from_bytes(name.encode()[:3], "big")
