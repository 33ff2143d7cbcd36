"""TensorFlow Datasets: how CIFAR is prepared, and what an error says if a data set cannot be."""

import hashlib
import io
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from skipnet_jax.data import sources, tfds_builders
from skipnet_jax.errors import DataError, UserError
from skipnet_jax.specs import DataSpec

_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def _cifar(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), np.arange(count) % 10


def _write_archive(path: Path) -> None:
    """A small archive in the official format: five training files of 4 images, one test file of 6."""
    images, labels = _cifar(26, seed=1)

    def binary(start: int, stop: int) -> bytes:
        return b"".join(bytes([labels[i]]) + images[i].transpose(2, 0, 1).tobytes() for i in range(start, stop))

    files = {f"data_batch_{k + 1}.bin": binary(4 * k, 4 * k + 4) for k in range(5)}
    files |= {"test_batch.bin": binary(20, 26), "batches.meta.txt": "\n".join(_CLASSES).encode()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Registers the small archive's checksum with TFDS, and an address that does not exist; yields the archive."""
    archive = tmp_path / "made" / "cifar-10-binary.tar.gz"
    _write_archive(archive)
    content = archive.read_bytes()
    info = tfds.core.download.checksums.UrlInfo(
        size=tfds.core.utils.Size(len(content)),
        checksum=hashlib.sha256(content).hexdigest(),
        filename="cifar-10-binary.tar.gz",
    )
    (url,) = tfds.builder("cifar10", data_dir=tmp_path).url_infos
    monkeypatch.setitem(tfds.builder("cifar10", data_dir=tmp_path).url_infos, url, info)
    monkeypatch.setattr(tfds_builders, "_why_unreachable", lambda address: f"no way to {address}")
    yield archive


def test_the_official_archive_is_taken_from_the_manual_directory(registered: Path, tmp_path: Path) -> None:
    spec = DataSpec(name="cifar10", dir=str(tmp_path / "data"))
    manual = tmp_path / "data" / "downloads" / "manual" / registered.name
    manual.parent.mkdir(parents=True)

    manual.write_bytes(b"half a download")  # a wrong file is refused, and does not stand in the way afterwards
    with pytest.raises(DataError, match=r"(?s)checksum.*fetch it:"):
        sources.load(spec, "train")
    manual.write_bytes(registered.read_bytes())

    train, test = sources.load(spec, "train"), sources.load(spec, "test")
    assert (train.num_examples, test.num_examples) == (20, 6)
    images, labels = _cifar(26, seed=1)
    expected = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for source in (train, test):
        assert [expected[image.tobytes()] for image in source.images] == list(source.labels)
    assert train.class_names == _CLASSES


@pytest.mark.parametrize("name, digest", [("cifar10", "c4a38c50a1bc"), ("cifar100", "58a81ae192c2")])
def test_absent_cifar_names_file_place_and_command(
    name: str, digest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tfds_builders, "_why_unreachable", lambda url: "there is no network")
    with pytest.raises(DataError) as caught:
        sources.load(DataSpec(name=name, dir=str(tmp_path / "data")), "train")
    message = str(caught.value)
    archive = f"{name.replace('cifar', 'cifar-')}-binary.tar.gz"
    place, url = tmp_path / "data" / "downloads" / "manual" / archive, f"https://www.cs.toronto.edu/~kriz/{archive}"
    for part in (
        name,
        "there is no network",
        digest,
        f"curl -fL -o {place} '{url}'",
        "run again:",
        "data.dir",
    ):
        assert part in message
    assert not (tmp_path / "data").exists()


def test_a_failed_download_becomes_the_same_message(registered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = tfds.builder("cifar10", data_dir=registered.parent / "data")
    monkeypatch.setattr(builder, "download_and_prepare", lambda: (_ for _ in ()).throw(ConnectionError("cut off")))
    with pytest.raises(DataError, match=r"(?s)got ConnectionError while preparing it \(cut off\).*fetch it:"):
        tfds_builders.prepare(builder)


def test_absent_cifar_is_said_without_waiting_for_the_network(tmp_path: Path) -> None:
    code = (
        "import sys, socket, time; from skipnet_jax import errors; from skipnet_jax.data import sources\n"
        "from skipnet_jax.specs import DataSpec\n"
        "def slow(*args): time.sleep(60)\n"
        "socket.getaddrinfo = slow\n"  # name look-up hangs
        "start = time.monotonic()\n"
        "try: sources.load(DataSpec(name='cifar10', dir=sys.argv[1]), 'train')\n"
        "except errors.DataError as error: print(error, '|', 'tensorflow' in sys.modules, time.monotonic() - start)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert "no answer within 2.5 s" in done.stdout and "fetch it:" in done.stdout, done.stderr
    tensorflow_imported, seconds = done.stdout.rsplit("|", 1)[1].split()
    assert tensorflow_imported == "False" and float(seconds) < 20


def test_a_silent_server_counts_as_out_of_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        start = time.monotonic()
        assert tfds_builders._why_unreachable(f"http://127.0.0.1:{server.getsockname()[1]}/file")
        assert time.monotonic() - start < 20


def test_a_server_is_asked_for_the_file_itself(tmp_path: Path) -> None:
    import functools
    import http.server
    import threading

    (tmp_path / "file").write_bytes(b"here")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        assert tfds_builders._why_unreachable(f"{address}/file") is None
        assert "404" in (tfds_builders._why_unreachable(f"{address}/other") or "")
        server.shutdown()


def test_absent_imagenet_names_both_archives_and_their_place(tmp_path: Path) -> None:
    (tmp_path / "downloads" / "manual").mkdir(parents=True)
    spec = DataSpec(name="imagenet2012", dir=str(tmp_path))
    with pytest.raises(DataError) as caught:
        sources.load(spec, "train")
    manual = tmp_path / "downloads" / "manual"
    train, val = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
    for part in (
        manual / train,
        manual / val,
        "b08200a27a8e",
        "c7e06a6c0bac",
        f"mv {train} {val} {manual}",
        "image-net.org",
    ):
        assert str(part) in str(caught.value)
    (manual / train).touch()  # half of it is not enough, and nothing starts
    with pytest.raises(DataError, match=f"mv {val} "):
        sources.require_available(spec)
    assert {path.name for path in tmp_path.iterdir()} == {"downloads"}


@pytest.mark.parametrize(
    "name, archive",
    [
        ("imagenet_r", "imagenet-r.tar"),
        ("imagenet_v2", "imagenetv2-matched-frequency.tar.gz"),
        ("imagenet_v2/threshold-0.7", "imagenetv2-threshold0.7.tar.gz"),
        ("imagenet_v2/topimages", "imagenetv2-top-images.tar.gz"),  # spelt differently
    ],
)
def test_absent_test_sets_name_their_archive(
    name: str, archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tfds_builders, "_why_unreachable", lambda url: "there is no network")
    with pytest.raises(DataError, match="there is no network") as caught:
        sources.load(DataSpec(name=name, dir=str(tmp_path)), "test")
    place = tmp_path / "downloads" / "manual" / archive
    assert f"curl -fL -o {place} " in str(caught.value) and str(caught.value).count("curl") == 1


def test_real_needs_the_validation_archive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mv ILSVRC2012_img_val\.tar "):
        sources.load(DataSpec(name="imagenet2012_real", dir=str(tmp_path)), "test")


def test_unknown_variants_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"got 'imagenet_v2/all', expected imagenet_v2/matched-frequency or"):
        sources.require_available(DataSpec(name="imagenet_v2/all", dir=str(tmp_path)))
    with pytest.raises(UserError, match=r"got 'cifar10/plain', expected cifar10"):
        sources.require_available(DataSpec(name="cifar10/plain", dir=str(tmp_path)))


def test_a_data_set_that_the_user_has_to_fetch_shows_its_instructions(tmp_path: Path) -> None:
    """As RESISC45, on a disk that anybody may read."""
    with pytest.raises(
        DataError, match=r"got no prepared data set, expected .*resisc45/3\.0\.0, or its files"
    ) as caught:
        sources.require_available(DataSpec(name="resisc45", dir=str(tmp_path)))
    for part in (f"into:        {tmp_path}/downloads/manual", "please extract it to the manual_dir", "run again:"):
        assert part in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_of_many_archives_a_few_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(tfds_builders, "_why_unreachable", lambda url: asked.append(url) or "there is no network")
    with pytest.raises(DataError, match=r"(?s)there is no network.*  and 340 more\n  run again") as caught:
        sources.require_available(DataSpec(name="quickdraw_bitmap", dir=str(tmp_path)))
    assert str(caught.value).count("fetch it:") == 5 and len(asked) == 1


def test_packages_that_preparing_needs_are_named(registered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = tfds.builder("cifar10", data_dir=registered.parent / "data")
    lacking = ModuleNotFoundError("No module named 'apache_beam'", name="apache_beam")
    monkeypatch.setattr(builder, "download_and_prepare", lambda: (_ for _ in ()).throw(lacking))
    with pytest.raises(
        DataError, match=r"got No module named 'apache_beam' while preparing it.*pip install apache_beam"
    ):
        tfds_builders.prepare(builder)


def test_a_host_that_is_overtaken_takes_what_the_other_has_prepared(
    registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hosts start on an empty disk that both see."""
    spec = DataSpec(name="cifar10", dir=str(tmp_path / "data"))
    manual = tmp_path / "data" / "downloads" / "manual" / registered.name
    manual.parent.mkdir(parents=True)
    manual.write_bytes(registered.read_bytes())
    cifar = type(tfds.builder("cifar10", data_dir=spec.dir))
    write, others = cifar._split_generators, [tfds.builder("cifar10", data_dir=spec.dir)]

    def overtaken(builder: tfds.core.DatasetBuilder, downloads: object) -> object:
        if others and builder is not others[0]:
            others.pop().download_and_prepare()
        return write(builder, downloads)

    monkeypatch.setattr(cifar, "_split_generators", overtaken)
    assert sources.load(spec, "train").num_examples == 20 and not others


@pytest.mark.parametrize("name", ["imagenet2012:5.0.0", "food101:1.0.0"])
def test_a_version_that_cannot_be_prepared_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data\.name: got .*, expected version \d\.\d\.0, or a prepared one"):
        sources.require_available(DataSpec(name=name, dir=str(tmp_path)))
