"""A headless Chromium without a network, driven through its debugging pipe, without a driver or a library."""

import base64
import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 60.0  # limit for any answer, on a busy machine


def find() -> str | None:
    """The browser's path: the environment variable CHROMIUM, or else the first that is installed."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@dataclasses.dataclass
class Page:
    """A tab. `messages` holds the console's messages, `requests` the requested addresses."""

    read: int
    write: int
    session: str = ""
    number: int = 0
    rest: bytes = b""
    messages: list[str] = dataclasses.field(default_factory=list)
    requests: list[str] = dataclasses.field(default_factory=list)
    loaded: int = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the DevTools protocol, and waits for its result."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def open(self, file: pathlib.Path, width: int) -> None:
        """Opens a file in a window of this width in pixels."""
        self.messages.clear()
        self.requests.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        before = self.loaded
        self.call("Page.navigate", url=file.resolve().as_uri())
        while self.loaded == before:
            self._next()

    def value(self, script: str) -> Any:
        """Evaluates a script in the page; waits if its value is a promise."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def screenshot(self, file: pathlib.Path) -> None:
        """Writes the whole page as a PNG."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        file.write_bytes(base64.b64decode(answer["data"]))

    def _next(self) -> dict[str, Any]:
        """Reads the browser's next message, and records events."""
        end = time.monotonic() + SECONDS
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.read], [], [], max(0.0, end - time.monotonic()))
            chunk = os.read(self.read, 1 << 20) if ready else b""
            if not chunk:
                raise TimeoutError(f"Chromium has {'gone' if ready else f'not answered for {SECONDS:g} s'}")
            self.rest += chunk
        line, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(line)
        method, about = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self.loaded += 1
        elif method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif method == "Log.entryAdded":
            self.messages.append(about["entry"]["text"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.messages.append(json.dumps(about))
        return message


@contextlib.contextmanager
def page(binary: str, profile: pathlib.Path) -> Iterator[Page]:
    """Starts a browser with one empty tab, and ends it.

    Args:
      profile: an empty folder for the browser's files.
    """
    command_end, to_browser = os.pipe()
    from_browser, answer_end = os.pipe()
    # The browser expects its pipes at descriptors 3 and 4. Bash puts them there: a `preexec_fn` would fork Python,
    # about which JAX warns once any test in this process has used it.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (command_end, answer_end)]
    in_place = f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}'
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe", f"--user-data-dir={profile}"),
        "about:blank",
    ]
    process = subprocess.Popen(
        ["bash", "-c", in_place, "bash", binary, *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=ends,
        start_new_session=True,
    )
    for end in (command_end, answer_end, *ends):
        os.close(end)
    try:
        tab = Page(from_browser, to_browser)
        target = tab.call("Target.createTarget", url="about:blank")["targetId"]
        tab.session = tab.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        yield tab
    finally:
        os.close(to_browser)  # ends the browser
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(from_browser)
