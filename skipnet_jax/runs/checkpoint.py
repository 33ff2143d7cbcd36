"""Checkpoints of a run: the newest to go on from and the best to keep, written by Orbax in the background.

A checkpoint of an epoch's end carries the exact results of the network it holds, so that a finished run can be reported
without evaluating it again; one of the middle of an epoch carries none, and is never the best. Both carry the sums that
the logs have not had yet. Reading is strict: a checkpoint fits the network to the last array, or it is an error that
names what does not fit.
"""

import importlib.util
import json
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils
from orbax import checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from skipnet_jax import files
from skipnet_jax.runs import array_mismatch, checkpoint_damage
from skipnet_jax.runs.checkpoint_damage import PROGRESS, STATE, DamagedError


def open_manager(directory: epath.PathLike, *, read_only: bool = False) -> ocp.CheckpointManager:
    """Opens the folder of checkpoints; to write, creates it where there is none.

    Three are kept: the two newest, so that there is one if the newest is damaged, and the one with the best validation
    accuracy, that of the moving average where there is one. What an interrupted write left behind is removed, unless
    read_only: it may be a write that is still going on. Use it in a `with` block: leaving it waits for writes.

    Args:
      directory: `checkpoints` of a workdir, absolute (Orbax refuses others, but only when it saves).
      read_only: for all but the run itself.

    Raises:
      ValueError: it is in a bucket, and the package for that is not installed.
      DamagedError: the results of a checkpoint cannot be read.
    """
    if "://" in str(directory) and not _has_cloud_storage():
        raise ValueError(
            f"{directory}: got a bucket, expected google-cloud-storage to be installed, which checkpoints there need. "
            f'Run: pip install -e ".[gcs]"'
        )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy(
            [
                LatestN(2),
                BestN(
                    get_metric_fn=checkpoint_damage.accuracy, reverse=False, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        ),
        best_fn=checkpoint_damage.accuracy,  # BestN alone forgets the metrics on disk, and with them the best
        cleanup_tmp_directories=not read_only,
        enable_async_checkpointing=not read_only,
        create=not read_only,
        read_only=read_only,
    )
    handlers = {STATE: ocp.PyTreeCheckpointHandler(), PROGRESS: ocp.JsonCheckpointHandler()}
    try:
        return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)
    except (ValueError, TypeError, KeyError, RecursionError) as error:  # whatever Orbax makes of a damaged file
        raise DamagedError(
            f"{directory}: got a checkpoint with damaged results ({error}), expected what a finished write leaves. "
            f"Run the training command again: it puts such a checkpoint aside."
        ) from error


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: Any,
    metrics: Mapping[str, float | int] | None,
    progress: Mapping[str, Any] | None = None,
) -> None:
    """Copies the state off the devices and writes it in the background.

    The state may be donated to the next step as soon as this returns. If the step is saved already, by a run that was
    stopped before it could evaluate it, its results alone are added: a write that fails leaves what is there.

    Args:
      manager: of the run.
      step: training steps behind the state.
      state: TrainState.
      metrics: results of the state, of which `accuracy` decides which checkpoint is the best; None = not evaluated.
      progress: of `Console.snapshot`.

    Raises:
      RuntimeError: Orbax refuses the step, since a later one is there.
    """
    if step in manager.all_steps():
        if metrics is not None:
            _add_results(manager, step, metrics)
        return
    items = {STATE: ocp.args.PyTreeSave(state)}
    if progress is not None:
        items[PROGRESS] = ocp.args.JsonSave(dict(progress))
    if not manager.save(step, args=ocp.args.Composite(**items), metrics=None if metrics is None else dict(metrics)):
        raise RuntimeError(f"{manager.directory}: step {step} was not saved; there is {manager.latest_step()} already")


def find(manager: ocp.CheckpointManager, which: str) -> int:
    """The step of the checkpoint that the user asks for.

    Args:
      manager: of the run.
      which: best, latest or a step. Where nothing has been evaluated, best is the latest.

    Raises:
      ValueError: there is no such checkpoint, or it is not whole.
    """
    steps = sorted(manager.all_steps())
    if not steps:
        raise ValueError(f"{manager.directory}: got no checkpoint, expected at least one. Train into this --workdir.")
    if which == "latest":
        step = steps[-1]
    elif which == "best":
        step = steps[-1] if manager.best_step() is None else manager.best_step()
    else:
        step = int(which) if which.isdecimal() else None
    if step not in steps:
        raise ValueError(
            f"--checkpoint: got {which!r}, expected best, latest or one of the steps in {manager.directory}: "
            f"{', '.join(map(str, steps))}."
        )
    _require_whole(manager, step)
    return step


def restore(manager: ocp.CheckpointManager, step: int, target: Any) -> Any:
    """Reads a checkpoint straight onto the devices.

    Args:
      manager: of the run.
      step: of the checkpoint.
      target: a TrainState or a dict of some of its fields, with a `jax.ShapeDtypeStruct` (and its sharding) for every
        array. Fields that it does not have stay unread; within a field everything has to fit.

    Returns:
      The target's structure with arrays.

    Raises:
      ValueError: the checkpoint is of another network.
      DamagedError: it cannot be read.
    """
    stored = array_mismatch.shapes(_stored_tree(manager, step))
    expected = array_mismatch.shapes(target)
    fields = {path.split("/")[0] for path in expected}
    stored = {path: shape for path, shape in stored.items() if path.split("/")[0] in fields}
    array_mismatch.require_none(str(manager.directory / str(step)), stored, expected)
    arguments = ocp.args.PyTreeRestore(
        item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True
    )
    return _read(manager, step, STATE, arguments)


def restore_progress(manager: ocp.CheckpointManager, step: int) -> dict[str, Any] | None:
    """What `save` was given as progress; None if it was given none.

    Args:
      manager: of the run.
      step: of the checkpoint.

    Raises:
      DamagedError: it cannot be read.
    """
    if not (manager.directory / str(step) / PROGRESS).exists():
        return None
    return _read(manager, step, PROGRESS, ocp.args.JsonRestore())


def stored_shapes(manager: ocp.CheckpointManager, step: int, sharding: jax.sharding.Sharding) -> dict[str, Any]:
    """What a checkpoint holds, as a target for `restore`: for weights whose network is not known beforehand.

    Args:
      manager: of the run.
      step: of the checkpoint.
      sharding: that restored arrays will have.

    Returns:
      Nested dicts of shapes, by the names of the TrainState's fields.

    Raises:
      DamagedError: the checkpoint cannot be read.
    """
    tree = _stored_tree(manager, step)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def shape_of(array: jax.Array) -> jax.ShapeDtypeStruct:
    """What `restore` needs to know of an array that the checkpoint's will stand in for."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def _add_results(manager: ocp.CheckpointManager, step: int, metrics: Mapping[str, float | int]) -> None:
    manager.wait_until_finished()
    file = manager.directory / str(step) / checkpoint_damage.METRICS / checkpoint_damage.METRICS
    if jax.process_index() == 0:
        file.parent.mkdir(exist_ok=True)
        files.write_text(file, json.dumps(dict(metrics)))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("results added")
    manager.reload()


def _has_cloud_storage() -> bool:
    try:
        return importlib.util.find_spec("google.cloud.storage") is not None
    except ModuleNotFoundError:  # of google.cloud
        return False


def _require_whole(manager: ocp.CheckpointManager, step: int) -> None:
    missing = checkpoint_damage.what_is_missing(manager.directory / str(step))
    if missing:
        others = [str(other) for other in sorted(manager.all_steps()) if other != step]
        remedy = f"goes on from step {others[-1]}" if others else "needs another --workdir"
        raise DamagedError(
            f"{manager.directory / str(step)}: got an incomplete checkpoint ({missing}), expected the files that a "
            f"finished write leaves. Run the training command again: it {remedy}.",
            missing,
        )


def _stored_tree(manager: ocp.CheckpointManager, step: int) -> Any:
    _require_whole(manager, step)
    try:
        tree = manager.item_metadata(step)[STATE].tree
        if not isinstance(tree, dict):
            raise TypeError(f"{STATE} is no dict")
        array_mismatch.shapes(tree)
        return tree
    except Exception as error:  # whatever Orbax makes of a damaged file
        raise _damaged(manager, step, error) from error


def _read(manager: ocp.CheckpointManager, step: int, item: str, arguments: Any) -> Any:
    try:
        return manager.restore(step, args=ocp.args.Composite(**{item: arguments}))[item]
    except (MemoryError, jax.errors.JaxRuntimeError):  # no room on the device does not speak against the checkpoint
        raise
    except Exception as error:
        raise _damaged(manager, step, error) from error


def _damaged(manager: ocp.CheckpointManager, step: int, error: Exception) -> DamagedError:
    lines = str(error).splitlines() or [type(error).__name__]
    reason = lines[0].partition(". See full TensorStore details")[0]  # pages of them
    return DamagedError(
        f"{manager.directory / str(step)}: got a checkpoint that cannot be read ({reason}), expected what a finished "
        f"write leaves. Run the training command again: it puts such a checkpoint aside.",
        f"it cannot be read: {reason}",
    )
