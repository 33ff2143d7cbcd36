"""Evaluation of a finished run (`--mode=evaluate`): its checkpoints on the test images of any data set, at any size."""

import dataclasses
import itertools
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh

from skipnet_jax import files
from skipnet_jax.data import sources, splits, statistics, tfds_names
from skipnet_jax.evaluation import chosen, confusion, learnt_classes, scoring
from skipnet_jax.models import build_network
from skipnet_jax.runs import workdir as workdirs
from skipnet_jax.specs import DataSpec, TrainSpec
from skipnet_jax.training import sharding, steps

DETAILS = ("calibration_error", "class_accuracy")  # what --details adds to a record
LONGEST_PLACE = 80  # in a file's name, in characters


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
    """Scores a checkpoint on the test images of each data set at each size, and adds the results to results.json.

    Args:
      path: the workdir of a run, or of converted weights.
      which: best (by validation accuracy, the average's if there is one), latest, or a step.
      datasets: names as in `specs.DataSpec.name`; none = the run's own.
      image_sizes: sides of the square images, in pixels; none = the run's own.
      eval_classes: see `specs.DataSpec`.
      data_dir: where the data sets are; None = where the run has its own.
      flip: average the logits of each image and its mirror image. No published figure uses this.
      detailed: also break the accuracy down by class and by confidence, for the moving average if there is one, and
        write the files that `confusion.py` lists.

    Returns:
      One record per data set and size: the results of `scoring.evaluate_state`, with "model", "data", "image_size",
      "eval_classes", "split", "flip", "checkpoint" (its folder) and "step"; with "dir" for images in files from another
      place than the run's own; detailed ones also have "calibration_error" (0..1) and "class_accuracy" (0..1, by name).

    Raises:
      UserError: the workdir, the checkpoint or a data set is missing or does not fit, or the workdir cannot be written.
    """
    workdir = workdirs.locate(path)
    spec = workdirs.read_spec(workdir)
    class_names = workdirs.read_class_names(workdir)
    if files.is_local(workdir) and not os.access(workdir, os.W_OK):
        raise files.unwritable("workdir", workdir)  # before the long work whose results go there
    workdirs.read_results(workdir)  # likewise: a damaged file takes no more results
    pairs = itertools.product(datasets or (spec.data.name,), image_sizes or (spec.data.image_size,))
    wanted = [_describe(spec.data, name, size, eval_classes, data_dir) for name, size in pairs]
    for data in wanted:
        sources.require_available(data)  # all of them, before the first is evaluated
    mesh = sharding.make_mesh()
    model = build_network(spec.model)
    state = chosen.load_state(workdir, which, mesh)
    records = []
    for data in wanted:
        split, data = learnt_classes.load_in_order(data, class_names, spec.model.num_classes)
        if split.place and jax.process_index() == 0:
            print(f"{data.name}: {split.num_examples:,} test images, {split.place}", flush=True)
        at = dataclasses.replace(spec, data=data)
        results, breakdown = _score(model, state, split, at, mesh, flip=flip, detailed=detailed)
        record = chosen.describe(at, workdir, state.step, flip=flip)
        if data.name in tfds_names.FORMATS and data.dir != spec.data.dir:  # other images under the same name
            record["dir"] = data.dir
        record |= results
        records.append(record)
        if jax.process_index() == 0:
            _report(record, breakdown, workdir)
    if jax.process_index() == 0:
        print(f"written to {workdir / workdirs.RESULTS}", flush=True)
    return records


def _describe(data: DataSpec, name: str, size: int, eval_classes: str, data_dir: str | None) -> DataSpec:
    """The run's own data at another size, or another data set.

    TensorFlow Datasets keeps its data sets side by side, so the run's `data.dir` serves for all of them.
    """
    own = name == data.name
    side_by_side = sources.is_tfds(data.name) and sources.is_tfds(name)
    inherited = data.dir if own or side_by_side else ""
    place = inherited if data_dir is None else data_dir
    learnt = statistics.of_spec(data)  # the network has learnt from images that these have normalised
    other = DataSpec(
        name=name,
        mean=learnt.mean,
        std=learnt.std,
        eval_crop=data.eval_crop,
        interpolation=data.interpolation,
        background=data.background,
    )
    described = data if own else other
    return dataclasses.replace(described, dir=place, image_size=size, pad_crop=0, eval_classes=eval_classes)


def _score(
    model: nn.Module,
    state: steps.TrainState,
    split: splits.DataSplit,
    spec: TrainSpec,
    mesh: Mesh,
    *,
    flip: bool,
    detailed: bool,
) -> tuple[dict[str, Any], confusion.Breakdown | None]:
    """Evaluates one data set at one size, and breaks the accuracy down if asked."""
    eval_step = steps.make_eval_step(
        model, statistics=split.statistics, mesh=mesh, classes=split.classes, flip=flip, per_example=detailed
    )
    results, predictions = scoring.evaluate_state(eval_step, state, split, spec, mesh)
    if not detailed:
        return results, None
    numbers = split.classes or range(split.num_classes)
    breakdown = confusion.break_down(predictions, tuple(split.class_names[number] for number in numbers))
    details = {"calibration_error": breakdown.calibration_error, "class_accuracy": breakdown.class_accuracy}
    return results | details, breakdown


def _report(record: dict[str, Any], breakdown: confusion.Breakdown | None, workdir: epath.Path) -> None:
    """Prints a result, and writes it to the workdir."""
    own = " (own classes)" if record["eval_classes"] == "own" else ""
    flip = ", with mirror images" if record["flip"] else ""
    where = f"{record['data']}{own} at {record['image_size']} px{flip}"
    text = f"{record['model']} at step {record['step']}, {where}: {scoring.summary(record)}"
    if breakdown is not None:
        whose = " of the moving average" if "average_accuracy" in record else ""
        text += f", calibration error{whose} {breakdown.calibration_error:.2%}"
    try:
        print(text, flush=True)  # first: a full disk must not cost the result of hours
    finally:  # nor must a reader that has gone
        workdirs.add_results(workdir, _with_earlier_details(record, workdir))
    if breakdown is not None:
        parts = (record["data"].replace("/", "-"), f"{record['image_size']}px", f"step{record['step']}")
        place = re.sub(r"[^\w.-]+", "-", record.get("dir", "")).strip("-")[-LONGEST_PLACE:]
        marks = ("own",) * bool(own) + ("flip",) * bool(flip) + (place,) * bool(place)
        written = breakdown.write(workdir, "_".join((*parts, *marks)))
        print("\n".join(f"  {file}" for file in written), flush=True)


def _with_earlier_details(record: dict[str, Any], workdir: epath.Path) -> dict[str, Any]:
    """Keeps the details of an earlier evaluation that this one, without details, is about to replace.

    Both records are of the same weights if they differ only in the losses, whose last digits vary, and in the place of
    the workdir.
    """
    same = {name: value for name, value in record.items() if name != "checkpoint" and not name.endswith("loss")}
    for earlier in workdirs.read_results(workdir):
        if same.items() <= earlier.items():
            return record | {name: earlier[name] for name in DETAILS if name in earlier and name not in record}
    return record
