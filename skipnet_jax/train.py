"""The training loop: `train_and_evaluate` trains a network in a workdir, and resumes a run that was interrupted."""

import contextlib
import functools
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
from skipnet_jax.data import image_files, pipeline, sources
from skipnet_jax.errors import SavingError, UserError
from skipnet_jax.evaluation import chosen, scoring
from skipnet_jax.models import build_network
from skipnet_jax.runs import checkpoint, events, hosts, lease, recovery, signals, transfer, wandb_log
from skipnet_jax.runs import workdir as workdirs
from skipnet_jax.runs.console import Console
from skipnet_jax.runs.divergence import Guard
from skipnet_jax.runs.saver import Saver
from skipnet_jax.specs import TrainSpec
from skipnet_jax.training import device_memory, precision, run_steps, sharding, steps


def train_and_evaluate(
    spec: Any, workdir: epath.PathLike, *, allow_change: Sequence[str] = ()
) -> dict[str, float | int]:
    """Trains a network, or resumes the run in this workdir.

    Args:
      spec: a TrainSpec, or the ConfigDict of a recipe.
      workdir: `runs/workdir.py` lists the files in it.
      allow_change: fields, such as optim.lr, that may differ from the config of the run that is resumed.

    Returns:
      Exact results of the last epoch on the test images: "accuracy" and "top5_accuracy" (0..1), "loss" (nats), "count"
      (examples) and "epoch". With `ema_decay` the moving average has results too, such as "average_accuracy". For a
      run that is already complete, the results are read from its last checkpoint. With a hold-out (`data.holdout`)
      these are the results on it; "test_accuracy" and its siblings are the best checkpoint's on the test images.

    Raises:
      UserError: the config does not fit the data, the devices or the workdir, or another process is training in it.
      LeaseLostError: another process has taken over the workdir, because this one did not answer.
      DivergedError: the loss, the gradient or the network is no longer finite.
      SavingError: the last state could not be saved.
      signals.Stopped: SIGTERM or Ctrl-C arrived. It is a KeyboardInterrupt, and its text says what is saved.
    """
    spec = spec if isinstance(spec, TrainSpec) else config.train_spec(spec)
    workdirs.require_plain(workdir)
    hosts.require_shared(workdirs.locate(workdir))
    wandb_log.require_installed(spec.wandb_project)
    with lease.hold(workdirs.locate(workdir)) as held:
        if spec.model.dtype == "auto":  # a run keeps its dtype, even on other devices
            started = workdirs.started_spec(workdirs.locate(workdir))
            device = jax.devices()[0]
            spec = precision.with_dtype(spec, started.model.dtype) if started else precision.resolve(spec, device)
        workdir = workdirs.open_for_training(workdir, spec, allow_change=allow_change)
        recovery.put_aside_incomplete(workdir)
        checkpoints = workdir / workdirs.CHECKPOINTS
        with Saver(checkpoints, every_minutes=spec.checkpoint_every_minutes, lease=held) as saver:
            mesh = sharding.make_mesh()
            complete = _results_if_complete(saver.manager, spec, mesh)
            results = complete or _train(spec, workdir, saver, mesh, held)
        if complete:
            _plot_curves(workdir, held)
        tested = chosen.test_once(workdir, spec, mesh) if scoring.HELD_OUT in results else {}
    if jax.process_index() == 0:
        status = "already complete" if complete else "finished"
        print(f"{status}: {results['epoch']} epochs, {scoring.summary(results)}, in {workdir}", flush=True)
        if tested:
            print(f"best by hold-out: step {tested['step']}, {scoring.summary(tested)}", flush=True)
    return results | {f"test_{name}": tested[name] for name in (*scoring.MEANS, "count") if tested}


def _train(spec: TrainSpec, workdir: epath.Path, saver: Saver, mesh: Mesh, held: lease.Lease) -> dict[str, float | int]:
    """Makes the remaining steps of a run, and returns the results of its last epoch.

    Each pass of the loop
      1. trains on the next batch;
      2. at every `log_every_steps`-th step and at the end of an epoch, fetches the metrics, checks and logs them;
      3. at the end of an epoch, evaluates on the hold-out or the test images, checks and logs the results;
      4. if a checkpoint is due or a signal has arrived, checks the state and saves it.

    Every number is checked before it is saved, so a checkpoint is always finite. Between two fetches the host
    queues steps ahead of the device. If the last checkpoint was saved but not evaluated, resuming evaluates it first.
    """
    train_split, test_split = sources.load(spec.data, "train"), sources.load(spec.data, "test")
    judge = sources.load_holdout(spec.data) or test_split
    steps_per_epoch = _require_fit(spec, train_split, mesh)
    total = spec.epochs * steps_per_epoch
    workdirs.require_same_data(
        workdir,
        class_names=train_split.class_names,
        training_images=train_split.num_examples,
        crop="" if train_split.crop == image_files.crop_of(spec.data.name) else train_split.crop,
        started=saver.manager.latest_step() is not None,
    )
    state, train_step, eval_step = _compile(spec, train_split, judge, steps_per_epoch, mesh)
    state, start, pending = recovery.restore_newest(workdir, saver.manager, state)
    evaluated = checkpoint.results(saver.manager, start) is not None
    unevaluated = start > 0 and start % steps_per_epoch == 0 and not evaluated
    first = start if unevaluated else start + 1
    _require_remaining(first, total, spec)
    held.require()
    workdirs.remember(workdir, spec)

    batches_from = functools.partial(_batches_from, spec, train_split)
    guard = Guard(
        spec, workdir, batches_from=batches_from, saved=lambda: _last_saved(saver, steps_per_epoch), lease=held
    )
    console = Console(
        workdir,
        start=start,
        total=total,
        steps_per_epoch=steps_per_epoch,
        pending=None if evaluated else pending,
        unevaluated=unevaluated,
        wandb_project=spec.wandb_project,
        lease=held,
    )
    _introduce(console, spec, state.params, [train_split, judge, test_split], steps_per_epoch, mesh, workdir)
    if start:
        console.say(f"resuming from step {start} of {total}, epoch {start // steps_per_epoch} of {spec.epochs}")
    elif spec.init_from:
        state, line = transfer.init_from_workdir(
            state, spec.init_from, train_split.class_names, mesh, head=spec.init_head
        )
        console.say(line)
    batches = batches_from(start)
    with (
        contextlib.ExitStack() as at_exit,
        events.recorded(workdir, lambda: console.done, held),
        signals.Signals(cast=hosts.Votes(mesh).cast if jax.process_count() > 1 else None) as stop_signals,
        device_memory.explained("batch_size", spec.batch_size, state, mesh),
    ):
        at_exit.callback(_plot_curves, workdir, held)
        at_exit.callback(console.close)
        for step in range(first, total + 1):
            results: dict[str, float | int] = {}
            end_of_epoch = step % steps_per_epoch == 0
            fetch = end_of_epoch or step % spec.log_every_steps == 0
            if step > start:
                state, metrics = train_step(state, sharding.to_global(next(batches), mesh))
                console.step(metrics)
                stop_signals.agree()
                if fetch:
                    guard.check_steps(console.fetch(), step)
            if end_of_epoch:
                with contextlib.suppress(signals.Requested):  # a signal breaks off the evaluation
                    stop_signals.check()
                    results, _ = scoring.evaluate_state(eval_step, state, judge, spec, mesh, check=stop_signals.check)
                    guard.check_results(results, step)
                    console.epoch(results)
                    results["epoch"] = step // steps_per_epoch
            epoch_due = results and (results["epoch"] % spec.checkpoint_every_epochs == 0 or step == total)
            stopping = stop_signals.number  # read once: a signal that arrives after this line waits for the next step
            if epoch_due or stopping or saver.due(fetched=fetch):
                pending = console.pending()
                guard.check_steps(pending["window"], step)
                guard.check_state(state, step)
                saver.save(step, state, pending, results or None)
            saver.poll()
            if stopping and not (results and step == total):
                raise _stopped(stop_signals, step, total, _last_saved(saver, steps_per_epoch))
        if not saver.finish():
            raise SavingError(
                f"training is complete, but its last state could not be saved. Make room in {saver.manager.directory} "
                f"and run the same command again."
            )
    return results


def _batches_from(spec: TrainSpec, split: sources.DataSplit, step: int) -> Iterator[dict[str, np.ndarray]]:
    """This host's share of the training batches after a step."""
    return pipeline.train_batches(
        split,
        spec.data,
        batch_size=spec.batch_size,
        seed=spec.seed,
        start_step=step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _require_fit(spec: TrainSpec, split: sources.DataSplit, mesh: Mesh) -> int:
    """Checks the config against the training data and the devices, and returns the number of steps per epoch."""
    if spec.model.num_classes != split.num_classes:
        raise UserError(
            "model.num_classes",
            f"{spec.model.num_classes}",
            f"{split.num_classes}, the number of classes of {split.name}",
            f"Set `model.num_classes`={split.num_classes}, or choose another `data.name`.",
        )
    steps_per_epoch = spec.steps_per_epoch(split.num_examples)
    sharding.require_divisible(spec.batch_size, mesh)
    return steps_per_epoch


def _results_if_complete(manager: ocp.CheckpointManager, spec: TrainSpec, mesh: Mesh) -> dict[str, float | int] | None:
    """Returns the results of a run whose last checkpoint is intact and ends the last epoch, otherwise None."""
    step = manager.latest_step()
    results = None if step is None else checkpoint.results(manager, step)
    everywhere = sharding.replicated(mesh)
    complete = results and results.get("epoch") == spec.epochs and recovery.can_be_read(manager, step, everywhere)
    return results if complete else None


def _compile(
    spec: TrainSpec, train_split: sources.DataSplit, test_split: sources.DataSplit, steps_per_epoch: int, mesh: Mesh
) -> tuple[steps.TrainState, Callable[..., Any], Callable[..., Any]]:
    """Makes the initial state, the training step and the evaluation step."""
    model = build_network(spec.model)
    made = run_steps.make_run_steps(
        model,
        spec,
        steps_per_epoch=steps_per_epoch,
        statistics=train_split.statistics,
        mesh=mesh,
        classes=test_split.classes,
    )
    state = steps.init_state(
        model, made.optimizer, image_size=spec.data.image_size, seed=spec.seed, mesh=mesh, average=spec.ema_decay > 0
    )
    return state, made.train_step, made.eval_step


def _require_remaining(first: int, total: int, spec: TrainSpec) -> None:
    """Refuses to resume with fewer epochs than the run already has."""
    if first > total:
        raise UserError(
            "epochs",
            f"{spec.epochs}, which end at step {total}",
            f"more, since the run is at step {first - 1} already",
            "Raise `epochs`, or evaluate the run as it is.",
        )


def _last_saved(saver: Saver, steps_per_epoch: int) -> str:
    """Waits for the checkpoint that is being written, and says in words which checkpoint is the last."""
    saver.finish()
    step = saver.manager.latest_step()
    if step is None:
        return "nothing is saved yet"
    return f"the last checkpoint is step {step} (epoch {step / steps_per_epoch:g}) in {saver.manager.directory}"


def _stopped(stop_signals: signals.Signals, step: int, total: int, saved: str) -> signals.Stopped:
    named = " and ".join(map(str, stop_signals.hosts))
    where = f" because of a signal to host{'s' if stop_signals.hosts[1:] else ''} {named}" if named else ""
    text = f"stopped at step {step} of {total}{where}; {saved}. Run the same command to resume."
    return signals.Stopped(text, stop_signals.number)


def _introduce(
    console: Console,
    spec: TrainSpec,
    params: Mapping[str, Any],
    splits: Sequence[sources.DataSplit],
    steps_per_epoch: int,
    mesh: Mesh,
    workdir: epath.Path,
) -> None:
    """Writes the table of parameters, and prints the network, the splits (train, judge, test) and the devices."""
    train_split, judge, test_split = splits
    told = "" if judge is test_split else f", {judge.num_examples:,} held out,"
    places = [split.place for split in splits if split.place]
    told_places = f"\nimages: {', '.join(dict.fromkeys(places))}" if places else ""
    if jax.process_index() == 0:
        overview = parameter_overview.get_parameter_overview(params, include_stats=False)
        (workdir / workdirs.PARAMETERS).write_text(overview + "\n")
    console.say(
        f"{spec.model.name}: {parameter_overview.count_parameters(params):,} parameters, {spec.model.dtype}\n"
        f"{spec.data.name}: {train_split.num_examples:,} training{told} and {test_split.num_examples:,} test images of "
        f"{spec.data.image_size} px, {train_split.num_classes} classes{told_places}\n"
        f"best by: {'hold-out' if judge.held_out else 'test'}\n"
        f"{mesh.size} x {mesh.devices.flat[0].device_kind}: {spec.epochs} epochs of {steps_per_epoch} steps of "
        f"{spec.batch_size} images\n"
        f"workdir: {workdir}"
    )


def _plot_curves(workdir: epath.Path, held: lease.Lease) -> None:
    if jax.process_index() == 0:
        held.require()
        try:
            curves.plot_curves(workdirs.read_metrics(workdir), workdir / workdirs.CURVES)
        except OSError as error:  # not worth failing for: the numbers in the picture are saved in the metrics
            print(f"WARNING: {workdir / workdirs.CURVES} could not be written ({error})", file=sys.stderr, flush=True)
