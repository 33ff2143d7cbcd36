"""`--mode=evaluate`: a checkpoint of a workdir on the test images of data sets, at several sizes."""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh

from skipnet_jax import files
from skipnet_jax.data import sources
from skipnet_jax.evaluation import confusion, scoring
from skipnet_jax.models import build_network
from skipnet_jax.runs import weights
from skipnet_jax.runs import workdir as workdirs
from skipnet_jax.specs import DataSpec, TrainSpec
from skipnet_jax.training import sharding, steps

DETAILS = ("calibration_error", "class_accuracy")  # what --details adds to a record


def evaluate_workdir(
    path: epath.PathLike,
    which: str = "best",
    *,
    datasets: Sequence[str] = (),
    image_sizes: Sequence[int] = (),
    eval_classes: str = "all",
    data_dir: str | None = None,
    flip: bool = False,
    detailed: bool = False,
) -> list[dict[str, Any]]:
    """Scores a checkpoint of a workdir on the test images of data sets, and adds the results to results.json there.

    Needs no config file: the workdir remembers it.

    Args:
      path: a workdir that training made, or converted weights.
      which: best (by validation accuracy, the average's if there is one), latest, or a step.
      datasets: names as of `specs.DataSpec.name`; none = that of the run.
      image_sizes: sides of the square images, in pixels; none = that of the run. One pass per pair.
      eval_classes: see `specs.DataSpec`.
      data_dir: where the data sets are; None = where the run has its own.
      flip: score each image by the mean of its logits and those of its mirror image. No published figure is of that.
      detailed: count by class and by confidence too, of the moving average if there is one, by which the best is
        chosen. `confusion.py` lists the files.

    Returns:
      For each data set and each size: those of `scoring.evaluate_state`, with the "model", "data", "image_size",
      "eval_classes", "split", "flip", "checkpoint" (its folder) and "step" they belong to; detailed also
      "calibration_error" (0..1) and "class_accuracy" (0..1, by name).

    Raises:
      ValueError: there is no run, no such checkpoint or data set, the checkpoint is of another network, or the workdir
        cannot be written.
    """
    workdir = workdirs.locate(path)
    spec = weights.read_spec(workdir)
    _require_writable(workdir)
    pairs = itertools.product(datasets or (spec.data.name,), image_sizes or (spec.data.image_size,))
    with _told_in_flags_of_evaluation():
        wanted = [_data_for_evaluation(spec.data, name, size, eval_classes, data_dir) for name, size in pairs]
        for data in wanted:
            sources.require_available(data)  # all of them, before any is evaluated
    mesh = sharding.make_mesh()
    model = build_network(spec.model)
    state = _restore(workdir, which, mesh)
    records = []
    for data in wanted:
        source = sources.load(data, "test")
        _require_classes(source, workdirs.read_class_names(workdir), spec.model.num_classes)
        at = dataclasses.replace(spec, data=data)
        results, found = _score(model, state, source, at, mesh, flip=flip, detailed=detailed)
        record: dict[str, Any] = {
            "model": spec.model.name,
            "data": data.name,
            "image_size": data.image_size,
            "eval_classes": eval_classes,
            "split": "test",
            "flip": flip,
            "checkpoint": str(workdir / workdirs.CHECKPOINTS / str(state.step)),
            "step": state.step,
            **results,
        }
        records.append(record)
        if jax.process_index() == 0:
            _tell(record, found, workdir)
    if jax.process_index() == 0:
        print(f"written to {workdir / workdirs.RESULTS}", flush=True)
    return records


def _require_writable(workdir: epath.Path) -> None:
    """Raises if results could not be written, before the long work that makes them."""
    if "://" not in str(workdir) and not os.access(workdir, os.W_OK):
        raise ValueError(
            f"--workdir: got {workdir}, which cannot be written, expected one that can, since {workdirs.RESULTS} goes "
            f"there. Change its permissions, or evaluate a copy."
        )


def _restore(workdir: epath.Path, which: str, mesh: Mesh) -> steps.TrainState:
    """A checkpoint without what only training needs."""
    everywhere = sharding.replicated(mesh)
    read = weights.load(workdir, which, averaged=False, sharding=everywhere)
    average = {}
    if read.spec.ema_decay:
        average = weights.load(workdir, str(read.step), averaged=True, sharding=everywhere).variables
    return steps.TrainState(step=read.step, opt_state={}, average=average, **read.variables)


def _score(
    model: nn.Module,
    state: steps.TrainState,
    source: sources.Source,
    spec: TrainSpec,
    mesh: Mesh,
    *,
    flip: bool,
    detailed: bool,
) -> tuple[dict[str, Any], confusion.Details | None]:
    """Results of one pass, and what lies behind them where that is asked for."""
    eval_step = steps.make_eval_step(
        model, statistics=source.statistics, mesh=mesh, classes=source.classes, flip=flip, details=detailed
    )
    tally = scoring.Tally()
    results: dict[str, Any] = dict(scoring.evaluate_state(eval_step, state, source, spec, mesh, tally=tally))
    if tally.total is None:
        return results, None
    numbers = source.classes or range(source.num_classes)
    found = confusion.fetch(tally.total, tuple(source.class_names[number] for number in numbers))
    return results | {"calibration_error": found.calibration_error, "class_accuracy": found.class_accuracy}, found


def _tell(record: dict[str, Any], found: confusion.Details | None, workdir: epath.Path) -> None:
    """Adds a result to those of the workdir, and says it."""
    workdirs.add_results(workdir, _with_known_details(record, workdir))
    own = " (own classes)" if record["eval_classes"] == "own" else ""
    flip = ", with mirror images" if record["flip"] else ""
    where = f"{record['data']}{own} at {record['image_size']} px{flip}"
    text = f"{record['model']} at step {record['step']}, {where}: {scoring.summary(record)}"
    if found is not None:
        parts = (record["data"].replace("/", "-"), f"{record['image_size']}px", f"step{record['step']}")
        marks = ("own",) * bool(own) + ("flip",) * bool(flip)
        files = found.write(workdir, "_".join((*parts, *marks)))
        whose = " of the moving average" if "average_accuracy" in record else ""
        text += f", calibration error{whose} {found.calibration_error:.2%}\n" + "\n".join(f"  {file}" for file in files)
    print(text, flush=True)


def _with_known_details(record: dict[str, Any], workdir: epath.Path) -> dict[str, Any]:
    """A result with the details that an earlier evaluation of the same has found, in whose place it will be.

    The same are those that agree in all but the last digits of the losses, and where the workdir lay.
    """
    file = workdir / workdirs.RESULTS
    earlier = files.read_json(file) if file.exists() else []
    same = {name: value for name, value in record.items() if name != "checkpoint" and not name.endswith("loss")}
    for other in earlier if isinstance(earlier, list) else []:
        if isinstance(other, dict) and same.items() <= other.items():
            return {**record, **{name: other[name] for name in DETAILS if name in other and name not in record}}
    return record


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


def _require_classes(source: sources.Source, learnt: tuple[str, ...] | None, num_classes: int) -> None:
    """Raises if the labels of a data set do not mean what the network has learnt; of some only the number is known."""
    if source.num_classes == num_classes and learnt in (None, source.class_names):
        return
    if learnt is None or source.num_classes != num_classes:
        got, expected = f"{source.num_classes} classes", f"the {num_classes} classes"
    else:
        number = next(i for i, names in enumerate(zip(source.class_names, learnt, strict=True)) if len(set(names)) > 1)
        got, expected = f"class {number} {source.class_names[number]!r}", f"{learnt[number]!r}, the class"
    raise ValueError(
        f"--datasets: got {source.name} with {got}, expected {expected} that the network has learnt. Change --datasets "
        f"or --data_dir."
    )
