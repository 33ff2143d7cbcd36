"""Records every start and stop of a run in events.jsonl, to show how often it was interrupted, and why."""

import contextlib
import datetime
import importlib.metadata
import pathlib
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from skipnet_jax import files
from skipnet_jax.runs import signals
from skipnet_jax.runs import workdir as workdirs
from skipnet_jax.runs.lease import NO_LEASE, Lease

LIBRARIES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "clu",
    "numpy",
    "tensorflow",
    "tensorflow-cpu",
    "tensorflow-datasets",
    "scikit-learn",
)


@contextlib.contextmanager
def recorded(workdir: epath.Path, done: Callable[[], int], lease: Lease = NO_LEASE) -> Iterator[None]:
    """Records a start, and a stop with its reason at the end of the `with` block.

    A start without a stop means that the process was killed, or has lost the lease.

    Args:
      done: returns the number of training steps so far.
    """
    lease.require()
    if jax.process_index() == 0:
        files.write_lines(workdir / workdirs.EVENTS, read(workdir))  # drops a line that kill -9 has torn
    _record(workdir, "start", done(), _circumstances())
    why = "finished"
    try:
        yield
    except BaseException as error:
        why = error.why if isinstance(error, signals.Stopped) else f"{type(error).__name__}: {error}".splitlines()[0]
        raise
    finally:
        lease.require()
        _record(workdir, "stop", done(), {"why": why})


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """Reads all events, in order."""
    file = epath.Path(workdir) / workdirs.EVENTS
    return files.read_lines(file, {"time": str, "event": str, "step": int}, mend=workdirs.MEND)


def _record(workdir: epath.Path, event: str, step: int, facts: dict[str, Any]) -> None:
    if jax.process_index() == 0:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        file = workdir / workdirs.EVENTS
        if files.append_lines(file, [{"time": now, "event": event, "step": step, **facts}]):
            print(f"WARNING: no room for the {event} in {file}", file=sys.stderr)


def _circumstances() -> dict[str, Any]:
    return {
        "command": sys.argv,
        "git": git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": versions(),
        "devices": jax.device_count(),
        "device_kind": jax.devices()[0].device_kind,
        "hosts": jax.process_count(),
    }


def git_revision() -> str | None:
    """The commit of this code, with "+changes" if files differ from it; None outside of a clone."""
    root = pathlib.Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # an installed package may lie within someone else's repository
        return None
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changes else "")


def versions() -> dict[str, str]:
    """The version of each library that is installed."""
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
