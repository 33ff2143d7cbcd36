"""Every reader of files that others may have made, with 10,000 damaged files each: it reads them or refuses them.

A refusal is one line of a UserError. No reader writes, starts a program, runs code from a file, or takes more memory
than a bound. What is damaged cleverly, such as a pickle that asks for a call, has its own test in the reader's room.
"""

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import pathlib
import pickle
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from configs import recipes
from skipnet_jax import config
from skipnet_jax.analysis import run_groups
from skipnet_jax.command import shards
from skipnet_jax.data import class_names, encoded, folders, image_files, pipeline, shard_checker, sources, tfrecords
from skipnet_jax.errors import DataError, UserError
from skipnet_jax.evaluation import preprocessing
from skipnet_jax.exports import artifacts
from skipnet_jax.interop import checkpoint_files
from skipnet_jax.runs import checkpoint_damage, events, lease, workdir
from skipnet_jax.specs import DataSpec
from tests.data import made_images
from tests.data.test_fuzz import INDEX, frame, list_images, read_index, tar
from tests.strangers import WATCH, bounded_memory, changed_bytes, changed_json, changed_json_file, refused

MEGABYTES = 128  # more, at any moment; torch's zips may hold 64 MB however small they are
COUNTS = [100, pytest.param(10_000, marks=pytest.mark.slow)]
ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float16)}


@dataclasses.dataclass(frozen=True)
class Reader:
    """How one kind of file is damaged and read.

    Args:
      file: its name.
      whole: makes an undamaged one.
      change: damages one.
      read: reads it, in a folder that holds nothing else but `beside`.
      beside: other files there.
      error: what a refusal is.
      refuses: whether some files are refused; otherwise damage is an answer too.
    """

    file: str
    whole: Callable[[], bytes]
    change: Callable[[random.Random, bytes], bytes]
    read: Callable[[pathlib.Path], Any]
    beside: dict[str, bytes] = dataclasses.field(default_factory=dict)
    error: type[UserError] = UserError
    refuses: bool = True


def json_reader(file: str, content: Any, read: Callable[[pathlib.Path], Any], **others: Any) -> Reader:
    return Reader(file, lambda: json.dumps(content).encode(), changed_json_file, read, **others)


def lines(records: list[Any]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def changed_lines(chance: random.Random, content: bytes) -> bytes:
    rows = content.splitlines(keepends=True)
    at = chance.randrange(len(rows))
    rows[at] = changed_json_file(chance, rows[at]) + chance.choice((b"\n", b"\n", b""))
    return b"".join(rows)


SAFETENSORS = safetensors.numpy.save(ARRAYS)


def changed_safetensors(chance: random.Random, content: bytes) -> bytes:
    """Damages bytes, or the header as JSON, with the right length before it."""
    if chance.random() < 0.3:
        return changed_bytes(chance, content)
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    array = header[chance.choice(sorted(ARRAYS))]
    draw = chance.random()
    if draw < 0.3:
        array["dtype"] = chance.choice(("F64", "F16", "BF16", "I64", "U8", "BOOL", "C64", "F8_E4M3", "F4", "X"))
        array["shape"] = chance.choice((array["shape"], [3], [24], [12], [48], [0], [2**40, 0], [2**62], [-1]))
    elif draw < 0.5:
        array["data_offsets"] = chance.sample((0, 1, 4, 24, 28, 2**32, 2**63, 2**64 - 1, -1), 2)
    else:
        header = changed_json(chance, header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[end:]


@functools.cache
def torch_file(zipped: bool) -> bytes:
    torch = pytest.importorskip("torch")
    file = io.BytesIO()
    state = {
        "state_dict": {name: torch.tensor(array) for name, array in ARRAYS.items()},
        "epoch": 3,
        "arch": "resnet18",
    }
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


OPCODES = [
    getattr(pickle, name)[0] for name in pickle.__all__ if name.isupper() and isinstance(getattr(pickle, name), bytes)
]


def changed_pickle(chance: random.Random, content: bytes) -> bytes:
    """Another instruction or another name somewhere, or other bytes."""
    result = bytearray(content)
    match chance.randrange(4):
        case 0:
            result[chance.randrange(len(result))] = chance.choice(OPCODES)
        case 1:
            name = chance.choice(
                (b"cos\nsystem\n", b"cbuiltins\nexec\n", b"cbuiltins\neval\n", b"ctorch\nload\n", b"N)R")
            )
            at = chance.randrange(len(result))
            result[at:at] = name
        case 2:
            old, new = chance.sample(
                (b"torch._utils", b"collections", b"OrderedDict", b"FloatStorage", b"storage", b"cpu"), 2
            )
            return content.replace(old, new)
        case _:
            return changed_bytes(chance, content)
    return bytes(result)


def changed_zip(chance: random.Random, content: bytes) -> bytes:
    """Damages bytes, or the pickle within, or another member or its name, in a zip that is itself in order."""
    if chance.random() < 0.3:
        return changed_bytes(chance, content)
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        members = {name: old.read(name) for name in old.namelist()}
    name = chance.choice([name for name in members if name.endswith("data.pkl")] * 3 + list(members))
    members[name] = (changed_pickle if name.endswith("data.pkl") else changed_bytes)(chance, members[name])
    if chance.random() < 0.1:
        renamed = chance.choice(("/tmp/trace", "../../trace", "x/data/0", "data.pkl", name + "/", "x" * 300))
        members[renamed] = members.pop(name)
    kind = zipfile.ZIP_DEFLATED if chance.random() < 0.1 else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", kind) as new:
        for name, data in members.items():
            new.writestr(name, data)
    return file.getvalue()


# Offset and length of a tar header's fields: name, size, kind, link name, prefix, and the map of a sparse file.
FIELDS = ((0, 100), (124, 12), (156, 1), (157, 100), (345, 155), (386, 96), (482, 1))
TEXTS = (
    b"/etc/passwd\0",
    b"../../../x.jpg\0",
    b"/x/y.jpg\0",
    b"a/../../../b.jpg\0",
    b"a/\xff\xfe.jpg\0",
    b"n.tar\0",
    b"\0",
)
SIZES = (b"\xff" * 12, b"\x80" + b"\xff" * 11, b"7" * 12, (256**12 - 1536).to_bytes(12, "big"), b"00000000005\0")


def changed_tar(chance: random.Random, content: bytes) -> bytes:
    """Damages bytes, or a header's field, with the right checksum of the header."""
    if chance.random() < 0.3:
        return changed_bytes(chance, content)
    result = bytearray(content)
    headers = [at for at in range(0, len(content), 512) if content[at + 257 : at + 262] == b"ustar"]
    for _ in range(chance.choice((1, 1, 2))):
        at, (offset, size) = chance.choice(headers), chance.choice(FIELDS)
        known = [bytes([code]) for code in b"SLKxg5210367"] if size == 1 else SIZES if size == 12 else TEXTS
        value = chance.choice(known) if chance.random() < 0.7 else chance.randbytes(size)
        result[at + offset : at + offset + min(size, len(value))] = value[:size]
        header = result[at : at + 512]
        result[at + 148 : at + 156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    return bytes(result)


def changed_png(chance: random.Random, content: bytes) -> bytes:
    """Damages bytes, or a chunk, with the right checksum of the chunk."""
    if chance.random() < 0.2:
        return changed_bytes(chance, content)
    chunks, at = [], 8
    while at < len(content):
        size = int.from_bytes(content[at : at + 4])
        chunks.append(content[at + 4 : at + 8 + size])  # kind and data
        at += size + 12
    which = chance.randrange(len(chunks))
    chunks[which] = chunks[which][: 4 * (chance.random() < 0.8)] + changed_bytes(chance, chunks[which][4:])
    framed = (
        struct.pack(">I", max(len(chunk) - 4, 0)) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )
    return content[:8] + b"".join(framed)


def read_image(folder: pathlib.Path) -> None:
    pixels = image_files.read(str(folder / "image"), size=8, crop=image_files.CENTER, share=0.9)
    assert pixels.shape == (8, 8, 3)


def read_run(folder: pathlib.Path) -> None:
    """As reports and tables do."""
    run = run_groups.read(folder)
    assert isinstance(run.finished, bool)
    for score in run.scores.values():
        assert isinstance(score.accuracy, float | int), score
    run_groups.group_by_config([run])


def read_checkpoint_part(folder: pathlib.Path) -> None:
    assert isinstance(checkpoint_damage.find(epath.Path(folder)), str)


def read_lease(folder: pathlib.Path) -> None:
    found = lease._parse((folder / "1").read_bytes())
    assert found is None or isinstance(lease._describe(found), str)


CONFIG = config.to_dict(config.train_spec(recipes.digits()))
CONFIG_FILE = {"config.json": json.dumps(CONFIG).encode()}
DATA = {"class_names": ["a", "b", "c"], "training_images": 100}
METRICS = [{"step": 1, "epoch": 0.5, "train/loss": 1.0}, {"step": 2, "epoch": 1.0, "test/accuracy": 0.5}]
RESULT = {"data": "digits", "image_size": 16, "eval_classes": "all", "split": "test", "step": 11, "accuracy": 0.5}
RESULT |= {"top5_accuracy": 0.9, "loss": 0.3, "average_accuracy": 0.6, "count": 360, "flip": False}
MODEL = {"name": "resnet20", "num_classes": 10, "source": "w.pt", "fresh": [], "mean": [0.5] * 3, "std": [0.2] * 3}
LEASE = {"host": "a", "machine": "b/1", "process": 3, "started": 4, "since": "x", "token": "t", "held_seconds": "01.5"}
EVENTS = [{"time": "2026-11-01T00:00:00+00:00", "event": "start", "step": 0}, {"time": "", "event": "stop", "step": 3}]
PREPARATION = {"model": "resnet20", "image_size": 8, "mean": [0.5] * 3, "std": [0.2] * 3, "class_names": ["a", "b"]}
PREPARATION |= {"crop": "whole", "crop_share": 0.9, "interpolation": "bicubic", "background": [0, 0, 0]}
EXPORT = {"format": "onnx", "network": {"name": "resnet20", "num_classes": 10, "dtype": "float32", "remat": False}}
HUB = {"architecture": "resnet50", "num_classes": 2, "label_names": ["a", "b"], "id2label": {"0": "a", "1": "b"}}
HUB |= {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.2] * 3, "crop_pct": 0.9, "input_size": [3, 224, 224]}}
WEIGHT_MAP = {"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}, "metadata": {"total_size": 3}}
PARTS = {"item_handlers": {"state": "x", "metrics": "y"}, "metrics": {}, "init_timestamp_nsecs": 1}
WHOLE_STATE = {"state/_METADATA": b"{}", "metrics/metrics": b'{"accuracy": 0.5}'}
NAMES = "\N{BLACK HEART SUIT}\r\ntwo\nthree\n\n"

READERS = {
    "a shard index": json_reader(
        tfrecords.INDEX, INDEX, read_index, error=DataError, beside={"train-0": b"0123456789", "test-0": b"0123456789"}
    ),
    "config.json": json_reader(workdir.CONFIG, CONFIG, workdir.read_spec),
    "data.json": json_reader(workdir.DATA, DATA, lambda folder: workdir.read_class_names(epath.Path(folder))),
    "results.json": json_reader(workdir.RESULTS, [RESULT, RESULT | {"step": 3}], read_run, beside=CONFIG_FILE),
    "metrics.jsonl": Reader(workdir.METRICS, lambda: lines(METRICS), changed_lines, read_run, CONFIG_FILE),
    "model.json": json_reader(workdir.MODEL, MODEL, workdir.read_spec),
    "events.jsonl": Reader(workdir.EVENTS, lambda: lines(EVENTS), changed_lines, events.read),
    "a lease": json_reader("1", LEASE, read_lease, refuses=False),
    "a checkpoint's results": json_reader(
        "metrics/metrics", {"accuracy": 0.5}, read_checkpoint_part, beside=WHOLE_STATE, refuses=False
    ),
    "a checkpoint's parts": json_reader(
        "_CHECKPOINT_METADATA", PARTS, read_checkpoint_part, beside=WHOLE_STATE, refuses=False
    ),
    "preprocessing.json": json_reader(
        preprocessing.FILE, PREPARATION, lambda folder: preprocessing.Preprocessing.read(folder / preprocessing.FILE)
    ),
    "export.json": json_reader(artifacts.RECORD, EXPORT, lambda folder: artifacts._read_record(epath.Path(folder))),
    "config.json of the hub": json_reader(
        "config.json", HUB, checkpoint_files.read, beside={"model.safetensors": SAFETENSORS}
    ),
    "an index of weights": json_reader(
        "model.safetensors.index.json", WEIGHT_MAP, checkpoint_files.read, beside={"one.safetensors": SAFETENSORS}
    ),
    "class names": Reader(
        "names", NAMES.encode, changed_bytes, lambda folder: class_names.read("classes", str(folder / "names"), 3)
    ),
    "class names of shards": Reader(
        "names", NAMES.encode, changed_bytes, lambda folder: shards._read_names(str(folder / "names"))
    ),
    "safetensors": Reader(
        "w.safetensors",
        lambda: SAFETENSORS,
        changed_safetensors,
        lambda folder: checkpoint_files.read(folder / "w.safetensors"),
    ),
    "torch's zips": Reader(
        "w.pt", lambda: torch_file(True), changed_zip, lambda folder: checkpoint_files.read(folder / "w.pt")
    ),
    "torch's older files": Reader(
        "w.pt", lambda: torch_file(False), changed_pickle, lambda folder: checkpoint_files.read(folder / "w.pt")
    ),
    "tars": Reader("images.tar", tar, changed_tar, lambda folder: list_images(folder / "images.tar"), error=DataError),
    "JPEG": Reader("image", lambda: made_images.encode(0), changed_bytes, read_image, error=DataError),
    "PNG": Reader("image", lambda: made_images.encode(0, kind="PNG"), changed_png, read_image, error=DataError),
}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(tmp_path, name, count):
    reader = READERS[name]
    for other, content in reader.beside.items():
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(content)
    whole, chance, accepted, seen = reader.whole(), random.Random(count), 0, len(WATCH.seen)
    file = tmp_path / reader.file
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(whole)
    reader.read(tmp_path)  # imports what it needs
    before = sorted(tmp_path.parent.rglob("*"))
    with warnings.catch_warnings(), bounded_memory(MEGABYTES):
        warnings.simplefilter("ignore")  # of libraries, about odd values
        for number in range(count):
            content = reader.change(chance, whole)
            file.unlink()  # ext4 waits for the disk where a file is overwritten
            file.write_bytes(content)
            try:
                error = refused(lambda: reader.read(tmp_path))
            except Exception as bug:
                bug.add_note(f"{name}, damaged file {number}: {content[:2000]!r}")
                raise
            assert error is None or isinstance(error, reader.error), content[:2000]
            assert error is None or "\n" not in str(error), content[:2000]
            accepted += error is None
    assert 0 < accepted < count if reader.refuses else accepted == count
    assert WATCH.seen[seen:] == []
    assert sorted(tmp_path.parent.rglob("*")) == before


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_records_are_reported(tmp_path, count):
    """A fifth of the damage is in small shards, the rest in messages whose checksums are right, all in one shard."""
    chance, small = random.Random(count), count // 5
    records = [tfrecords.serialize(made_images.encode(i, side=8), i % 2, f"{i}.jpg") for i in range(3)]
    two = b"".join(map(frame, records[:2]))
    messages = [changed_bytes(chance, chance.choice(records)) for _ in range(count - small)]
    contents = {"test-0": b"".join(map(frame, messages))}
    contents |= {f"test-{number}": changed_bytes(chance, two) for number in range(1, small + 1)}
    listed = []
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        examples = len(messages) if name == "test-0" else 2
        listed.append(tfrecords.Shard(str(tmp_path / name), examples, len(content), sha256))
    tfrecords.write_index(str(tmp_path), tfrecords.Index("pets", ("a", "b"), 0, {"test": tuple(listed)}), made_with={})
    problems: list[str] = []

    def check() -> None:
        problems.extend(shard_checker.check(str(tmp_path), threads=1, advance=lambda records: None)[1])

    seen = len(WATCH.seen)
    with bounded_memory(MEGABYTES):
        assert refused(check) is None  # what is wrong is reported, not raised
    named = {problem.partition(":")[0] for problem in problems}
    assert "test-0" in named and small // 2 < len(named)
    assert not any("\n" in problem for problem in problems)
    assert WATCH.seen[seen:] == []


@pytest.mark.slow
def test_damaged_images_of_shards_are_left_out(tmp_path, monkeypatch):
    """As training reads them with on_corrupt=skip: every image is there or is left out, and none stops it."""
    count = 200
    monkeypatch.setattr(encoded, "_TOLERATED_SHARE", 1.0)
    chance = random.Random(count)
    kinds = [(made_images.encode(0), changed_bytes), (made_images.encode(0, kind="PNG"), changed_png)]
    images = [change(chance, whole) for whole, change in (chance.choice(kinds) for _ in range(count))]
    (tmp_path / "train-0").write_bytes(b"".join(frame(tfrecords.serialize(image, 0, "")) for image in images))
    shard = tfrecords.Shard(str(tmp_path / "train-0"), count)
    tfrecords.write_index(str(tmp_path), tfrecords.Index("pets", ("a", "b"), 0, {"train": (shard,)}), made_with={})
    spec = DataSpec(name="tfrecords", dir=str(tmp_path), image_size=8, pad_crop=0, on_corrupt="skip")
    source, good = sources.load(spec, "train"), 0
    batches = pipeline.train_batches(
        source, spec, batch_size=50, seed=0, start_step=0, process_index=0, process_count=1
    )
    with bounded_memory(2 * MEGABYTES):  # with the threads and windows of the pipeline
        for batch in itertools.islice(batches, count // 50):
            good += int(np.sum(batch["label"] >= 0))
    assert 0 < good < count


PARTS_OF_NAMES = (
    b"a",
    b"\xff\xfe",
    "é".encode(),
    b"e\xcc\x81",
    b"\n",
    b"\x1b[2J",
    b" ",
    b"~",
    b"*",
    b"{x}",
    b".",
    b"-",
    b"\\",
)


@pytest.mark.parametrize("count", COUNTS)
def test_folders_of_odd_names_and_links_are_listed_or_refused(tmp_path, count):
    """A hundred names at a time: of classes, of files, and of links to anywhere."""
    chance, accepted, seen = random.Random(count), 0, len(WATCH.seen)
    for number in range(count // 100):
        root = os.fsencode(tmp_path / str(number))
        odd = {b"".join(chance.choices(PARTS_OF_NAMES, k=chance.randint(1, 4))) for _ in range(30)} - {b".", b".."}
        places = [os.path.join(root, split, name) for split in (b"train", b"test") for name in sorted(odd)]
        for place in places:
            os.makedirs(place)
            with open(os.path.join(place, b"1.jpg"), "wb") as file:
                file.write(b"x")
        for link in range(100 - len(odd)):
            target = chance.choice(
                (b"/etc", b"/etc/passwd", b"..", b"../..", b".", root, b"nowhere", chance.choice(places))
            )
            name = b"link %d" % link + chance.choice((b"", b".jpg", *PARTS_OF_NAMES))
            os.symlink(target, os.path.join(chance.choice((root, root + b"/train", *places)), name))
        spec = DataSpec(name="folder", dir=os.fsdecode(root))
        for split in ("train", "test"):
            error = refused(functools.partial(folders.open_folder, spec, split))
            assert error is None or (isinstance(error, DataError) and "\n" not in str(error))
            accepted += error is None
    assert WATCH.seen[seen:] == []
