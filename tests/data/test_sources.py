"""The data sets: what is read, how CIFAR gets prepared, and what is said when it cannot be."""

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

from skipnet_jax.data import sources
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
    monkeypatch.setattr(sources, "_why_unreachable", lambda address: f"no way to {address}")
    yield archive


def test_digits_are_1797_real_images_split_once_and_for_all() -> None:
    spec = DataSpec(name="digits", image_size=16)
    train, test = sources.load(spec, "train"), sources.load(spec, "test")
    assert (train.num_examples, test.num_examples, train.num_classes) == (1437, 360, 10)
    assert train.images.shape == (1437, 16, 16, 3) and train.images.dtype == np.uint8
    assert train.labels.dtype == np.int32
    np.testing.assert_array_equal(train.images[..., 0], train.images[..., 2])
    # Stratified: each class has a fifth of its images in the test split.
    both = np.bincount(train.labels) + np.bincount(test.labels)
    np.testing.assert_allclose(np.bincount(test.labels), both / 5, atol=1)
    # No image is in both, and the split is the same wherever it is made.
    assert not {image.tobytes() for image in train.images} & {image.tobytes() for image in test.images}
    assert list(test.labels[:12]) == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3, 2, 6]
    np.testing.assert_array_equal(sources.load(spec, "test").images, test.images)


def test_digits_keep_their_pixels_and_their_statistics() -> None:
    native = sources.load(DataSpec(name="digits", image_size=8), "train")
    assert set(np.unique(native.images)) == {round(k * 255 / 16) for k in range(17)}
    train = sources.load(DataSpec(name="digits", image_size=32), "train")
    np.testing.assert_allclose(train.mean, (train.images / 255).mean(axis=(0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(train.std, (train.images / 255).std(axis=(0, 1, 2)), atol=1e-4)


def test_prepared_cifar_is_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    monkeypatch.setattr(sources, "_why_unreachable", lambda url: pytest.fail("asked the network"))
    splits = {"train": _cifar(2300, seed=0), "test": _cifar(30, seed=1)}
    features = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(names=_CLASSES),
        }
    )
    tfds.dataset_builders.store_as_tfds_dataset(
        name="cifar10",
        version=str(tfds.builder("cifar10", data_dir=tmp_path).version),
        data_dir=tmp_path,
        features=features,
        split_datasets={
            split: tf.data.Dataset.from_tensor_slices(
                {"id": [str(i) for i in range(len(labels))], "image": images, "label": labels}
            )
            for split, (images, labels) in splits.items()
        },
    )
    spec = DataSpec(name="cifar10", dir=str(tmp_path))
    for split, (images, labels) in splits.items():
        source = sources.load(spec, split)
        # TFDS shuffles when it writes (never when we read), so images are matched by content.
        index = {image.tobytes(): k for k, image in enumerate(images)}
        found = [index[image.tobytes()] for image in source.images]
        assert sorted(found) == list(range(len(images)))
        np.testing.assert_array_equal(source.labels, labels[found])
        np.testing.assert_array_equal(sources.load(spec, split).images, source.images)
    assert source.class_names == _CLASSES and source.labels.dtype == np.int32
    assert source.mean == (0.4914, 0.4822, 0.4465) and source.std == (0.2470, 0.2435, 0.2616)
    small = sources.load(DataSpec(name="cifar10", dir=str(tmp_path), image_size=16), "test")
    assert small.images.shape == (30, 16, 16, 3)


def test_the_official_archive_is_taken_from_the_manual_directory(registered: Path, tmp_path: Path) -> None:
    spec = DataSpec(name="cifar10", dir=str(tmp_path / "data"))
    manual = tmp_path / "data" / "downloads" / "manual" / registered.name
    manual.parent.mkdir(parents=True)

    manual.write_bytes(b"half a download")  # a wrong file is refused, and does not stand in the way afterwards
    with pytest.raises(sources.DataError, match=r"(?s)checksum.*fetch it:"):
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
    monkeypatch.setattr(sources, "_why_unreachable", lambda url: "there is no network")
    with pytest.raises(sources.DataError) as caught:
        sources.load(DataSpec(name=name, dir=str(tmp_path / "data")), "train")
    message = str(caught.value)
    archive = f"{name.replace('cifar', 'cifar-')}-binary.tar.gz"
    place, url = tmp_path / "data" / "downloads" / "manual" / archive, f"https://www.cs.toronto.edu/~kriz/{archive}"
    for part in (name, "there is no network", digest, f"curl -fL -o {place} {url}", "run again:", "--config.data.dir"):
        assert part in message
    assert not (tmp_path / "data").exists()


def test_a_failed_download_becomes_the_same_message(registered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = tfds.builder("cifar10", data_dir=registered.parent / "data")
    monkeypatch.setattr(builder, "download_and_prepare", lambda: (_ for _ in ()).throw(ConnectionError("cut off")))
    with pytest.raises(sources.DataError, match=r"(?s)could not be prepared: ConnectionError: cut off.*fetch it:"):
        sources._prepare(builder)


def test_absent_cifar_is_said_within_five_seconds(tmp_path: Path) -> None:
    code = (
        "import sys, socket, time; from skipnet_jax.data import sources; from skipnet_jax.specs import DataSpec\n"
        "def slow(*args): time.sleep(60)\n"
        "socket.getaddrinfo = slow\n"  # name look-up hangs
        "start = time.monotonic()\n"
        "try: sources.load(DataSpec(name='cifar10', dir=sys.argv[1]), 'train')\n"
        "except sources.DataError as error: print(error, '|', 'tensorflow' in sys.modules, time.monotonic() - start)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert "no answer within 2.5 s" in done.stdout and "fetch it:" in done.stdout, done.stderr
    tensorflow_imported, seconds = done.stdout.rsplit("|", 1)[1].split()
    assert tensorflow_imported == "False" and float(seconds) < 5


def test_a_silent_server_counts_as_out_of_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        start = time.monotonic()
        assert sources._why_unreachable(f"http://127.0.0.1:{server.getsockname()[1]}/file")
        assert time.monotonic() - start < 4


def test_a_server_is_asked_for_the_file_itself(tmp_path: Path) -> None:
    import functools
    import http.server
    import threading

    (tmp_path / "file").write_bytes(b"here")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        assert sources._why_unreachable(f"{address}/file") is None
        assert "404" in (sources._why_unreachable(f"{address}/other") or "")
        server.shutdown()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.name: got 'cifar', expected one of cifar10.*--config\.data\.name"):
        sources.load(DataSpec(name="cifar"), "train")
    with pytest.raises(ValueError, match="split: got 'validation'"):
        sources.load(DataSpec(name="digits"), "validation")


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(sources.DataError, match="pip install scikit-learn"):
        sources.load(DataSpec(name="digits"), "train")
