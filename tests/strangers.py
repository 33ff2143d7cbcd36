"""Thousands of damaged files for one reader, in one process, under watch.

`mutations.py` makes examples that Hypothesis can shrink, a hundred times slower than these.
"""

import contextlib
import copy
import dataclasses
import json
import os
import pathlib
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

from skipnet_jax.errors import UserError
from tests.mutations import HOSTILE_JSON

NAMES = ("", ".", "..", "../../etc/passwd", "/etc/passwd", "a\0b", "a\nb", "~", "gs://", "\x1b[2J", "é\ud800", "format")
VALUES = (
    *(None, True, False, [], {}, [[]], [None], {"": {}}, *NAMES),
    *(0, -1, 1, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**400, float("nan"), float("inf"), -0.0, 1e308, 5e-324),
)
NUMBERS = (0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**62, 2**63, 2**64 - 1)
_CHANGES = frozenset(
    ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod")
)
_RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "ctypes.dlopen")
_STATUS = pathlib.Path("/proc/self/status")


def changed_bytes(chance: random.Random, content: bytes) -> bytes:
    """The bytes with one to three changes."""
    result = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 3))):
        at, size = chance.randrange(len(result) + 1), chance.choice((1, 2, 4, 8))
        match chance.randrange(7):
            case 0 | 1:
                result[at : at + 1] = chance.randbytes(1)
            case 2:
                result[at : at + size] = chance.randbytes(size)
            case 3:
                number = chance.choice(NUMBERS) % 256**size
                result[at : at + size] = number.to_bytes(size, chance.choice(("little", "big")))
            case 4:
                del result[at : at + chance.choice((1, 8, 64, len(result)))]
            case 5:
                result[at:at] = chance.randbytes(chance.choice((1, 8, 64)))
            case _:
                start = chance.randrange(len(result) + 1)
                result[at:at] = result[start : start + chance.choice((1, 8, 64))]
    return bytes(result)


def changed_json(chance: random.Random, content: Any) -> Any:
    """The JSON with one or two changes at any depth; content is changed."""
    for _ in range(chance.choice((1, 1, 2))):
        places = list(_places(content))
        if not places or chance.random() < 0.02:
            return _value(chance)
        holder, key = chance.choice(places)
        match chance.randrange(5):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[chance.choice(NAMES)] = holder[key]
            case 1:
                holder.insert(key, holder[key])
            case 2:
                other, name = chance.choice(places)
                holder[key] = json.loads(json.dumps(other[name]))
            case _:
                holder[key] = _value(chance)
    return content


def _value(chance: random.Random) -> Any:
    return copy.deepcopy(chance.choice(VALUES))  # a later change may go into it


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(content, dict | list):
        for key in list(content) if isinstance(content, dict) else range(len(content)):
            yield content, key
            yield from _places(content[key])


def changed_json_file(chance: random.Random, text: bytes) -> bytes:
    """A file of JSON, changed as JSON or as bytes."""
    draw = chance.random()
    if draw < 0.01:
        return chance.choice(HOSTILE_JSON)
    if draw < 0.4:
        return changed_bytes(chance, text)
    return json.dumps(changed_json(chance, json.loads(text))).encode()


@dataclasses.dataclass
class Watch:
    """What the process does, and how much memory it takes, within its `with` blocks.

    Attributes:
      seen: files opened for writing, changed or removed, and programs started.
    """

    seen: list[str] = dataclasses.field(default_factory=list)
    _active: bool = False
    _keeps: bool = False

    def __post_init__(self) -> None:
        sys.addaudithook(self._note)

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._active:
            return
        if event == "open":
            path, mode, flags = args
            written = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(flags, int) else "r" not in str(mode)
            if written:
                self.seen.append(f"{event} {path} {mode}")
        elif event in _CHANGES or event in _RUNS:
            self.seen.append(f"{event} {args}")

    def __enter__(self) -> None:
        self._keeps = sys.dont_write_bytecode
        sys.dont_write_bytecode = True  # a library may import a module of its own for the first time
        self._active = True

    def __exit__(self, *_: object) -> None:
        self._active = False
        sys.dont_write_bytecode = self._keeps


WATCH = Watch()  # a hook cannot be taken out again


@contextlib.contextmanager
def bounded_memory(megabytes: float) -> Iterator[None]:
    """Fails if the process needs so much more memory at any moment within the block; measures on Linux only."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        yield
        return
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak starts anew
    before = _status("VmRSS")
    yield
    more = _status("VmHWM") - before
    assert more < megabytes, f"{more:.0f} MB more memory, expected less than {megabytes}"


def _status(field: str) -> float:
    """A field of proc(5)'s status, in megabytes."""
    [line] = [line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) / 1024


def refused(read: Callable[[], Any]) -> UserError | None:
    """The user error that reading ends with; None if it succeeds. Under watch."""
    with WATCH:
        try:
            read()
        except UserError as error:
            return error
    return None
