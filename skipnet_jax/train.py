"""The one training loop."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from etils import epath
from jax.sharding import Mesh
from orbax import checkpoint as ocp

from skipnet_jax import config
from skipnet_jax.analysis import curves
from skipnet_jax.data import pipeline, sources
from skipnet_jax.evaluation import scoring
from skipnet_jax.models import build_network
from skipnet_jax.optim import optimizers, schedules
from skipnet_jax.runs import events, hosts, recovery, signals, transfer, wandb_log
from skipnet_jax.runs import workdir as workdirs
from skipnet_jax.runs.console import Console
from skipnet_jax.runs.divergence import Guard
from skipnet_jax.runs.saver import Saver
from skipnet_jax.specs import TrainSpec
from skipnet_jax.training import sharding, steps


def train_and_evaluate(
    spec: Any, workdir: epath.PathLike, *, allow_change: Sequence[str] = ()
) -> dict[str, float | int]:
    """Trains a network, or goes on where an earlier call with this workdir was interrupted.

    Args:
      spec: TrainSpec, or the ConfigDict of a recipe.
      workdir: `workdir.py` lists what it will hold.
      allow_change: fields, as in optim.lr, in which spec may differ from that of the earlier call.

    Returns:
      Exact results of the last epoch on the test images: "accuracy" and "top5_accuracy" (0..1), "loss" (nats), "count"
      (examples), "epoch"; with `ema_decay`, "average_accuracy" and so on of the moving average. If there was
      nothing left to do, those of the call that finished the run.

    Raises:
      ValueError: the config does not fit the data, the devices or the workdir.
      FloatingPointError: the loss, the gradient or the network is no longer finite.
      OSError: the last state could not be saved.
      signals.Stopped: SIGTERM, or Ctrl-C, which it is a kind of; its text says what is saved.
    """
    spec = spec if isinstance(spec, TrainSpec) else config.train_spec(spec)
    hosts.require_shared(workdirs.locate(workdir))
    wandb_log.require_installed(spec.wandb_project)
    workdir = workdirs.open_for_training(workdir, spec, allow_change=allow_change)
    recovery.put_aside_incomplete(workdir)
    with Saver(workdir / workdirs.CHECKPOINTS, every_minutes=spec.checkpoint_every_minutes) as saver:
        mesh = sharding.make_mesh()
        complete = _results_if_complete(saver.manager, spec, mesh)
        if complete:
            _draw(workdir)
        results = complete or _train(spec, workdir, saver, mesh)
    _finish("complete already" if complete else "finished", results, workdir)
    return results


def _train(spec: TrainSpec, workdir: epath.Path, saver: Saver, mesh: Mesh) -> dict[str, float | int]:
    """Makes the steps that are left; the results of the last epoch.

    The order of operations: step; every `log_every_steps`, and at the end of an epoch, fetch the numbers, check them,
    write them; at the end of an epoch evaluate on the test images, check, write. Then, if it is time or a signal has
    come, check the state and save. So nothing that is not finite is ever saved. Between two fetches the device runs
    ahead of the host. A step that an earlier call has saved without its evaluation begins with that.
    """
    train_source, test_source = sources.load(spec.data, "train"), sources.load(spec.data, "test")
    _require_fit(spec, train_source, mesh)
    workdirs.require_same_data(
        workdir,
        class_names=train_source.class_names,
        training_images=train_source.num_examples,
        started=saver.manager.latest_step() is not None,
    )
    steps_per_epoch = train_source.num_examples // spec.batch_size
    total = spec.epochs * steps_per_epoch
    state, train_step, eval_step = _compile(spec, train_source, test_source, mesh)
    state, start, carried = recovery.restore_newest(workdir, saver.manager, state)
    evaluated = saver.manager.metrics(start) is not None  # then nothing of the epoch is left to be told
    unevaluated = start > 0 and start % steps_per_epoch == 0 and not evaluated
    _require_left(start + 1 - unevaluated, total, steps_per_epoch)
    workdirs.remember(workdir, spec)

    def batches_from(step: int) -> Iterator[dict[str, np.ndarray]]:
        share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        return pipeline.train_batches(
            train_source, spec.data, batch_size=spec.batch_size, seed=spec.seed, start_step=step, **share
        )

    guard = Guard(spec, workdir, batches_from=batches_from, saved=lambda: _saved(saver, steps_per_epoch))
    console = Console(
        workdir,
        start=start,
        total=total,
        steps_per_epoch=steps_per_epoch,
        carried=None if evaluated else carried,
        unevaluated=unevaluated,
        wandb_project=spec.wandb_project,
    )
    _introduce(console, spec, state.params, train_source, test_source, mesh, workdir)
    if start:
        console.say(f"going on from step {start} of {total}, epoch {start // steps_per_epoch} of {spec.epochs}")
    elif spec.init_from:
        state, taken = transfer.start_from(state, spec.init_from, train_source.class_names, mesh)
        console.say(str(taken))
    batches = batches_from(start)
    with (
        contextlib.ExitStack() as last,
        events.recorded(workdir, lambda: console.done),
        signals.Signals(cast=hosts.Votes(mesh).cast if jax.process_count() > 1 else None) as stop_signals,
    ):
        last.callback(_draw, workdir)
        last.callback(console.close)
        for step in range(start if unevaluated else start + 1, total + 1):
            results: dict[str, float | int] = {}
            at_end = step % steps_per_epoch == 0
            fetch = at_end or step % spec.log_every_steps == 0
            if step > start:
                state, sums = train_step(state, sharding.to_global(next(batches), mesh))
                console.step(sums)
                stop_signals.agree()
                if fetch:
                    guard.check_steps(console.fetch(), step)
            if at_end:
                with contextlib.suppress(signals.Requested):
                    stop_signals.check()
                    results = scoring.evaluate_state(
                        eval_step, state, test_source, spec, mesh, check=stop_signals.check
                    )
            if results:
                guard.check_results(results, step)
                console.epoch(results)
                results["epoch"] = step // steps_per_epoch
            by_epoch = results and (results["epoch"] % spec.checkpoint_every_epochs == 0 or step == total)
            stopping = stop_signals.number  # asked once a step: a signal that comes after this is the next one's
            if by_epoch or stopping or saver.due(fetched=fetch):
                snapshot = console.snapshot()
                guard.check_steps(snapshot["window"], step)
                guard.check_state(state, step)
                saver.save(step, state, snapshot, results or None)
            saver.poll()
            if stopping and not (results and step == total):
                raise _stopped(stop_signals, step, total, saver, steps_per_epoch)
        _require_saved(saver)
    return results


def _require_fit(spec: TrainSpec, source: sources.Source, mesh: Mesh) -> None:
    if spec.model.num_classes != source.num_classes:
        raise ValueError(
            f"model.num_classes: got {spec.model.num_classes}, expected {source.num_classes}, the classes of "
            f"{source.name}. Give --config.model.num_classes={source.num_classes}, or another --config.data.name."
        )
    if spec.batch_size > source.num_examples:
        raise ValueError(
            f"batch_size: got {spec.batch_size}, expected at most the {source.num_examples} training images of "
            f"{source.name}. Lower --config.batch_size."
        )
    sharding.require_divisible("batch_size", spec.batch_size, mesh)


def _results_if_complete(manager: ocp.CheckpointManager, spec: TrainSpec, mesh: Mesh) -> dict[str, float | int] | None:
    """Results of a run that there is nothing left to do for: its last checkpoint is whole."""
    step = manager.latest_step()
    results = None if step is None else manager.metrics(step)
    everywhere = sharding.replicated(mesh)
    complete = results and results.get("epoch") == spec.epochs and recovery.can_be_read(manager, step, everywhere)
    return results if complete else None


def _compile(
    spec: TrainSpec, train_source: sources.Source, test_source: sources.Source, mesh: Mesh
) -> tuple[steps.TrainState, Callable[..., Any], Callable[..., Any]]:
    """The state before the first step, the training step and the evaluation step."""
    steps_per_epoch = train_source.num_examples // spec.batch_size
    model = build_network(spec.model)
    schedule = schedules.make_schedule(
        spec.optim, batch_size=spec.batch_size, epochs=spec.epochs, steps_per_epoch=steps_per_epoch
    )
    optimizer = optimizers.make_optimizer(spec.optim, schedule)
    state = steps.init_state(
        model, optimizer, image_size=spec.data.image_size, seed=spec.seed, mesh=mesh, average=spec.ema_decay > 0
    )
    statistics = train_source.statistics
    train_step = steps.make_train_step(
        model, optimizer, schedule, spec, steps_per_epoch=steps_per_epoch, statistics=statistics, mesh=mesh
    )
    return state, train_step, steps.make_eval_step(model, statistics=statistics, mesh=mesh, classes=test_source.classes)


def _require_left(first: int, total: int, steps_per_epoch: int) -> None:
    """After epochs were changed there may be nothing left to do."""
    if first > total:
        raise ValueError(
            f"epochs: got {total // steps_per_epoch}, which end at step {total}, expected more, since the run is at "
            f"step {first - 1} already. Raise --config.epochs, or evaluate it with --mode=evaluate."
        )


def _require_saved(saver: Saver) -> None:
    if not saver.finish():
        raise OSError(
            f"the run is done, but its last state could not be saved. Make room in {saver.manager.directory} and run "
            f"the same command again."
        )


def _saved(saver: Saver, steps_per_epoch: int) -> str:
    saver.finish()
    step = saver.manager.latest_step()
    if step is None:
        return "nothing is saved yet"
    return f"saved is step {step} (epoch {step / steps_per_epoch:g}) in {saver.manager.directory}"


def _stopped(
    stop_signals: signals.Signals, step: int, total: int, saver: Saver, steps_per_epoch: int
) -> signals.Stopped:
    where = f", as a signal asked host {' and '.join(map(str, stop_signals.hosts))} to" if stop_signals.hosts else ""
    text = f"stopped at step {step} of {total}{where}; {_saved(saver, steps_per_epoch)}. Run the same command to go on."
    return signals.Stopped(text, stop_signals.number)


def _introduce(
    console: Console,
    spec: TrainSpec,
    params: Mapping[str, Any],
    train_source: sources.Source,
    test_source: sources.Source,
    mesh: Mesh,
    workdir: epath.Path,
) -> None:
    if jax.process_index() == 0:
        overview = parameter_overview.get_parameter_overview(params, include_stats=False)
        (workdir / workdirs.PARAMETERS).write_text(overview + "\n")
    console.say(
        f"{spec.model.name}: {parameter_overview.count_parameters(params):,} parameters, {spec.model.dtype}\n"
        f"{spec.data.name}: {train_source.num_examples:,} training and {test_source.num_examples:,} test images of "
        f"{spec.data.image_size} px, {train_source.num_classes} classes\n"
        f"{mesh.size} x {mesh.devices.flat[0].device_kind}: {spec.epochs} epochs of "
        f"{train_source.num_examples // spec.batch_size} steps of {spec.batch_size} images\n"
        f"workdir: {workdir}"
    )


def _draw(workdir: epath.Path) -> None:
    if jax.process_index() == 0:
        try:
            curves.plot_curves(workdirs.read_metrics(workdir), workdir / workdirs.CURVES)
        except OSError as error:  # a picture is no reason to fail: its numbers are in the metrics
            print(f"WARNING: {workdir / workdirs.CURVES} could not be written ({error})", file=sys.stderr, flush=True)


def _finish(how: str, results: Mapping[str, float | int], workdir: epath.Path) -> None:
    if jax.process_index() == 0:
        print(f"{how}: {results['epoch']} epochs, {scoring.summary(results)}, in {workdir}", flush=True)
