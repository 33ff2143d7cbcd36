"""When a run saves, and what happens if it cannot."""

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

from skipnet_jax.runs import checkpoint, hosts

RETRY_SECONDS = 60.0


class Saver:
    """Saves in the background, by the clock, and outlives a disk that is full.

    A write that fails leaves the checkpoints before it as they are. It is said, training goes on, and a minute later
    the state of that time is saved, and so on until there is room.
    """

    def __init__(self, directory: epath.Path, *, every_minutes: float) -> None:
        """Opens the folder of checkpoints, which `with` closes.

        Args:
          directory: of the checkpoints.
          every_minutes: since the last save; 0 = not by the clock.
        """
        self._directory = directory
        self._every = every_minutes * 60 or float("inf")
        self._begun = now()
        self._failed = False
        self._writing: int | None = None  # step of a write in the background
        self.manager = checkpoint.open_manager(directory)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not hosts.is_lost(error):  # a write waits for the part of every host
            self.finish()
            self.manager.close()

    def due(self, *, fetched: bool) -> bool:
        """Whether it is time.

        Hosts have to agree, which takes a message among them, so several of them ask only now and then.

        Args:
          fetched: this step's numbers were fetched, so that the host has waited for the device in any case.
        """
        late = now() - self._begun >= (RETRY_SECONDS if self._failed else self._every)
        if jax.process_count() == 1:
            return late
        return fetched and bool(multihost_utils.broadcast_one_to_all(np.asarray(late)))

    def save(
        self, step: int, state: Any, progress: Mapping[str, Any], results: Mapping[str, float | int] | None
    ) -> None:
        """Begins to write a checkpoint, in the place of one of the same step.

        Args:
          step: training steps behind the state.
          state: TrainState, which may be donated to the next step.
          progress: of `Console.snapshot`.
          results: of the evaluation; None in the middle of an epoch.
        """
        self.finish()  # a failure of the last one is to be told apart from this one's
        self._begun = now()
        try:
            _require_room(self._directory, state)
            checkpoint.save(self.manager, step, state, results, progress)
            self._writing = step
        except Exception as error:  # what fails is the world, and Orbax's and tensorstore's words for it are many
            self._fail(step, error)

    def poll(self) -> None:
        """Tells if a write has failed meanwhile; does not wait."""
        if self._writing is not None and not self.manager.is_saving_in_progress():
            self.finish()

    def finish(self) -> bool:
        """Waits for the write under way.

        Returns:
          Whether the last state that was to be saved is saved.
        """
        step, self._writing = self._writing, None
        if step is not None:
            try:
                self.manager.wait_until_finished()
                self._failed = False
            except Exception as error:
                self._fail(step, error)
        return not self._failed

    def _fail(self, step: int, error: Exception) -> None:
        self._failed = True
        for _ in range(3):  # the manager raises what its threads have met, one after the other
            with contextlib.suppress(Exception):
                self.manager.close()
        self.manager = checkpoint.open_manager(self._directory)  # this also clears away what the write has left
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
    """Raises before a write that cannot end well, of which Orbax's threads would print a page per array.

    A quota is not known beforehand, and the disk may fill meanwhile: then the write fails, which does no more harm.
    """
    if "://" in str(directory):
        return
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = _free(directory)
    if jax.process_count() > 1:  # each writes a part, or none does
        free = int(multihost_utils.broadcast_one_to_all(np.asarray(free // 2**20, np.int32))) * 2**20
    if free < needed:
        raise OSError(errno.ENOSPC, f"it takes {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free")


def _free(directory: epath.Path) -> int:
    """Bytes that the file system of a local folder has left for this user."""
    return shutil.disk_usage(directory).free
