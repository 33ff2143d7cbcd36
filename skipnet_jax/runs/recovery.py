"""Going on from the newest checkpoint that can be read.

A machine that loses power, or a disk that is full, may leave a checkpoint that is not whole. It is put aside, said, and
the one before it is taken; since order, augmentation and noise follow from the step, the run then makes the very same
steps again. If none is left that can be read, that is an error: days of training are not started anew in silence.
"""

import sys
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from orbax import checkpoint as ocp

from skipnet_jax.runs import checkpoint, checkpoint_damage, workdir


def put_aside_incomplete(run: epath.Path) -> None:
    """Moves checkpoints of which files are missing out of the way, before Orbax takes one for the newest.

    An old one may be among them: what `kill -9` has left of it in the middle of its removal.

    Args:
      run: the workdir.

    Raises:
      DamagedError: no whole one is left.
    """
    folder = run / workdir.CHECKPOINTS
    found = [path for path in folder.iterdir() if path.name.isdecimal()] if folder.exists() else []
    missing = {int(path.name): checkpoint_damage.what_is_missing(path) for path in found}
    newest = max((step for step, what in missing.items() if not what), default=None)
    _all_hosts("looked")  # the first is about to move what the others look at
    for step, what in sorted(missing.items(), reverse=True):
        if what:
            _put_aside(run, step, what, instead=newest)
    _all_hosts("put aside")  # a manager lists the folder once, when it is opened


def restore_newest(run: epath.Path, manager: ocp.CheckpointManager, state: Any) -> tuple[Any, int, dict[str, Any]]:
    """Reads the newest checkpoint that can be read; those that cannot are put aside.

    Args:
      run: the workdir.
      manager: of its checkpoints.
      state: a TrainState to put in the place of.

    Returns:
      The state, its step, and what `Console` is to start with; where there is no checkpoint, those given and 0.

    Raises:
      ValueError: it is of another network.
      DamagedError: there are checkpoints, but none can be read.
    """
    target = jax.tree.map(checkpoint.shape_of, state)
    steps = sorted(manager.all_steps(), reverse=True)
    for step, before in zip(steps, [*steps, None][1:], strict=True):
        damage = restored = None
        try:
            restored = checkpoint.restore(manager, step, target), step, checkpoint.restore_progress(manager, step) or {}
        except checkpoint_damage.DamagedError as error:
            damage = error.why
        if _any_host(damage is not None):
            _put_aside(run, step, damage or "another host could not read it", instead=before)
            _all_hosts("put aside")
            manager.reload()
        elif restored is not None:
            return restored
    return state, 0, {}


def can_be_read(manager: ocp.CheckpointManager, step: int, everywhere: Sharding) -> bool:
    """Whether every host can read a checkpoint, by reading all of it.

    Args:
      manager: of the run.
      step: of the checkpoint.
      everywhere: sharding of what is read.
    """
    damaged = False
    try:
        checkpoint.restore(manager, step, checkpoint.stored_shapes(manager, step, everywhere))
    except checkpoint_damage.DamagedError:
        damaged = True
    return not _any_host(damaged)


def _put_aside(run: epath.Path, step: int, what: str, *, instead: int | None) -> None:
    path = run / workdir.CHECKPOINTS / str(step)
    if instead is None:
        raise checkpoint_damage.DamagedError(
            f"{path}: got a damaged checkpoint ({what}), and none beside it that is whole, expected one that can be "
            f"read. Start anew in another --workdir, or here after removing {path.parent}."
        )
    place = run / workdir.DAMAGED / str(step)
    if jax.process_index() == 0:
        place.parent.mkdir(exist_ok=True)
        while place.exists():
            place = place.parent / f"{place.name}-again"
        path.rename(place)
        print(
            f"WARNING: checkpoint {path} is damaged ({what}). It is now in {place}; going on from step {instead}.",
            file=sys.stderr,
            flush=True,
        )


def _all_hosts(where: str) -> None:
    """Waits until every host has come so far."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"recovery: {where}")


def _any_host(here: bool) -> bool:
    """Whether that is so on any host: they have to go on from the same step."""
    return here if jax.process_count() == 1 else bool(np.any(multihost_utils.process_allgather(np.asarray(here))))
