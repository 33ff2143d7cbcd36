"""An HTTP server on loopback that behaves well or badly, as told, and tells what it was asked."""

import contextlib
import http.server
import threading
from collections.abc import Iterator


class FileServer(http.server.ThreadingHTTPServer):
    """Serves `files` by path.

    Args:
      cut: bytes after which answers break off, one number for each of the first answers.
      moved: path -> path that it redirects to.
      ranges: whether it answers a request for a part with the part.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.cut: list[int] = []
        self.moved: dict[str, str] = {}
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []  # path and Range of each request

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FileServer
    timeout = 10

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        if self.path in self.server.moved:
            self.send_response(302)
            self.send_header("Location", self.server.address + self.server.moved[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.ranges else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + self.server.cut.pop(0) if self.server.cut else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def serve() -> Iterator[FileServer]:
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)
