"""Writes and reads checkpoints with Orbax.

A checkpoint at the end of an epoch carries the exact results of its network, so that a finished run needs no second
evaluation. A checkpoint within an epoch carries none, and is never the best. Both carry the sums that metrics.jsonl has
not reported yet. Reading is strict: an extra or missing array, another shape or another checksum is an error that names
the array.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils
from orbax import checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from skipnet_jax import files
from skipnet_jax.errors import DamagedError, UserError
from skipnet_jax.runs import array_mismatch, checkpoint_damage, checksums
from skipnet_jax.runs.checkpoint_damage import CHECKSUMS, PROGRESS, STATE
from skipnet_jax.runs.lease import NO_LEASE, Lease

_READ_ATTEMPTS = 10
_REMOVAL_SECONDS = 0.5  # for a run to finish removing a checkpoint


def open_manager(
    directory: epath.PathLike, *, read_only: bool = False, lease: Lease = NO_LEASE
) -> ocp.CheckpointManager:
    """Opens a folder of checkpoints, and creates it unless `read_only`. Leaving a `with` block waits for writes.

    Orbax keeps the two newest, in case the newest gets damaged, and the one with the best validation accuracy (the
    moving average's, if there is one). It removes what an interrupted write left behind, unless `read_only`: the write
    may still be going on.

    Args:
      directory: absolute, or gs://...
      read_only: True for everyone but the run itself.
      lease: of the workdir. A write in the background that finds the lease lost leaves no checkpoint.

    Raises:
      UserError: the folder is in a bucket, and the package for buckets is not installed.
      DamagedError: the results of a checkpoint cannot be read.
    """
    files.require_cloud_storage(directory)
    best = BestN(get_metric_fn=checkpoint_damage.accuracy, reverse=False, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(2), best]),
        best_fn=checkpoint_damage.accuracy,  # BestN alone would forget the results on disk when a run resumes
        cleanup_tmp_directories=not read_only,
        enable_async_checkpointing=not read_only,
        create=not read_only,
        read_only=read_only,
        temporary_path_class=None if read_only else _committed_under(lease, directory),
    )
    handlers = {
        STATE: ocp.PyTreeCheckpointHandler(),
        PROGRESS: ocp.JsonCheckpointHandler(),
        CHECKSUMS: ocp.JsonCheckpointHandler(),
    }
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
    sums = checksums.seal({checksums.ARRAYS: checksums.of_arrays(state)})
    items = {STATE: ocp.args.PyTreeSave(state), CHECKSUMS: ocp.args.JsonSave(sums)}
    if pending is not None:
        items[PROGRESS] = ocp.args.JsonSave(checksums.seal(pending))
    sealed = None if results is None else checksums.seal(results)
    if not manager.save(step, args=ocp.args.Composite(**items), metrics=sealed):
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
      target: a TrainState, or a dict of some of its fields, with a `jax.ShapeDtypeStruct` (and its sharding) in place
        of every array. Other fields are not read; within a field every array has to match.

    Raises:
      UserError: the checkpoint is of another network.
      DamagedError: it cannot be read, or is not what was saved.
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
        restored = manager.restore(step, args=ocp.args.Composite(**{STATE: arguments}))[STATE]
    if sums := _array_sums(manager, step):
        read = checksums.of_arrays(restored)
        if wrong := [path for path in read if sums[path] != list(read[path])]:
            names = array_mismatch.describe({"wrong checksums": wrong})
            raise _damaged(manager.directory / str(step), f"arrays that are not what was saved ({names})")
    return restored


def read(directory: epath.Path, which: str, target: Any) -> tuple[int, Any]:
    """Reads a checkpoint for everyone but the run itself, which may be saving and removing checkpoints meanwhile.

    If the folder has changed after a failed read, the run may have removed the checkpoint meanwhile, so the reader
    looks again for the best or the latest.

    Args:
      directory: absolute, or gs://...

    Returns:
      The step and what was read.

    Raises:
      UserError, DamagedError: as `find` and `restore` do.
    """
    for attempt in range(1, _READ_ATTEMPTS + 1):
        before = _names(directory)
        try:
            with open_manager(directory, read_only=True) as manager:
                step = find(manager, which)
                return step, restore(manager, step, target)
        except (DamagedError, OSError):
            time.sleep(_REMOVAL_SECONDS)
            if attempt == _READ_ATTEMPTS or _names(directory) == before:
                raise
    raise AssertionError


def _names(directory: epath.Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def results(manager: ocp.CheckpointManager, step: int) -> dict[str, float | int] | None:
    """Reads the results of a checkpoint; None if it was not evaluated, or the results are damaged."""
    found = manager.metrics(step)
    if not isinstance(found, dict) or (checksums.CRC in found and not checksums.is_intact(found)):
        return None
    return checksums.unseal(found)


def read_pending(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """Reads what `save` got as `pending`; {} if nothing. Raises a DamagedError if the checkpoint is not whole."""
    _require_whole(manager, step)
    file = manager.directory / str(step) / checkpoint_damage.PROGRESS_FILE
    return checksums.unseal(files.read_json(file)) if file.exists() else {}


def stored_shapes(manager: ocp.CheckpointManager, step: int, sharding: jax.sharding.Sharding) -> dict[str, Any]:
    """Makes a target for `restore` from the checkpoint itself, for when its network is not known."""
    tree = _stored_tree(manager, step)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def shape_of(array: jax.Array) -> jax.ShapeDtypeStruct:
    """Makes a leaf of a target for `restore`, with the array's sharding."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def _committed_under(lease: Lease, directory: epath.PathLike) -> type:
    """Makes Orbax finish a write only while the lease is held."""
    usual: Any = ocp.path.atomicity_defaults.get_default_temporary_path_class(epath.Path(directory))

    class CommittedUnderLease(usual):
        """Checks the lease at the last moment before a checkpoint gets its name."""

        async def finalize(self) -> None:
            await asyncio.to_thread(lease.require)
            await super().finalize()

    return CommittedUnderLease


def _add_results(manager: ocp.CheckpointManager, step: int, results: Mapping[str, float | int]) -> None:
    manager.wait_until_finished()
    file = manager.directory / str(step) / checkpoint_damage.RESULTS_FILE
    if jax.process_index() == 0:
        file.parent.mkdir(exist_ok=True)
        files.write_text(file, json.dumps(checksums.seal(results)))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("results added")
    manager.reload()


def _stored_tree(manager: ocp.CheckpointManager, step: int) -> Any:
    _require_whole(manager, step)
    with _reading(manager, step):
        tree = manager.item_metadata(step)[STATE].tree
        if not isinstance(tree, dict):
            raise TypeError(f"{STATE} is no dict")
        shapes = array_mismatch.shapes(tree)
    sums = _array_sums(manager, step)
    if sums and {path: shape for path, (shape, _) in sums.items()} != shapes:
        raise _damaged(manager.directory / str(step), "arrays of other names or shapes than its checksums")
    return tree


def _array_sums(manager: ocp.CheckpointManager, step: int) -> dict[str, list[Any]]:
    """Path of each array -> its type and shape, and its checksum; {} for a checkpoint from before December 2026."""
    file = manager.directory / str(step) / checkpoint_damage.CHECKSUMS_FILE
    return files.read_json(file)[checksums.ARRAYS] if file.exists() else {}


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
    return DamagedError(f"{place}", got, "a whole checkpoint", mend)
