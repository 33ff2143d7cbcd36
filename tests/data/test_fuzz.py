"""Damaged data sets are read, or refused with a DataError; never a crash, a hang, or another error."""

import io
import json
import os
import pathlib
import struct
import tarfile

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from skipnet_jax.data import archives, decoding, folders, pipeline, shard_checker, sources, storage, tfrecords
from skipnet_jax.errors import DataError
from skipnet_jax.specs import DataSpec
from tests.data import made_images
from tests.mutations import NAMES, changed_bytes, json_files, own_error, settings

SHARDS = {split: {"name": f"{split}-0", "examples": 2, "bytes": 10, "sha256": "ab"} for split in ("train", "test")}
INDEX = {
    "format": 1,
    "name": "pets",
    "class_names": ["a", "b"],
    "label_offset": 0,
    "splits": {split: {"examples": 2, "shards": [shard]} for split, shard in SHARDS.items()},
    "made_with": {},
}


def read_index(folder: pathlib.Path) -> None:
    index = tfrecords.read_index(str(folder))
    for split, shards in index.splits.items():
        for shard in shards:
            assert pathlib.Path(os.path.normpath(shard.path)).parent == folder
        tfrecords.require_shards(str(folder), shards)
        sources.load(DataSpec(name="tfrecords", dir=str(folder)), split)


@settings(400)
@hypothesis.given(content=json_files(INDEX))
def test_a_damaged_index_is_read_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    for shard in SHARDS.values():
        (folder / shard["name"]).write_bytes(b"0123456789")
    (folder / tfrecords.INDEX).write_bytes(content)
    error = own_error(lambda: read_index(folder))
    assert error is None or isinstance(error, DataError)


@pytest.mark.parametrize("name", ["../shard", "/etc/passwd", "a/b", "..", ".", "", "a\0b", "a\\b"])
def test_a_shard_lies_in_its_folder_and_nowhere_else(tmp_path, name):
    content = json.loads(json.dumps(INDEX))
    content["splits"]["train"]["shards"][0]["name"] = name
    (tmp_path / tfrecords.INDEX).write_text(json.dumps(content))
    with pytest.raises(DataError, match="expected the name of a file without its folder"):
        tfrecords.read_index(str(tmp_path))


def shifted(byte: int) -> int:
    """CRC-32C of one byte."""
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


CRCS = [shifted(byte) for byte in range(256)]


def crc(content: bytes) -> bytes:
    """TFRecord's masked CRC-32C, so that a false length comes with a right checksum."""
    value = 0xFFFFFFFF
    for byte in content:
        value = value >> 8 ^ CRCS[(value ^ byte) & 0xFF]
    value ^= 0xFFFFFFFF
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def frame(record: bytes, length: int | None = None) -> bytes:
    header = struct.pack("<Q", len(record) if length is None else length)
    return header + crc(header) + record + crc(record)


@pytest.fixture(scope="module")
def records() -> list[bytes]:
    return [tfrecords.serialize(made_images.encode(i), i % 2, f"{i}.jpg") for i in range(3)]


def write_shard(folder: pathlib.Path, content: bytes, examples: int) -> None:
    (folder / "test-0").write_bytes(content)
    _, sha256 = storage.hash_file(str(folder / "test-0"))
    shard = tfrecords.Shard(str(folder / "test-0"), examples, len(content), sha256)
    index = tfrecords.Index("pets", ("a", "b"), 0, {"test": (shard,)})
    tfrecords.write_index(str(folder), index, made_with={})


def check(folder: pathlib.Path) -> list[str]:
    return shard_checker.check(str(folder), threads=1, advance=lambda records: None)[1]


def read(folder: pathlib.Path) -> int:
    """Counts the images that evaluation gets."""
    spec = DataSpec(name="tfrecords", dir=str(folder), image_size=16, pad_crop=0)
    source = sources.load(spec, "test")
    batches = pipeline.eval_batches(source, spec, batch_size=4, process_index=0, process_count=1)
    return sum(int(np.sum(batch["label"] >= 0)) for batch in batches)


@settings(60)
@hypothesis.given(data=st.data())
def test_checking_a_damaged_shard_never_fails(tmp_path_factory, records, data):
    """Damages bytes of the file, or of a message whose checksums are right."""
    folder = tmp_path_factory.getbasetemp()
    if data.draw(st.booleans()):
        content = data.draw(changed_bytes(b"".join(map(frame, records))))
    else:
        content = frame(data.draw(changed_bytes(records[0]))) + frame(records[1]) + frame(records[2])
    write_shard(folder, content, 3)
    assert own_error(lambda: check(folder)) is None  # problems are reported, not raised


@pytest.mark.slow
@settings(8)
@hypothesis.given(data=st.data())
def test_a_damaged_shard_is_read_or_refused(tmp_path_factory, records, data):
    folder = tmp_path_factory.getbasetemp()
    damaged = data.draw(st.one_of(changed_bytes(records[2]), st.binary(max_size=30)))
    write_shard(folder, frame(records[0]) + frame(records[1]) + frame(damaged), 3)
    error = own_error(lambda: read(folder))
    assert error is None or isinstance(error, DataError)


@pytest.mark.parametrize("length", [2**32, 2**60, 2**64 - 1])
@pytest.mark.parametrize("first", [True, False])
def test_a_length_beyond_the_file_is_reported_and_not_believed(tmp_path, records, length, first):
    """TensorFlow ends the whole process at 2**60."""
    bad = frame(records[2], length)
    content = bad + frame(records[0]) if first else frame(records[0]) + bad
    write_shard(tmp_path, content, 2)
    (problem,) = check(tmp_path)
    assert f"record {0 if first else 1}: damaged" in problem and f"{length:,} bytes" in problem


@pytest.mark.parametrize("size", [14000, 65500])
def test_the_check_reports_an_image_that_is_too_large_to_decode(size):
    image = bytearray(made_images.encode(0))
    at = image.index(b"\xff\xc0") + 5
    image[at : at + 4] = struct.pack(">HH", size, size)
    assert "too large" in decoding.why_undecodable(bytes(image))
    assert decoding.why_undecodable(made_images.encode(0)) == ""


def tar() -> bytes:
    """A tar with images, a tar of a class, names that lead elsewhere, and a link."""
    file, inner = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        archive.addfile(info("n1_1.JPEG", 5), io.BytesIO(b"12345"))
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (("a/1.jpg", b"hello"), ("n1.tar", inner.getvalue()), (f"../../{'é' * 120}/2.jpg", b"zz")):
            archive.addfile(info(name, len(content)), io.BytesIO(content))
        link = tarfile.TarInfo("a/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return file.getvalue()


def info(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    return member


TAR = tar()
HEADERS = [at for at in range(0, len(TAR), 512) if TAR[at + 257 : at + 262] == b"ustar"]
# Offset and length of a header's fields: name, size, kind, link name, prefix, and the map of a sparse file.
FIELDS = ((0, 100), (124, 12), (156, 1), (157, 100), (345, 155), (386, 96), (482, 1))


def list_images(path: pathlib.Path) -> archives.Listing:
    listing = archives.find_images(str(path), lambda: None)
    for i in range(len(listing)):
        listing.read(i)
        listing.name(i)
    listing.fingerprint()
    return listing


@st.composite
def damaged_tars(draw: st.DrawFn) -> bytes:
    content = bytearray(TAR)
    for _ in range(draw(st.integers(1, 2))):
        at, (offset, size) = draw(st.sampled_from(HEADERS)), draw(st.sampled_from(FIELDS))
        kinds = [b"S", b"L", b"K", b"x", b"g", b"5", b"2", b"0"]
        numbers = [b"\xff" * 12, b"\x80" + b"\xff" * 11, b"7" * 12, (256**12 - 1536).to_bytes(12, "big")]
        value = draw(st.one_of(st.sampled_from(kinds if size == 1 else numbers), st.binary(min_size=1, max_size=size)))
        content[at + offset : at + offset + min(size, len(value))] = value[:size]
        header = content[at : at + 512]
        content[at + 148 : at + 156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    return bytes(content)


@settings(300)
@hypothesis.given(content=st.one_of(damaged_tars(), changed_bytes(TAR)))
def test_a_damaged_archive_is_listed_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "images.tar"
    path.write_bytes(content)
    error = own_error(lambda: list_images(path))
    assert error is None or isinstance(error, DataError)


@pytest.mark.parametrize("size", [-1, -513, -1536, -5120, 2**62, 2**70])
@pytest.mark.parametrize("kind", [b"0", b"S", b"x", b"L"])
def test_impossible_sizes_end_the_listing(tmp_path, size, kind):
    for at in HEADERS:
        content = bytearray(TAR)
        content[at + 156 : at + 157] = kind
        sign = b"\xff" if size < 0 else b"\x80"
        content[at + 124 : at + 136] = sign + (size % 256**11).to_bytes(11, "big")
        header = content[at : at + 512]
        content[at + 148 : at + 156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
        (tmp_path / "images.tar").write_bytes(content)
        own_error(lambda: list_images(tmp_path / "images.tar"))


def test_names_in_an_archive_and_links_lead_nowhere(tmp_path):
    """Nothing is unpacked: a name is only a name, and a link is no image."""
    (tmp_path / "images.tar").write_bytes(TAR)
    listing = list_images(tmp_path / "images.tar")
    assert [listing.read(i) for i in range(len(listing))] == [b"hello", b"12345", b"zz"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["images.tar"]


@settings(100)
@hypothesis.given(names=st.lists(NAMES, min_size=1, max_size=3))
def test_class_folders_with_odd_names_are_listed_or_refused(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("classes")
    for name in names:
        name = name.replace("/", "_").replace("\0", "_").encode("utf-8", "replace").decode()[:60]
        for split in ("train", "test"):
            if name not in ("", ".", ".."):
                (folder / split / name).mkdir(parents=True, exist_ok=True)
                (folder / split / name / "1.jpg").touch()
    error = own_error(lambda: folders.open_folder(DataSpec(name="folder", dir=str(folder)), "test"))
    assert error is None or isinstance(error, DataError)
