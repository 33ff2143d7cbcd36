"""Going on from the newest checkpoint that can be read.

A machine that loses power, or a disk that is full, may leave a checkpoint that is not whole. It is put aside, said, and
the one before it is taken; since order, augmentation and noise follow from the step, the run then makes the very same
steps again. If none is left that can be read, that is an error: days of training are not started anew in silence.
"""

import sys
from typing import Any

import jax
from etils import epath
from orbax import checkpoint as ocp

from skipnet_jax import checkpoint, workdir


def put_aside_incomplete(run: epath.Path) -> None:
    """Moves checkpoints of which files are missing out of the way, before Orbax takes one for the newest.

    Args:
      run: the workdir.

    Raises:
      DamagedError: no whole one is left.
    """
    folder = run / workdir.CHECKPOINTS
    found = [path for path in folder.iterdir() if path.name.isdecimal()] if folder.exists() else []
    missing = {int(path.name): checkpoint.what_is_missing(path) for path in found}
    whole = [step for step, what in missing.items() if not what]
    for step, what in sorted(missing.items(), reverse=True):
        if what:
            _put_aside(run, step, what, before=max((other for other in whole if other < step), default=None))


def restore_newest(run: epath.Path, manager: ocp.CheckpointManager, state: Any) -> tuple[Any, int, dict[str, Any]]:
    """Reads the newest checkpoint that can be read; those that cannot are put aside.

    Args:
      run: the workdir.
      manager: of its checkpoints.
      state: a TrainState to put in the place of.

    Returns:
      The state, its step, and what `Progress` is to start with; where there is no checkpoint, those given and 0.

    Raises:
      ValueError: it is of another network.
      DamagedError: there are checkpoints, but none can be read.
    """
    target = jax.tree.map(checkpoint.shape_of, state)
    steps = sorted(manager.all_steps(), reverse=True)
    for step, before in zip(steps, [*steps, None][1:], strict=True):
        try:
            return checkpoint.restore(manager, step, target), step, checkpoint.restore_progress(manager, step) or {}
        except checkpoint.DamagedError as error:
            _put_aside(run, step, str(error), before=before)
            manager.reload()
    return state, 0, {}


def _put_aside(run: epath.Path, step: int, what: str, *, before: int | None) -> None:
    path = run / workdir.CHECKPOINTS / str(step)
    if before is None:
        raise checkpoint.DamagedError(
            f"{path}: got a damaged checkpoint ({what}), and none before it, expected one that can be read. "
            f"Start anew in another --workdir, or here after removing {path.parent}."
        )
    place = run / workdir.DAMAGED / str(step)
    if jax.process_index() == 0:
        place.parent.mkdir(exist_ok=True)
        while place.exists():
            place = place.parent / f"{place.name}-again"
        path.rename(place)
        print(
            f"WARNING: checkpoint {path} is damaged ({what}). It is now in {place}; going on from step {before}.",
            file=sys.stderr,
            flush=True,
        )
