"""Writes and reads checkpoints with Orbax.

A checkpoint at the end of an epoch carries the exact results of its network, so that a finished run needs no second
evaluation. A checkpoint within an epoch carries none, and is never the best. Both carry the sums that metrics.jsonl has
not reported yet. Reading is strict: an array too many, too few or of another shape is an error that names the array.
"""

import contextlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils
from orbax import checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from skipnet_jax import files
from skipnet_jax.errors import DamagedError, UserError
from skipnet_jax.runs import array_mismatch, checkpoint_damage
from skipnet_jax.runs.checkpoint_damage import PROGRESS, STATE


def open_manager(directory: epath.PathLike, *, read_only: bool = False) -> ocp.CheckpointManager:
    """Opens a folder of checkpoints, and creates it unless `read_only`. Leaving a `with` block waits for writes.

    Orbax keeps the two newest, in case the newest gets damaged, and the one with the best validation accuracy (the
    moving average's, if there is one). It removes what an interrupted write left behind, unless `read_only`: the write
    may still be going on.

    Args:
      directory: absolute, or gs://...
      read_only: True for everyone but the run itself.

    Raises:
      UserError: the folder is in a bucket, and the package for buckets is not installed.
      DamagedError: the results of a checkpoint cannot be read.
    """
    _require_cloud_storage(directory)
    best = BestN(get_metric_fn=checkpoint_damage.accuracy, reverse=False, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(2), best]),
        best_fn=checkpoint_damage.accuracy,  # BestN alone would forget the results on disk when a run resumes
        cleanup_tmp_directories=not read_only,
        enable_async_checkpointing=not read_only,
        create=not read_only,
        read_only=read_only,
    )
    handlers = {STATE: ocp.PyTreeCheckpointHandler(), PROGRESS: ocp.JsonCheckpointHandler()}
    try:
        return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)
    except (ValueError, TypeError, KeyError, RecursionError) as error:  # Orbax reads all results, damaged or not
        raise _damaged(directory, f"damaged results ({error})") from error


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: Any,
    results: Mapping[str, float | int] | None,
    pending: Mapping[str, Any] | None = None,
) -> None:
    """Copies the state off the devices, and writes it in the background.

    The next step may overwrite the state's memory as soon as this returns. If the step is saved already, because the
    run was stopped before the evaluation, only the results are added; if that fails, the checkpoint stays as it is.

    Args:
      manager: of `open_manager`.
      step: number of training steps so far.
      state: a TrainState.
      results: of the evaluation, with `accuracy`; None = not evaluated.
      pending: of `Console.pending`.

    Raises:
      RuntimeError: there is a later checkpoint.
    """
    if step in manager.all_steps():
        if results is not None:
            _add_results(manager, step, results)
        return
    items = {STATE: ocp.args.PyTreeSave(state)}
    if pending is not None:
        items[PROGRESS] = ocp.args.JsonSave(dict(pending))
    if not manager.save(step, args=ocp.args.Composite(**items), metrics=None if results is None else dict(results)):
        raise RuntimeError(f"{manager.directory}: step {step} was not saved; there is {manager.latest_step()} already")


def find(manager: ocp.CheckpointManager, which: str) -> int:
    """Returns the step of a checkpoint: best, latest or a number. Before the first evaluation, best is the latest.

    Raises:
      UserError: there is no such checkpoint.
      DamagedError: it is not whole.
    """
    steps = sorted(manager.all_steps())
    if not steps:
        raise UserError(f"{manager.directory}", "no checkpoint", "at least one", "Train into this `workdir`.")
    best = manager.best_step()
    names = {"latest": steps[-1], "best": steps[-1] if best is None else best} | {str(step): step for step in steps}
    if which not in names:
        known = f"best, latest or one of the steps in {manager.directory}: {', '.join(map(str, steps))}"
        raise UserError("checkpoint", repr(which), known)
    _require_whole(manager, names[which])
    return names[which]


def restore(manager: ocp.CheckpointManager, step: int, target: Any) -> Any:
    """Reads a checkpoint straight onto the devices.

    Args:
      manager: of `open_manager`.
      step: of the checkpoint.
      target: a TrainState, or a dict of some of its fields, with a `jax.ShapeDtypeStruct` (and its sharding) in place
        of every array. Other fields are not read; within a field every array has to match.

    Raises:
      UserError: the checkpoint is of another network.
      DamagedError: it cannot be read.
    """
    expected = array_mismatch.shapes(target)
    fields = {path.split("/")[0] for path in expected}
    stored = array_mismatch.shapes(_stored_tree(manager, step))
    stored = {path: shape for path, shape in stored.items() if path.split("/")[0] in fields}
    array_mismatch.require_none(str(manager.directory / str(step)), stored, expected)
    arguments = ocp.args.PyTreeRestore(
        item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True
    )
    with _reading(manager, step):
        return manager.restore(step, args=ocp.args.Composite(**{STATE: arguments}))[STATE]


def read_pending(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """Reads what `save` got as `pending`; {} if nothing. Raises a DamagedError if the checkpoint is not whole."""
    _require_whole(manager, step)
    file = manager.directory / str(step) / checkpoint_damage.PROGRESS_FILE
    return files.read_json(file) if file.exists() else {}


def stored_shapes(manager: ocp.CheckpointManager, step: int, sharding: jax.sharding.Sharding) -> dict[str, Any]:
    """Makes a target for `restore` from the checkpoint itself, for when its network is not known."""
    tree = _stored_tree(manager, step)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def shape_of(array: jax.Array) -> jax.ShapeDtypeStruct:
    """Makes a leaf of a target for `restore`, with the array's sharding."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def _add_results(manager: ocp.CheckpointManager, step: int, results: Mapping[str, float | int]) -> None:
    manager.wait_until_finished()
    file = manager.directory / str(step) / checkpoint_damage.RESULTS_FILE
    if jax.process_index() == 0:
        file.parent.mkdir(exist_ok=True)
        files.write_text(file, json.dumps(dict(results)))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("results added")
    manager.reload()


def _stored_tree(manager: ocp.CheckpointManager, step: int) -> Any:
    _require_whole(manager, step)
    with _reading(manager, step):
        tree = manager.item_metadata(step)[STATE].tree
        if not isinstance(tree, dict):
            raise TypeError(f"{STATE} is no dict")
        array_mismatch.shapes(tree)
        return tree


def _require_whole(manager: ocp.CheckpointManager, step: int) -> None:
    checkpoint = manager.directory / str(step)
    if damage := checkpoint_damage.find(checkpoint):
        raise _damaged(checkpoint, damage)


@contextlib.contextmanager
def _reading(manager: ocp.CheckpointManager, step: int) -> Iterator[None]:
    """Turns whatever Orbax raises about a damaged checkpoint into a DamagedError."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError):  # too little memory on the device does not mean damage
        raise
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        reason = lines[0].partition(". See full TensorStore details")[0]  # they fill pages
        raise _damaged(manager.directory / str(step), f"arrays that cannot be read: {reason}") from error


def _damaged(place: epath.PathLike, got: str) -> DamagedError:
    mend = "Run the training command again: it moves a damaged checkpoint aside and resumes from the one before."
    return DamagedError(f"{place}", got, "what a finished write leaves", mend)


def _require_cloud_storage(directory: epath.PathLike) -> None:
    if files.is_local(directory):
        return
    with contextlib.suppress(ModuleNotFoundError):  # find_spec raises it if google.cloud is missing
        if importlib.util.find_spec("google.cloud.storage"):
            return
    raise UserError(
        f"{directory}",
        "a bucket",
        "google-cloud-storage to be installed, which checkpoints in buckets need",
        'Run: pip install -e ".[gcs]"',
    )
