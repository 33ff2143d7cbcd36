"""Decides when a run saves, and survives a full disk."""

import contextlib
import errno
import shutil
import sys
from collections.abc import Mapping
from time import monotonic as now
from types import TracebackType
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from skipnet_jax import files
from skipnet_jax.errors import LeaseLostError
from skipnet_jax.runs import checkpoint, hosts
from skipnet_jax.runs.lease import NO_LEASE, Lease

RETRY_SECONDS = 60.0


class Saver:
    """Saves in the background, and by the clock.

    A failed write leaves the earlier checkpoints as they are. The saver prints a warning, training goes on, and the
    saver tries again every minute, with the state of that time, until there is room.
    """

    def __init__(self, directory: epath.Path, *, every_minutes: float, lease: Lease = NO_LEASE) -> None:
        """Opens the folder of checkpoints. Use the saver in a `with` block, which closes it.

        Args:
          directory: `checkpoints` of a workdir.
          every_minutes: longest time between two saves; 0 = ignore the clock.
          lease: of the workdir; once it is lost, nothing is written or removed.
        """
        self._directory, self._lease = directory, lease
        self._every = every_minutes * 60 or float("inf")
        self._begun = now()
        self._failed = False
        self._writing: int | None = None  # the step of a write in the background
        self.manager = checkpoint.open_manager(directory, lease=lease)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, LeaseLostError):
            return
        if error is None or not hosts.is_lost(error):  # a write would wait for the lost host's part
            self.finish()
            self.manager.close()

    def due(self, *, fetched: bool) -> bool:
        """Tells whether the clock asks for a save. Several hosts must agree, and do so only at steps with a fetch.

        Args:
          fetched: whether the host has just fetched numbers, and so has waited for the device anyway.
        """
        late = now() - self._begun >= (RETRY_SECONDS if self._failed else self._every)
        if jax.process_count() == 1:
            return late
        return fetched and bool(multihost_utils.broadcast_one_to_all(np.asarray(late)))

    def save(
        self, step: int, state: Any, pending: Mapping[str, Any], results: Mapping[str, float | int] | None
    ) -> None:
        """Starts to write a checkpoint; the arguments are as for `checkpoint.save`."""
        self.finish()  # reports a failure of the previous write as that write's
        self._begun = now()
        self._lease.require()
        try:
            _require_room(self._directory, state)
            checkpoint.save(self.manager, step, state, results, pending)
            self._writing = step
        except Exception as error:  # Orbax and TensorStore raise many types
            self._fail(step, error)

    def poll(self) -> None:
        """Reports a write that has failed in the meantime; does not wait."""
        if self._writing is not None and not self.manager.is_saving_in_progress():
            self.finish()

    def finish(self) -> bool:
        """Waits for the write in progress, and returns whether the last save succeeded."""
        step, self._writing = self._writing, None
        if step is not None:
            try:
                self.manager.wait_until_finished()
                self._failed = False
            except Exception as error:
                self._fail(step, error)
        return not self._failed

    def _fail(self, step: int, error: Exception) -> None:
        self._lease.require()  # what the failed write left behind may belong to the new holder
        self._failed = True
        for _ in range(3):  # the manager raises the errors of its threads one by one
            with contextlib.suppress(Exception):
                self.manager.close()
        self.manager = checkpoint.open_manager(self._directory, lease=self._lease)  # removes what the write left
        if jax.process_index() == 0:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            print(
                f"WARNING: step {step} could not be saved ({reason}); the newest checkpoint is "
                f"{self.manager.latest_step()}. Training goes on, and tries again every {RETRY_SECONDS:.0f} s. Make "
                f"room in {self._directory}.",
                file=sys.stderr,
                flush=True,
            )


def _require_room(directory: epath.Path, state: Any) -> None:
    """Raises an OSError before a write that cannot succeed: Orbax's threads would print a page for every array.

    Quotas do not show here, and the disk may fill in the meantime. Then the write itself fails, without more harm.
    """
    if not files.is_local(directory):
        return
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = _free(directory)
    if jax.process_count() > 1:  # all hosts must write their parts, or none
        free = int(multihost_utils.broadcast_one_to_all(np.asarray(free // 2**20, np.int32))) * 2**20
    if free < needed:
        raise OSError(errno.ENOSPC, f"it takes {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free")


def _free(directory: epath.Path) -> int:
    """Bytes that this user may still write to the file system of a local folder."""
    return shutil.disk_usage(directory).free
