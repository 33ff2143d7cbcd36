"""Downloads, from a server on loopback that breaks off, redirects, and serves something else."""

import concurrent.futures
import hashlib
import socket
import time

import pytest

from skipnet_jax.errors import UserError
from skipnet_jax.interop import downloads
from tests.interop.file_server import serve

CONTENT = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(CONTENT).hexdigest()[:8]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(downloads.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "PAUSE", 0.01)
    return tmp_path / "cache"


@pytest.fixture
def server():
    with serve() as running:
        running.files["/w.pth"] = CONTENT
        yield running


def test_a_file_is_fetched_once(cache, server):
    for _ in range(2):
        assert downloads.fetch(f"{server.address}/w.pth", SHA256).read_bytes() == CONTENT
    assert server.asked == [("/w.pth", None)]
    assert [path.name for path in cache.iterdir()] == ["w.pth"]


def test_of_several_that_fetch_at_once_one_downloads(cache, server):
    """Else they would write into the same part."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for place in pool.map(downloads.fetch, [f"{server.address}/w.pth"] * 4, [SHA256] * 4):
            assert place.read_bytes() == CONTENT
    assert server.asked == [("/w.pth", None)]
    assert [path.name for path in cache.iterdir()] == ["w.pth"]


@pytest.mark.parametrize("ranges", [True, False], ids=["goes on", "starts anew where the server cannot"])
def test_a_download_that_breaks_off_goes_on(cache, server, ranges):
    server.cut, server.ranges = [100_000], ranges
    assert downloads.fetch(f"{server.address}/w.pth", SHA256).read_bytes() == CONTENT
    assert server.asked == [("/w.pth", None), ("/w.pth", "bytes=65536-")]


def test_a_download_that_always_breaks_off_keeps_its_part_for_the_next_call(cache, server):
    server.cut = [100_000] * 3
    with pytest.raises(
        UserError, match=r"got 196,608 bytes, then a broken connection.*again to resume.*put it at .*w.pth"
    ):
        downloads.fetch(f"{server.address}/w.pth", SHA256)
    assert [path.name for path in cache.iterdir()] == ["w.pth.part"]
    assert downloads.fetch(f"{server.address}/w.pth", SHA256).read_bytes() == CONTENT
    assert server.asked[-1] == ("/w.pth", "bytes=196608-")


def test_a_part_that_is_whole_already_needs_only_its_name(cache, server):
    cache.mkdir()
    (cache / "w.pth.part").write_bytes(CONTENT)
    assert downloads.fetch(f"{server.address}/w.pth", SHA256).read_bytes() == CONTENT


def test_another_file_is_refused_and_not_kept(cache, server):
    server.files["/w.pth"] = CONTENT[::-1]
    with pytest.raises(
        UserError, match=rf"a file whose SHA-256 begins with .*, expected one that begins with {SHA256}"
    ):
        downloads.fetch(f"{server.address}/w.pth", SHA256)
    assert list(cache.iterdir()) == []
    (cache / "w.pth").write_bytes(b"put there by hand")
    with pytest.raises(UserError, match=r"Remove .*w.pth, and fetch"):
        downloads.fetch(f"{server.address}/w.pth", SHA256)


def test_redirects_are_followed_and_other_answers_told(cache, server):
    server.moved["/old.pth"] = "/w.pth"
    assert downloads.fetch(f"{server.address}/old.pth", SHA256).read_bytes() == CONTENT
    with pytest.raises(
        UserError, match=rf"got HTTP status 404, expected the file. Fetch http.* elsewhere, and put it at {cache}/none"
    ):
        downloads.fetch(f"{server.address}/none.pth", SHA256)


def test_without_a_server_the_error_comes_at_once_with_the_address_and_the_place(cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/w.pth"
    start = time.monotonic()
    with pytest.raises(
        UserError, match=rf"got no answer from the server.*offline, fetch {address} .* put it at {cache}/w.pth"
    ):
        downloads.fetch(address, SHA256)
    assert time.monotonic() - start < 20
