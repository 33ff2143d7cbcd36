"""The one training loop."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from clu import parameter_overview
from etils import epath
from jax.sharding import Mesh
from orbax import checkpoint as ocp

from skipnet_jax import checkpoint, config, evaluate, sharding, steps, transfer
from skipnet_jax import workdir as workdirs
from skipnet_jax.analysis import plots
from skipnet_jax.data import pipeline, sources
from skipnet_jax.models import create_model
from skipnet_jax.optim import optimizers, schedules
from skipnet_jax.progress import Progress
from skipnet_jax.specs import TrainSpec


def train_and_evaluate(spec: Any, workdir: epath.PathLike) -> dict[str, float | int]:
    """Trains a network, or goes on where an earlier call with this workdir was interrupted.

    The order of operations: step; every `log_every_steps`, and at the end of an epoch, fetch the numbers, write them,
    check them; at the end of an epoch evaluate on the test images, check, write, and save. So what is saved has been
    evaluated, and nothing that is not finite is ever saved. Between two fetches the device runs ahead of the host.

    Args:
      spec: TrainSpec, or the ConfigDict of a recipe.
      workdir: `workdir.py` lists what it will hold.

    Returns:
      Exact results of the last epoch on the test images: "accuracy" and "top5_accuracy" (0..1), "loss" (nats), "count"
      (examples), "epoch"; with `ema_decay`, "average_accuracy" and so on of the moving average. If there was
      nothing left to do, those of the call that finished the run.

    Raises:
      ValueError: the config does not fit the data, the devices or the workdir.
      FloatingPointError: the loss, the gradient or the network is no longer finite.
      KeyboardInterrupt: Ctrl-C; its text says what is saved.
    """
    spec = spec if isinstance(spec, TrainSpec) else config.train_spec(spec)
    workdir = workdirs.open_for_training(workdir, spec)
    with checkpoint.open_manager(workdir / workdirs.CHECKPOINTS) as manager:
        start = checkpoint.find(manager, "latest") if manager.all_steps() else 0
        if start and manager.metrics(start)["epoch"] == spec.epochs:
            _draw(workdir)
            _finish("complete already", manager.metrics(start), workdir)
            return manager.metrics(start)

        mesh = sharding.make_mesh()
        train_source, test_source = sources.load(spec.data, "train"), sources.load(spec.data, "test")
        _require_fit(spec, train_source, mesh)
        workdirs.require_same_data(
            workdir,
            class_names=train_source.class_names,
            training_images=train_source.num_examples,
            started=start > 0,
        )
        steps_per_epoch = train_source.num_examples // spec.batch_size
        total = spec.epochs * steps_per_epoch

        model = create_model(**dataclasses.asdict(spec.model))
        schedule = schedules.make_schedule(
            spec.optim, batch_size=spec.batch_size, epochs=spec.epochs, steps_per_epoch=steps_per_epoch
        )
        optimizer = optimizers.make_optimizer(spec.optim, schedule)
        state = steps.init_state(
            model,
            optimizer,
            image_size=spec.data.image_size,
            seed=spec.seed,
            mesh=mesh,
            average=spec.ema_decay > 0,
        )
        mean, std = train_source.mean, train_source.std
        train_step = steps.make_train_step(
            model, optimizer, schedule, spec, steps_per_epoch=steps_per_epoch, mean=mean, std=std, mesh=mesh
        )
        eval_step = steps.make_eval_step(model, mean=mean, std=std, mesh=mesh, classes=test_source.classes)
        if start:
            state = checkpoint.restore(manager, start, jax.tree.map(checkpoint.shape_of, state))
        batches = pipeline.train_batches(
            train_source,
            spec.data,
            batch_size=spec.batch_size,
            seed=spec.seed,
            start_step=start,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

        progress = Progress(workdir, start=start, total=total, steps_per_epoch=steps_per_epoch)
        _introduce(progress, spec, state.params, train_source, test_source, mesh, workdir)
        if start:
            progress.say(f"going on from step {start} of {total}, epoch {start // steps_per_epoch} of {spec.epochs}")
        elif spec.init_from:
            state, taken = transfer.start_from(state, spec.init_from, train_source.class_names, mesh)
            progress.say(str(taken))
        step = start
        try:
            for step in range(start + 1, total + 1):
                state, sums = train_step(state, sharding.to_global(next(batches), mesh))
                progress.step(sums)
                if step % spec.log_every_steps == 0 or step % steps_per_epoch == 0:
                    _require_finite(progress.fetch(), step, spec, manager)
                if step % steps_per_epoch == 0:
                    results = evaluate.evaluate_state(eval_step, state, test_source, spec, mesh)
                    _require_finite(results, step, spec, manager)
                    progress.epoch(results)
                    results["epoch"] = step // steps_per_epoch
                    if results["epoch"] % spec.checkpoint_every_epochs == 0 or step == total:
                        checkpoint.save(manager, step, state, results)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"stopped at step {step} of {total}; {_saved(manager)}. Run the same command to go on."
            ) from None
        finally:
            progress.close()
            _draw(workdir)
    _finish("finished", results, workdir)
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


def _require_finite(
    numbers: Mapping[str, float | int], step: int, spec: TrainSpec, manager: ocp.CheckpointManager
) -> None:
    bad = [f"{name} {value}" for name, value in numbers.items() if not math.isfinite(value)]
    if bad:
        in_float32 = "" if spec.model.dtype == "float32" else " or compute in float32 (--config.model.dtype)"
        raise FloatingPointError(
            f"training diverged: at step {step} got {', '.join(bad)}, expected finite numbers; {_saved(manager)}. "
            f"Lower --config.optim.lr (now {spec.optim.lr:g}), warm up longer (--config.optim.warmup_epochs, now "
            f"{spec.optim.warmup_epochs}){in_float32}, in a new --workdir."
        )


def _saved(manager: ocp.CheckpointManager) -> str:
    manager.wait_until_finished()
    step = manager.latest_step()
    if step is None:
        return "nothing is saved yet"
    return f"saved is step {step} (epoch {manager.metrics(step)['epoch']}) in {manager.directory}"


def _introduce(
    progress: Progress,
    spec: TrainSpec,
    params: Mapping[str, Any],
    train_source: sources.Source,
    test_source: sources.Source,
    mesh: Mesh,
    workdir: epath.Path,
) -> None:
    if jax.process_index() == 0:
        workdirs.record_environment(workdir)
        overview = parameter_overview.get_parameter_overview(params, include_stats=False)
        (workdir / workdirs.PARAMETERS).write_text(overview + "\n")
    progress.say(
        f"{spec.model.name}: {parameter_overview.count_parameters(params):,} parameters, {spec.model.dtype}\n"
        f"{spec.data.name}: {train_source.num_examples:,} training and {test_source.num_examples:,} test images of "
        f"{spec.data.image_size} px, {train_source.num_classes} classes\n"
        f"{mesh.size} x {mesh.devices.flat[0].device_kind}: {spec.epochs} epochs of "
        f"{train_source.num_examples // spec.batch_size} steps of {spec.batch_size} images\n"
        f"workdir: {workdir}"
    )


def _draw(workdir: epath.Path) -> None:
    if jax.process_index() == 0:
        plots.plot_curves(workdirs.read_metrics(workdir), workdir / workdirs.CURVES)


def _finish(how: str, results: Mapping[str, float | int], workdir: epath.Path) -> None:
    if jax.process_index() == 0:
        print(f"{how}: {results['epoch']} epochs, {evaluate.summary(results)}, in {workdir}", flush=True)
