"""Several processes as one run: joining and parting, stopping at one step, one folder, and one of them being gone.

Each host runs the same program on its share of the batch, and each step waits for the numbers of all. So what a host
does alone, such as stopping, would keep the others waiting: the hosts have to agree, or to see that one is gone.
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

from skipnet_jax.training import sharding

LOST = 75  # exit status, sysexits' EX_TEMPFAIL: nothing is wrong with this host, try again
HEARTBEAT_SECONDS = 20  # without a sign of life from a host for so long, JAX ends the others (status 134)
LEAVE_SECONDS = 15.0  # for hosts that stop together to say goodbye
SEEN_SECONDS = 15.0  # until what one host has written shows on the others: network file systems cache
STEPS_LATER = 2  # votes are counted when the loop has waited for their step in any case

_LOST = re.compile(r"\b(gloo|nccl|rccl|coordination service|heartbeats?)\b", re.IGNORECASE)  # collectives' words
_LAST_WORDS = "import sys; sys.stderr.write(sys.stdin.read().rpartition('\\0')[2])"  # what follows the last \0

_witness: subprocess.Popen[bytes] | None = None


def join(address: str | None, count: int | None, index: int | None, *, workdir: str | None) -> None:
    """Connects this process to the others, before JAX is used.

    JAX's own watch for SIGTERM is switched off: it knows no other signal, and swallows what it cannot act on. If
    another host is gone, JAX's threads end this process in the middle of whatever it does, with a stack trace; a small
    process beside this one then says what to do.

    Args:
      address: host:port of host 0; None = as the cluster says, and so the others.
      count: number of hosts.
      index: of this host, from 0.
      workdir: of the run, for the message.

    Raises:
      ValueError: what is not given cannot be found out.
    """
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(address, count, index, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except ValueError as error:
        raise ValueError(
            f"--distributed: got no cluster that JAX can ask ({error}), expected a TPU pod, Slurm, Open MPI or "
            f"Kubernetes. Elsewhere give --coordinator_address=HOST0:1234 --num_processes=N --process_id=0 and so on."
        ) from error
    global _witness
    text = f"error: this host ended at once: another one is gone, or it was killed itself. {_remedy(workdir)}"
    # In a session of its own, so that Ctrl-C does not reach it.
    _witness = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _LAST_WORDS], stdin=subprocess.PIPE, start_new_session=True
    )
    _tell_witness(f"\0{text}\n")
    atexit.register(_dismiss_witness)


def leave(status: int) -> None:
    """Ends this process though the other hosts may not be ending.

    At its end Python waits for them, while they wait for this one's part of the next sum: with the connections gone,
    they fail within seconds instead. Hosts that stop together part properly.

    Args:
      status: to exit with.
    """
    if status != LOST:  # then there is nobody to say goodbye to
        leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        leaving.start()
        leaving.join(LEAVE_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(OSError):  # the witness is gone
        _tell_witness("\0")  # last, and without waiting: until this process is over, JAX's threads may end it
    os._exit(status)


def is_lost(error: BaseException) -> bool:
    """Whether it says that another host does not answer; JAX has no type of error for that."""
    known = isinstance(error, ValueError | RuntimeError)  # of jax.block_until_ready; JaxRuntimeError is the latter
    return known and jax.process_count() > 1 and _LOST.search(str(error)) is not None


def lost_text(error: BaseException, workdir: str | None) -> str:
    """What the user is told of an error that `is_lost`.

    Args:
      error: whose first line tells the address.
      workdir: of the run.
    """
    return f"host {jax.process_index()} lost another host ({str(error).splitlines()[0]}). {_remedy(workdir)}"


class Votes:
    """What each host has to say at a step, known to all of them at a later one, without waiting for each other more.

    A vote travels over the devices like the sums of the step that it follows.
    """

    def __init__(self, mesh: Mesh) -> None:
        """Compiles nothing yet.

        Args:
          mesh: of the run.
        """
        self._sharding = sharding.batch_sharding(mesh)
        self._gather = jax.jit(lambda votes: votes, out_shardings=sharding.replicated(mesh))
        self._first = [[device.process_index for device in mesh.devices.flat].index(i) for i in range(_hosts(mesh))]
        self._mine = len(mesh.local_devices)
        self._cast: collections.deque[jax.Array] = collections.deque()

    def cast(self, vote: int) -> Sequence[int]:
        """Casts this host's vote; all hosts have to do so after the same steps.

        Args:
          vote: 0 = nothing to say.

        Returns:
          The votes of `STEPS_LATER` calls ago, by host, equal on every host; none at first.
        """
        mine = np.full(self._mine, vote, np.int32)
        self._cast.append(self._gather(jax.make_array_from_process_local_data(self._sharding, mine)))
        if len(self._cast) <= STEPS_LATER:
            return ()
        return np.asarray(self._cast.popleft())[self._first].tolist()


def require_shared(workdir: epath.Path) -> None:
    """Raises, on every host, unless all of them see the folder that host 0 sees; leaves nothing behind.

    Args:
      workdir: of the run, which may not exist yet.

    Raises:
      ValueError: some do not, or host 0 cannot write there.
    """
    if jax.process_count() == 1:
        return
    number = multihost_utils.broadcast_one_to_all(np.asarray(secrets.randbits(31), np.int32))
    file = workdir / f".seen_by_all_hosts_{number}"
    made, problem = False, ""
    if jax.process_index() == 0:
        try:
            made = not workdir.exists()
            workdir.mkdir(parents=True, exist_ok=True)
            file.write_text("")
        except OSError as error:
            problem = f" ({error.strerror or error})"
    multihost_utils.sync_global_devices("written")
    deadline = time.monotonic() + (SEEN_SECONDS if jax.process_index() else 0)
    while not (seen := file.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    all_seen = multihost_utils.process_allgather(np.asarray(seen))
    if jax.process_index() == 0 and not problem:
        file.unlink(missing_ok=True)
        if made and not all_seen.all():
            workdir.rmdir()
    if not all_seen[0]:
        raise ValueError(
            f"--workdir: got {workdir}, which cannot be written by host 0{problem}, expected a folder that can. Choose "
            f"another --workdir, or mend its permissions or its disk."
        )
    if not all_seen.all():
        without = ", ".join(str(host) for host in np.flatnonzero(~all_seen))
        raise ValueError(
            f"--workdir: got {workdir}, where host {without} does not see what host 0 has written, expected one "
            f"folder that all {len(all_seen)} hosts share. Give the same --workdir to all, on a network file system or "
            f"in a bucket (gs://...)."
        )


def _hosts(mesh: Mesh) -> int:
    return len({device.process_index for device in mesh.devices.flat})


def _remedy(workdir: str | None) -> str:
    return f"What is saved is in {workdir}: start all hosts again with the same command to go on."


def _tell_witness(text: str) -> None:
    if _witness is not None and _witness.stdin is not None:
        _witness.stdin.write(text.encode())
        _witness.stdin.flush()


def _dismiss_witness() -> None:
    """This process ends as it should."""
    global _witness
    if _witness is not None:
        _witness.communicate(b"\0")
        _witness = None
