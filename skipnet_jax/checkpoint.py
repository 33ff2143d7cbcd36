"""Checkpoints of a run: the newest to go on from and the best to keep, written by Orbax in the background.

Every checkpoint carries the exact results of the network it holds, so that a finished run can be reported without
evaluating it again. Reading is strict: a checkpoint fits the network to the last array, or it is an error that
names what does not fit.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from orbax import checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

STATE = "state"  # name of Orbax's item that holds the TrainState
NAMED_AT_MOST = 5  # arrays per kind of misfit that an error spells out


def open_manager(directory: epath.PathLike, *, read_only: bool = False) -> ocp.CheckpointManager:
    """Opens the folder of checkpoints; to write, creates it where there is none.

    Two are kept: the newest and the one with the best validation accuracy, that of the moving average where there is
    one (a single one, when they are the same). What an
    interrupted write left behind is removed, unless read_only: it may be a write that is still going on. Use it in a
    `with` block: leaving it waits for writes under way.

    Args:
      directory: `checkpoints` of a workdir, absolute (Orbax refuses others, but only when it saves).
      read_only: for all but the run itself.

    Raises:
      ValueError: it is in a bucket, and the package for that is not installed.
    """
    if "://" in str(directory) and not _has_cloud_storage():
        raise ValueError(
            f"{directory}: got a bucket, expected google-cloud-storage to be installed, which checkpoints there need. "
            f'Run: pip install -e ".[gcs]"'
        )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(1), BestN(get_metric_fn=_accuracy, reverse=False, n=1)]),
        best_fn=_accuracy,  # BestN alone forgets the metrics on disk, and with them the best
        cleanup_tmp_directories=not read_only,
        enable_async_checkpointing=not read_only,
        create=not read_only,
        read_only=read_only,
    )
    return ocp.CheckpointManager(directory, options=options, item_handlers={STATE: ocp.PyTreeCheckpointHandler()})


def save(manager: ocp.CheckpointManager, step: int, state: Any, metrics: Mapping[str, float | int]) -> None:
    """Copies the state off the devices and writes it in the background.

    The state may be donated to the next step as soon as this returns.

    Args:
      manager: of the run.
      step: training steps behind the state.
      state: TrainState.
      metrics: results of the state; `accuracy` decides which checkpoint is the best.
    """
    manager.save(step, args=ocp.args.Composite(**{STATE: ocp.args.PyTreeSave(state)}), metrics=dict(metrics))


def find(manager: ocp.CheckpointManager, which: str) -> int:
    """The step of the checkpoint that the user asks for.

    Args:
      manager: of the run.
      which: best, latest or a step.

    Raises:
      ValueError: there is no such checkpoint, or it is not whole.
    """
    steps = sorted(manager.all_steps())
    if not steps:
        raise ValueError(f"{manager.directory}: got no checkpoint, expected at least one. Train into this --workdir.")
    if which == "latest":
        step = steps[-1]
    elif which == "best":
        step = manager.best_step()
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
      ValueError: the checkpoint is of another network, or not whole.
    """
    _require_whole(manager, step)
    stored = _shapes(manager.item_metadata(step)[STATE].tree)
    expected = _shapes(target)
    fields = {path.split("/")[0] for path in expected}
    stored = {path: shape for path, shape in stored.items() if path.split("/")[0] in fields}
    _require_fit(str(manager.directory / str(step)), stored, expected)
    arguments = ocp.args.PyTreeRestore(
        item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True
    )
    return manager.restore(step, args=ocp.args.Composite(**{STATE: arguments}))[STATE]


def stored_shapes(manager: ocp.CheckpointManager, step: int, sharding: jax.sharding.Sharding) -> dict[str, Any]:
    """What a checkpoint holds, as a target for `restore`: for weights whose network is not known beforehand.

    Args:
      manager: of the run.
      step: of the checkpoint.
      sharding: that restored arrays will have.

    Returns:
      Nested dicts of shapes, by the names of the TrainState's fields.

    Raises:
      ValueError: the checkpoint is not whole.
    """
    _require_whole(manager, step)
    tree = manager.item_metadata(step)[STATE].tree
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def shape_of(array: jax.Array) -> jax.ShapeDtypeStruct:
    """What `restore` needs to know of an array that the checkpoint's will stand in for."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def misfit_lines(misfits: Mapping[str, Sequence[str]]) -> list[str]:
    """One line of an error for each kind of misfit that there is, which names the first few arrays.

    Args:
      misfits: kind -> names of arrays.
    """
    lines = []
    for kind, names in misfits.items():
        if names:
            more = f", and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
            lines.append(f"  {kind}: {', '.join(names[:NAMED_AT_MOST])}{more}")
    return lines


def _has_cloud_storage() -> bool:
    try:
        return importlib.util.find_spec("google.cloud.storage") is not None
    except ModuleNotFoundError:  # of google.cloud
        return False


def _accuracy(metrics: Mapping[str, float | int]) -> float:
    return metrics.get("average_accuracy", metrics["accuracy"])


def _require_whole(manager: ocp.CheckpointManager, step: int) -> None:
    directory = manager.directory / str(step)
    if not (directory / STATE / "_METADATA").exists() or manager.metrics(step) is None:
        others = [str(other) for other in sorted(manager.all_steps()) if other != step]
        remedy = f"the run then goes on from step {others[-1]}" if others else "the run then starts anew"
        raise ValueError(
            f"{directory}: got an incomplete checkpoint, expected the files that a finished write leaves. "
            f"Remove this folder: {remedy}."
        )


def _shapes(tree: Any) -> dict[str, str]:
    """Path of every array: its type and shape, as in float32[3, 2]."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    }


def _require_fit(name: str, stored: Mapping[str, str], expected: Mapping[str, str]) -> None:
    misfits = {
        "missing in the checkpoint": sorted(expected.keys() - stored.keys()),
        "unknown to the network": sorted(stored.keys() - expected.keys()),
        "different": [
            f"{path} (got {stored[path]}, expected {expected[path]})"
            for path in sorted(stored.keys() & expected.keys())
            if stored[path] != expected[path]
        ],
    }
    lines = misfit_lines(misfits)
    if lines:
        raise ValueError(
            "\n".join([f"{name}: got a checkpoint of another network, expected one of this config's.", *lines])
            + "\n  Use the config that made it, or another --workdir."
        )
