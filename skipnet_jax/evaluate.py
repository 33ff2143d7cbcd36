"""Exact evaluation: every example counts once, whatever the batch size and the number of devices."""

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from clu.metrics import Average
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import PyTree

from skipnet_jax import checkpoint, sharding, steps
from skipnet_jax import workdir as workdirs
from skipnet_jax.data import pipeline, sources
from skipnet_jax.models import abstract_variables, create_model
from skipnet_jax.specs import DataSpec, TrainSpec

IN_FLIGHT = 2  # batches that the host may be ahead of the device
MEANS = {"loss": "loss", "accuracy": "correct", "top5_accuracy": "correct_top5"}  # name of a mean: of its sum


def evaluate(
    eval_step: Callable[[dict[str, PyTree], steps.Batch], steps.Metrics],
    variables: dict[str, PyTree],
    batches: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
    *,
    check: Callable[[], None] | None = None,
) -> dict[str, float | int]:
    """Scores a network on all batches.

    The host is a few batches ahead, so that the device never waits, but not so many that they fill its memory; numbers
    are fetched at the end.

    Args:
      eval_step: of `steps.make_eval_step`.
      variables: "params" and "batch_stats" of the network.
      batches: of `pipeline.eval_batches`, this host's share.
      check: called before each batch; may raise, to break off.

    Returns:
      "loss" (mean cross entropy, nats), "accuracy" and "top5_accuracy" (0..1), "count" (examples).
    """
    sums = []
    for batch in batches:
        if check is not None:
            check()
        sums.append(eval_step(variables, sharding.to_global(batch, mesh)))
        if len(sums) > IN_FLIGHT:
            jax.block_until_ready(sums[-1 - IN_FLIGHT])
    sums = jax.device_get(sums)
    return means(sums, MEANS) | {"count": int(sum(batch["count"] for batch in sums))}


def evaluate_state(
    eval_step: Callable[[dict[str, PyTree], steps.Batch], steps.Metrics],
    state: steps.TrainState,
    source: sources.Source,
    spec: TrainSpec,
    mesh: Mesh,
    *,
    check: Callable[[], None] | None = None,
) -> dict[str, float | int]:
    """Scores a network on a whole split, and beside it its moving average where there is one.

    Args:
      eval_step: of `steps.make_eval_step`.
      state: with "params", "batch_stats" and "average".
      source: the split.
      spec: says the batch size.
      check: as for `evaluate`.

    Returns:
      Those of `evaluate`; the average's are called "average_loss" and so on.
    """
    results = evaluate(eval_step, state.variables, batches(source, spec, mesh), mesh, check=check)
    if state.average:
        averaged = evaluate(eval_step, state.average, batches(source, spec, mesh), mesh, check=check)
        results |= {f"average_{name}": averaged[name] for name in MEANS}
    return results


def evaluate_workdir(
    path: epath.PathLike,
    which: str = "best",
    *,
    datasets: Sequence[str] = (),
    image_sizes: Sequence[int] = (),
    eval_classes: str = "all",
    data_dir: str | None = None,
) -> list[dict[str, Any]]:
    """Scores a checkpoint of a workdir on the test images of data sets, and adds the results to results.json there.

    Needs no config file: the workdir remembers it.

    Args:
      path: a workdir that training made.
      which: best (by validation accuracy, the average's if there is one), latest, or a step.
      datasets: names as of `specs.DataSpec.name`; none = that of the run.
      image_sizes: sides of the square images, in pixels; none = that of the run. One pass per pair.
      eval_classes: see `specs.DataSpec`.
      data_dir: where the data sets are; None = where the run has its own.

    Returns:
      For each data set and each size: those of `evaluate_state`, with the "model", "data", "image_size",
      "eval_classes", "split", "checkpoint" (its folder) and "step" they belong to.

    Raises:
      ValueError: there is no run, no such checkpoint or data set, or the checkpoint is of another network.
    """
    workdir = workdirs.locate(path)
    spec = workdirs.read_spec(workdir)
    pairs = itertools.product(datasets or (spec.data.name,), image_sizes or (spec.data.image_size,))
    with _told_in_flags_of_evaluation():
        wanted = [_data_for_evaluation(spec.data, name, size, eval_classes, data_dir) for name, size in pairs]
        for data in wanted:
            sources.require_available(data)  # all of them, before any is evaluated
    mesh = sharding.make_mesh()
    model = create_model(**dataclasses.asdict(spec.model))
    with checkpoint.open_manager(workdir / workdirs.CHECKPOINTS, read_only=True) as manager:
        step = checkpoint.find(manager, which)
        target = _replicated_variables(model, spec.data.image_size, mesh)
        target["average"] = dict(target) if spec.ema_decay else {}
        restored = checkpoint.restore(manager, step, target)
    state = steps.TrainState(step=step, opt_state={}, **restored)
    records = []
    for data in wanted:
        source = sources.load(data, "test")
        _require_classes(source, workdirs.read_class_names(workdir))
        eval_step = steps.make_eval_step(model, mean=source.mean, std=source.std, mesh=mesh, classes=source.classes)
        results = evaluate_state(eval_step, state, source, dataclasses.replace(spec, data=data), mesh)
        record: dict[str, Any] = {
            "model": spec.model.name,
            "data": data.name,
            "image_size": data.image_size,
            "eval_classes": eval_classes,
            "split": "test",
            "checkpoint": str(workdir / workdirs.CHECKPOINTS / str(step)),
            "step": step,
            **results,
        }
        records.append(record)
        if jax.process_index() == 0:
            workdirs.add_results(workdir, record)
            own = " (own classes)" if eval_classes == "own" else ""
            where = f"{data.name}{own} at {data.image_size} px"
            print(f"{spec.model.name} at step {step}, {where}: {summary(results)}", flush=True)
    if jax.process_index() == 0:
        print(f"written to {workdir / workdirs.RESULTS}", flush=True)
    return records


def _data_for_evaluation(data: DataSpec, name: str, size: int, eval_classes: str, data_dir: str | None) -> DataSpec:
    """The run's own data at another size, or another data set.

    That is looked for where the run's own is only if both are TensorFlow Datasets', which lie side by side.
    """
    if name == data.name:
        place = data.dir if data_dir is None else data_dir
        return dataclasses.replace(data, dir=place, image_size=size, pad_crop=0, eval_classes=eval_classes)
    if data_dir is None:
        data_dir = data.dir if sources.is_tfds(data.name) and sources.is_tfds(name) else ""
    return DataSpec(name=name, dir=data_dir, image_size=size, pad_crop=0, eval_classes=eval_classes)


@contextlib.contextmanager
def _told_in_flags_of_evaluation() -> Iterator[None]:
    """Messages that name a config's fields name the flags of `--mode=evaluate`, which has no config."""
    flags = {"eval_classes": "eval_classes", "image_size": "image_sizes", "name": "datasets", "dir": "data_dir"}
    try:
        yield
    except ValueError as error:
        text = str(error)
        for field, flag in flags.items():
            text = text.replace(f"--config.data.{field}", f"--{flag}")
        raise type(error)(text) from error


def _require_classes(source: sources.Source, learnt: tuple[str, ...] | None) -> None:
    """Raises if the labels of a data set do not mean what the network has learnt."""
    if learnt is None or source.class_names == learnt:
        return
    if len(source.class_names) != len(learnt):
        got, expected = f"{source.num_classes} classes", f"the {len(learnt)} classes"
    else:
        number = next(i for i, names in enumerate(zip(source.class_names, learnt, strict=True)) if len(set(names)) > 1)
        got, expected = f"class {number} {source.class_names[number]!r}", f"{learnt[number]!r}, the class"
    raise ValueError(
        f"--datasets: got {source.name} with {got}, expected {expected} that the network has learnt. Change --datasets "
        f"or --data_dir."
    )


def batches(source: sources.Source, spec: TrainSpec, mesh: Mesh) -> Iterable[dict[str, np.ndarray]]:
    """Every example of the source once, as this host's share of the batches, with a bar on a terminal.

    The batch size is rounded up to a multiple of the number of devices; no result depends on it.
    """
    batch_size = -(-spec.eval_batch_size // mesh.size) * mesh.size
    batches = pipeline.eval_batches(
        source,
        spec.data,
        batch_size=batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    bar = tqdm.tqdm(
        batches,
        desc=f"{source.name} at {spec.data.image_size} px",
        total=-(-source.num_examples // batch_size),
        leave=False,
        disable=jax.process_index() > 0 or not sys.stderr.isatty(),
    )
    return iter(bar)


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
