"""Resumes from the newest checkpoint that can be read.

A power failure or a full disk may leave a damaged checkpoint. It is moved to `damaged/` with a warning, and the run
resumes from the one before. Since order, augmentation and noise follow from the step number, the run then repeats the
very same steps. If no checkpoint can be read, that is an error: nobody wants days of training to start over silently.
"""

import sys
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from orbax import checkpoint as ocp

from skipnet_jax import files
from skipnet_jax.errors import DamagedError
from skipnet_jax.runs import checkpoint, checkpoint_damage
from skipnet_jax.runs import workdir as workdirs


def put_aside_incomplete(workdir: epath.Path) -> None:
    """Moves incomplete checkpoints out of the way before Orbax lists the folder, which it does only once.

    An old checkpoint may be incomplete too, if `kill -9` interrupted its removal.

    Raises:
      DamagedError: no complete one is left.
    """
    folder = workdir / workdirs.CHECKPOINTS
    found = [path for path in folder.iterdir() if path.name.isdecimal()] if folder.exists() else []
    damage = {int(path.name): checkpoint_damage.find(path) for path in found}
    newest = max((step for step, what in damage.items() if not what), default=None)
    _wait_for_hosts("looked")  # host 0 is about to move what the others look at
    for step, what in sorted(damage.items(), reverse=True):
        if what:
            _put_aside(workdir, step, what, instead=newest)
    _wait_for_hosts("put aside")


def restore_newest(workdir: epath.Path, manager: ocp.CheckpointManager, state: Any) -> tuple[Any, int, dict[str, Any]]:
    """Reads the newest checkpoint that every host can read, and moves newer ones aside.

    Returns:
      The state, its step, and the `pending` of `Console`. Without checkpoints: the given state, 0, and {}.

    Raises:
      UserError: the checkpoint is of another network.
      DamagedError: there are checkpoints, but none can be read.
    """
    target = jax.tree.map(checkpoint.shape_of, state)
    steps = sorted(manager.all_steps(), reverse=True)
    for step, before in zip(steps, [*steps, None][1:], strict=True):
        damage, restored = "", None
        try:
            restored = checkpoint.restore(manager, step, target), step, checkpoint.read_pending(manager, step)
        except DamagedError as error:
            damage = error.got
        if _any_host(bool(damage)):
            _put_aside(workdir, step, damage or "another host could not read it", instead=before)
            _wait_for_hosts("put aside")
            manager.reload()
        elif restored is not None:
            return restored
    return state, 0, {}


def can_be_read(manager: ocp.CheckpointManager, step: int, everywhere: Sharding) -> bool:
    """Tells whether every host can read a checkpoint, by reading all of it onto devices."""
    try:
        checkpoint.restore(manager, step, checkpoint.stored_shapes(manager, step, everywhere))
        return not _any_host(False)
    except DamagedError:
        return not _any_host(True)


def _put_aside(workdir: epath.Path, step: int, damage: str, *, instead: int | None) -> None:
    path = workdir / workdirs.CHECKPOINTS / str(step)
    if instead is None:
        mend = f"Start over in another `workdir`, or here after removing {path.parent}."
        raise DamagedError(f"{path}", f"{damage}, and no whole checkpoint beside it", "one that can be read", mend)
    place = workdir / workdirs.DAMAGED / str(step)
    if jax.process_index() == 0:
        place.parent.mkdir(exist_ok=True)
        while place.exists():
            place = place.parent / f"{place.name}-again"
        _move(path, place)
        print(
            f"WARNING: checkpoint {path} is damaged ({damage}). It is now in {place}; resuming from step {instead}.",
            file=sys.stderr,
            flush=True,
        )


def _move(folder: epath.Path, place: epath.Path) -> None:
    if files.is_local(folder):
        folder.rename(place)
        return
    for parent, _, names in folder.walk():  # in a bucket, TensorFlow fails to rename a folder with subfolders
        for name in names:
            (parent / name).copy(place / (parent / name).relative_to(folder))
    folder.rmtree()


def _wait_for_hosts(where: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"recovery: {where}")


def _any_host(here: bool) -> bool:
    """Tells whether something holds on any host: all have to resume from the same step."""
    return here if jax.process_count() == 1 else bool(np.any(multihost_utils.process_allgather(np.asarray(here))))
