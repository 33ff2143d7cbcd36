"""Gives a workdir to one trainer at a time; a second one would overwrite the first one's checkpoints.

The holder of the lease renews it every few seconds. A second trainer watches the lease. If it is renewed, the holder
is alive, and the second trainer is refused; after `STALE_SECONDS` without renewal, the second trainer takes over. Only
the watcher's own clock counts the seconds, so wrong clocks do no harm. On the same machine a dead holder is known at
once by its process number and start time, so nobody waits after `kill -9`.

A holder that was frozen meanwhile checks before every write, finds its token replaced, and stops. No file system offers
a conditional write, so some microseconds remain between check and write.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from skipnet_jax import files
from skipnet_jax.errors import LeaseLostError, UserError
from skipnet_jax.runs import lease_store

RENEW_SECONDS = 3.0
STALE_SECONDS = 30.0
_POLL_SECONDS = 0.25
_LONGEST = 2**32  # seconds, 136 years: a lease that claims to be older is damaged


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a lease: the content of its file.

    Args:
      host: name, for people.
      machine: identifies a boot of a machine, and the container's process numbers on it; empty = unknown.
      process: its number.
      started: when the process started, in the kernel's ticks; 0 = unknown.
      since: when it took the lease, by its host's clock, for people.
      token: random, to tell two holders apart.
    """

    host: str
    machine: str
    process: int
    started: int
    since: str
    token: str

    def serialize(self, held_seconds: float) -> bytes:
        """Makes the content of the lease, of constant length."""
        return json.dumps(dataclasses.asdict(self) | {"held_seconds": f"{held_seconds:015.3f}"}).encode()

    def is_dead(self) -> bool:
        """Tells whether the process is known to have ended, which only a process of the same machine can know."""
        if self.machine != _machine():
            return False
        if self.machine and pathlib.Path("/proc/self/stat").exists():
            return _started(self.process) != self.started
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
        return False


class Lease:
    """The right to write into a workdir, until another process takes it over."""

    def __init__(self, store: lease_store.Store | None = None, holder: Holder | None = None, version: int = 0) -> None:
        """Starts to renew a lease that was taken; without one, nobody else writes and there is nothing to check."""
        self._store, self._holder, self._version = store, holder, version
        self._began = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")
        if store is not None:
            self._thread.start()

    def require(self) -> None:
        """Call this right before writing into the workdir.

        Raises:
          LeaseLostError: another process holds the lease now.
        """
        if self._store is None or self._holder is None:
            return
        try:
            _, content = self._store.read()
        except Exception:  # a failing disk or bucket proves nothing, and the write will fail too
            return
        other = _parse(content)
        if other is not None and other[0].token == self._holder.token:
            return
        by = f"taken over by {_describe(other)}" if other else "removed"
        raise LeaseLostError(
            "workdir",
            f"a lease that was {by} while this process did not answer",
            "the one that this process had",
            "This process has written nothing since. Leave the run to the other, or start this command again.",
        )

    def close(self) -> None:
        """Gives the lease back."""
        self._closed.set()
        if self._store is not None:
            self._thread.join()
            with contextlib.suppress(Exception):  # it grows stale by itself
                self.require()
                self._store.remove(self._version)

    def _renew(self) -> None:
        while not self._closed.wait(RENEW_SECONDS):
            assert self._store is not None and self._holder is not None
            content = self._holder.serialize(time.monotonic() - self._began)
            try:
                self._version = self._store.renew(self._version, content)
            except LookupError:
                return  # `require` tells the run
            except Exception:  # the disk or the bucket may be back next time
                continue


NO_LEASE = Lease()  # for a folder that nobody else writes into


@contextlib.contextmanager
def hold(workdir: epath.Path) -> Iterator[Lease]:
    """Holds the lease of a workdir, which need not exist yet, within a `with` block. Of several hosts, host 0 holds it.

    Raises:
      UserError: another process is training in it, or the folder cannot be written.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    lease, refusal = NO_LEASE, None
    if jax.process_index() == 0:
        try:
            lease = acquire(workdir)
        except UserError as error:
            refusal = error
    if jax.process_count() > 1:
        held = bool(multihost_utils.broadcast_one_to_all(np.asarray(refusal is None)))
        if not held and refusal is None:
            refusal = UserError("workdir", f"{workdir}, which host 0 may not write", "a free one", "See host 0.")
    if refusal is not None:
        raise refusal
    try:
        yield lease
    finally:
        lease.close()


def acquire(workdir: epath.Path) -> Lease:
    """Takes the lease, as soon as it is free or stale; the arguments and errors are as for `hold`."""
    try:
        store = lease_store.open_store(workdir)
        me = _this_process()
        while True:
            version, content = store.read()
            if version and not _is_stale(store, version, content, workdir):
                continue
            taken = store.take(version, me.serialize(0.0))
            if taken is not None:
                return Lease(store, me, taken)
    except OSError as error:
        raise files.unwritable("workdir", workdir, error) from error


def _is_stale(store: lease_store.Store, version: int, content: bytes, workdir: epath.Path) -> bool:
    """Watches a lease until its holder is known to be dead, or has not renewed it for `STALE_SECONDS`.

    Returns:
      False if the lease was given back meanwhile.

    Raises:
      UserError: it is being renewed.
    """
    holder, began, said = _parse(content), time.monotonic(), False
    while (waited := time.monotonic() - began) < STALE_SECONDS and not (holder and holder[0].is_dead()):
        time.sleep(_POLL_SECONDS)
        newer = store.read()
        if not newer[0]:
            return False
        if newer != (version, content):
            raise UserError(
                "workdir",
                f"{workdir}, in which {_describe(_parse(newer[1]) or holder)} is training",
                "a workdir that no other process is training in",
                "Wait for that process, stop it, or choose another `workdir`.",
            )
        if waited > 2 * RENEW_SECONDS and not said:
            said = True
            print(
                f"{_describe(holder)} holds {workdir} and gives no sign of life; waiting {STALE_SECONDS:.0f} s for one",
                file=sys.stderr,
                flush=True,
            )
    return True


def _this_process() -> Holder:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Holder(platform.node(), _machine(), os.getpid(), _started(os.getpid()), now, secrets.token_hex(8))


def _machine() -> str:
    """Names one boot of this machine and one container on it, within which process numbers differ."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        return platform.node()


def _started(process: int) -> int:
    """When a process of this machine started, in ticks since the boot; 0 if it has ended, or if the time is unknown."""
    try:
        fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])  # proc(5): state is field 3, starttime is field 22


def _parse(content: bytes) -> tuple[Holder, float] | None:
    """The holder, and for how many seconds it has held the lease; None if the content is no lease."""
    names = [field.name for field in dataclasses.fields(Holder)]
    kinds: dict[str, Any] = {name: int if name in ("process", "started") else str for name in names}
    try:
        record = files.require_fields(files.parse_json(content, "lease"), {**kinds, "held_seconds": str}, "lease")
        held_seconds = float(record["held_seconds"])
        if not 0 <= held_seconds < _LONGEST:
            return None
        return Holder(*(record[name] for name in names)), held_seconds
    except ValueError:  # being written at this moment, or damaged; a UserError is a ValueError too
        return None


def _describe(found: tuple[Holder, float] | None) -> str:
    if found is None:
        return "an unknown process"
    holder, held_seconds = found
    age = datetime.timedelta(seconds=round(held_seconds))
    return f"process {holder.process} on host {holder.host} (since {holder.since}, for {age})"
