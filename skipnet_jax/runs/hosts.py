"""Runs one training job on several hosts: joining, leaving, stopping at the same step, and noticing a lost host.

Every host runs the same program on its share of the batch, and every step sums over all hosts. A host that stops on
its own would therefore leave the others waiting for ever. So the hosts agree when to stop, and a host that is lost ends
the others with a message that says what to do.
"""

import atexit
import collections
import contextlib
import os
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from skipnet_jax import files
from skipnet_jax.errors import UserError
from skipnet_jax.training import sharding

LOST = 75  # exit status: sysexits' EX_TEMPFAIL, "try again"; nothing is wrong with this host
JOIN_SECONDS = 300  # if not all hosts have started by then, JAX ends this one (status 134)
HEARTBEAT_SECONDS = 20  # after this long without a heartbeat from one host, JAX ends the others (status 134)
LEAVE_SECONDS = 15.0  # for hosts that stop together to disconnect
VISIBLE_SECONDS = 15.0  # network file systems cache: a new file takes a while to show on other hosts
STEPS_LATER = 2  # by then the loop has waited for the step of a vote anyway

_LOST = re.compile(r"\b(gloo|nccl|rccl|coordination service|heartbeats?)\b", re.IGNORECASE)  # in JAX's errors
_PRINT_LAST = "import sys; sys.stderr.write(sys.stdin.read().rpartition('\\0')[2])"  # the text after the last \0

_witness: subprocess.Popen[bytes] | None = None


def join(address: str | None, count: int | None, index: int | None, *, workdir: str | None) -> None:
    """Connects this process to the other hosts. Call it before JAX is used.

    If another host is lost, or if not all hosts join in time, JAX's threads abort this process with a stack trace. A
    small child process, the witness, survives that and prints what to do. JAX's own handler of SIGTERM is switched off,
    because it swallows that signal and handles no other; `signals` takes its place.

    Args:
      address: host:port of host 0. None: ask the cluster, for `count` and `index` too.
      index: of this host, from 0.
      workdir: of the run, for messages.

    Raises:
      UserError: there is no cluster to ask.
    """
    jax.config.update("jax_enable_preemption_service", False)
    global _witness
    _witness = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _PRINT_LAST],
        stdin=subprocess.PIPE,
        start_new_session=True,  # out of reach of Ctrl-C
    )
    _tell_witness(
        f"\0error: not all hosts have joined within {JOIN_SECONDS} s. Start the same command on each host, or give "
        "--distributed=no to run on this one alone.\n"
    )
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except ValueError as error:
        _dismiss_witness()
        raise UserError(
            "distributed",
            f"no cluster that JAX can ask ({error})",
            "a TPU pod, Slurm, Open MPI or Kubernetes",
            "Elsewhere give `coordinator_address`, `num_processes` and `process_id` on each host.",
        ) from error
    except BaseException:
        _dismiss_witness()
        raise
    text = f"error: this host was aborted: another host is gone, or this one was killed. {_remedy(workdir)}"
    _tell_witness(f"\0{text}\n")
    atexit.register(_dismiss_witness)


def leave(status: int) -> None:
    """Exits at once, with `status`, while other hosts may still be running.

    A normal exit would deadlock: at its end Python waits for the other hosts, and they wait for this host's part of the
    next sum. Once the connections are gone, the others fail within seconds. Hosts that stop together disconnect first.
    """
    if status != LOST:  # otherwise there is no host to disconnect from
        leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        leaving.start()
        leaving.join(LEAVE_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(OSError):  # the witness may be gone
        _tell_witness("\0")  # last of all: until the exit, JAX's threads may still abort this process
    os._exit(status)


def is_lost(error: BaseException) -> bool:
    """Tells whether an error means that another host does not answer. JAX has no type for such errors."""
    known = isinstance(error, ValueError | RuntimeError)  # jax.block_until_ready raises the former
    return known and jax.process_count() > 1 and _LOST.search(str(error)) is not None


def lost_text(error: BaseException, workdir: str | None) -> str:
    """Says what to do about an error that `is_lost`."""
    return f"host {jax.process_index()} lost another host ({str(error).splitlines()[0]}). {_remedy(workdir)}"


class Votes:
    """Shares one integer per host and step, and reads it two steps later, so that nobody waits.

    A vote travels over the devices, like the sums of its step.
    """

    def __init__(self, mesh: Mesh) -> None:
        """Prepares the program that gathers the votes over the mesh of the run."""
        self._sharding = sharding.batch_sharding(mesh)
        self._gather = jax.jit(lambda votes: votes, out_shardings=sharding.replicated(mesh))
        owners = [device.process_index for device in mesh.devices.flat]
        self._first_device = [owners.index(host) for host in range(jax.process_count())]
        self._local_devices = len(mesh.local_devices)
        self._cast: collections.deque[jax.Array] = collections.deque()

    def cast(self, vote: int) -> Sequence[int]:
        """Casts this host's vote. Every host must call this after the same steps.

        Args:
          vote: 0 = nothing to say.

        Returns:
          The votes of `STEPS_LATER` calls ago, by host, the same on every host; () in the first calls.
        """
        mine = np.full(self._local_devices, vote, np.int32)
        self._cast.append(self._gather(jax.make_array_from_process_local_data(self._sharding, mine)))
        if len(self._cast) <= STEPS_LATER:
            return ()
        return np.asarray(self._cast.popleft())[self._first_device].tolist()


def require_shared(workdir: epath.Path) -> None:
    """Checks that all hosts see the same folder, which need not exist yet. Leaves no file behind.

    Host 0 writes a file with a random name, and the others look for it.

    Raises:
      UserError: on every host, if host 0 cannot write there or some host does not see the file.
    """
    if jax.process_count() == 1:
        return
    number = multihost_utils.broadcast_one_to_all(np.asarray(secrets.randbits(31), np.int32))
    file = workdir / f".seen_by_all_hosts_{number}"
    made, problem = False, None
    if jax.process_index() == 0:
        try:
            made = not workdir.exists()
            workdir.mkdir(parents=True, exist_ok=True)
            file.write_text("")
        except OSError as error:
            problem = error
    multihost_utils.sync_global_devices("written")
    deadline = time.monotonic() + (VISIBLE_SECONDS if jax.process_index() else 0)
    while not (seen := file.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    seen_by = multihost_utils.process_allgather(np.asarray(seen))
    if jax.process_index() == 0 and problem is None:
        file.unlink(missing_ok=True)
        if made and not seen_by.all():
            workdir.rmdir()
    if not seen_by[0]:
        raise files.unwritable("workdir", f"{workdir} on host 0", problem)
    if not seen_by.all():
        blind = ", ".join(str(host) for host in np.flatnonzero(~seen_by))
        raise UserError(
            "workdir",
            f"{workdir}, where host {blind} does not see what host 0 has written",
            f"one folder that all {len(seen_by)} hosts share",
            "Give the same `workdir` to all, on a network file system or in a bucket (gs://...).",
        )


def _remedy(workdir: str | None) -> str:
    return f"Saved work is in {workdir}: start all hosts again with the same command to go on."


def _tell_witness(text: str) -> None:
    if _witness is not None and _witness.stdin is not None:
        _witness.stdin.write(text.encode())
        _witness.stdin.flush()


def _dismiss_witness() -> None:
    """Ends the witness without a word, since this process ends normally."""
    global _witness
    if _witness is not None:
        _witness.communicate(b"\0")
        _witness = None
