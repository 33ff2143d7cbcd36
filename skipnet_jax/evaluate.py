"""Exact evaluation: every example counts once, whatever the batch size and the number of devices."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from clu.metrics import Average
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import PyTree

from skipnet_jax import checkpoint, sharding, steps
from skipnet_jax import workdir as workdirs
from skipnet_jax.data import pipeline, sources
from skipnet_jax.models import abstract_variables, create_model
from skipnet_jax.specs import TrainSpec

MEANS = {"loss": "loss", "accuracy": "correct", "top5_accuracy": "correct_top5"}  # name of a mean: of its sum


def evaluate(
    eval_step: Callable[[dict[str, PyTree], steps.Batch], steps.Metrics],
    variables: dict[str, PyTree],
    batches: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
) -> dict[str, float | int]:
    """Scores a network on all batches.

    Nothing is fetched before the last batch is under way, so the device never waits for the host.

    Args:
      eval_step: of `steps.make_eval_step`.
      variables: "params" and "batch_stats" of the network.
      batches: of `pipeline.eval_batches`, this host's share.

    Returns:
      "loss" (mean cross entropy, nats), "accuracy" and "top5_accuracy" (0..1), "count" (examples).
    """
    sums = jax.device_get([eval_step(variables, sharding.to_global(batch, mesh)) for batch in batches])
    return means(sums, MEANS) | {"count": int(sum(batch["count"] for batch in sums))}


def evaluate_state(
    eval_step: Callable[[dict[str, PyTree], steps.Batch], steps.Metrics],
    state: steps.TrainState,
    source: sources.Source,
    spec: TrainSpec,
    mesh: Mesh,
) -> dict[str, float | int]:
    """Scores a network on a whole split, and beside it its moving average where there is one.

    Args:
      eval_step: of `steps.make_eval_step`.
      state: with "params", "batch_stats" and "average".
      source: the split.
      spec: says the batch size.

    Returns:
      Those of `evaluate`; the average's are called "average_loss" and so on.
    """
    results = evaluate(eval_step, state.variables, batches(source, spec, mesh), mesh)
    if state.average:
        averaged = evaluate(eval_step, state.average, batches(source, spec, mesh), mesh)
        results |= {f"average_{name}": averaged[name] for name in MEANS}
    return results


def evaluate_workdir(path: epath.PathLike, which: str = "best") -> dict[str, Any]:
    """Scores a checkpoint of a workdir on the test images, and writes evaluation.json there.

    Needs no config file: the workdir remembers it.

    Args:
      path: a workdir that training made.
      which: best (by validation accuracy, the average's if there is one), latest, or a step.

    Returns:
      Those of `evaluate`, with the "model", "data", "split", "checkpoint" (its folder) and "step" they belong to.

    Raises:
      ValueError: there is no run, no such checkpoint, or the checkpoint is of another network.
    """
    workdir = workdirs.locate(path)
    spec = workdirs.read_spec(workdir)
    source = sources.load(spec.data, "test")
    mesh = sharding.make_mesh()
    model = create_model(**dataclasses.asdict(spec.model))
    with checkpoint.open_manager(workdir / workdirs.CHECKPOINTS, read_only=True) as manager:
        step = checkpoint.find(manager, which)
        target = _replicated_variables(model, spec.data.image_size, mesh)
        target["average"] = dict(target) if spec.ema_decay else {}
        restored = checkpoint.restore(manager, step, target)
    state = steps.TrainState(step=step, opt_state={}, **restored)
    eval_step = steps.make_eval_step(model, mean=source.mean, std=source.std, mesh=mesh, classes=source.classes)
    results = evaluate_state(eval_step, state, source, spec, mesh)
    record = {
        "model": spec.model.name,
        "data": spec.data.name,
        "split": "test",
        "checkpoint": str(workdir / workdirs.CHECKPOINTS / str(step)),
        "step": step,
        **results,
    }
    if jax.process_index() == 0:
        workdirs.write_json(workdir / workdirs.EVALUATION, record)
        print(
            f"{spec.model.name} at step {step}: {summary(results)}; written to {workdir / workdirs.EVALUATION}",
            flush=True,
        )
    return record


def batches(source: sources.Source, spec: TrainSpec, mesh: Mesh) -> Iterable[dict[str, np.ndarray]]:
    """Every example of the source once, as this host's share of the batches.

    The batch size is rounded up to a multiple of the number of devices; no result depends on it.
    """
    return pipeline.eval_batches(
        source,
        spec.data,
        batch_size=-(-spec.eval_batch_size // mesh.size) * mesh.size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def summary(results: Mapping[str, float | int]) -> str:
    """Results of `evaluate` in words."""
    correct = round(results["accuracy"] * results["count"])
    average = f"; moving average {results['average_accuracy']:.2%}" if "average_accuracy" in results else ""
    return (
        f"test accuracy {results['accuracy']:.2%} ({correct} of {results['count']} images), "
        f"top-5 {results['top5_accuracy']:.2%}, loss {results['loss']:.4f}{average}"
    )


def means(sums: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> dict[str, float | int]:
    """Means over all examples of sums over batches.

    Args:
      sums: one entry per batch, fetched, each with "count" examples.
      names: name of each mean: name of the sum that it is made of.
    """
    totals = {}
    for name, part in names.items():
        average = Average(total=np.float64(0), count=np.int64(0))
        for batch in sums:
            average = average.merge(Average(total=np.float64(batch[part]), count=np.int64(batch["count"])))
        totals[name] = float(average.compute())
    return totals


def _replicated_variables(model: nn.Module, image_size: int, mesh: Mesh) -> dict[str, PyTree]:
    """Shapes and shardings of a network's arrays, without making any."""
    variables = abstract_variables(model, image_size)
    everywhere = sharding.replicated(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})},
    )
