"""The folder of a run: all that it leaves behind, and all that is needed to go on with it.

    config.json        every hyperparameter; evaluation needs no config file
    data.json          the classes, and how many training images there were
    events.jsonl       every start (git revision, library versions, devices, command) and every stop, and why
    checkpoints/       the two newest, and the best
    damaged/           checkpoints that could not be read; never read again
    metrics.jsonl      one line per record, for programs; an interrupted run's equals an uninterrupted one's but for
                       timings
    tensorboard/       the same for TensorBoard
    wandb.json         which run at Weights & Biases it is, and how far that has come; only with `wandb_project`
    wandb/             files of Weights & Biases itself
    parameters.txt     name, shape and size of every parameter
    curves.png         loss and accuracy over the epochs
    results.json       results of `--mode=evaluate`, one entry per checkpoint, data set and image size
    evaluation/        tables and pictures of `--mode=evaluate --details`

Paths go through epath, so a workdir may lie in a bucket (gs://...).
"""

import os
from collections.abc import Mapping, Sequence, Set
from typing import Any

import jax
from etils import epath

from skipnet_jax import config, files
from skipnet_jax.specs import TrainSpec

CONFIG = "config.json"
DATA = "data.json"
EVENTS = "events.jsonl"
CHECKPOINTS = "checkpoints"
DAMAGED = "damaged"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
PARAMETERS = "parameters.txt"
CURVES = "curves.png"
RESULTS = "results.json"
WANDB = "wandb.json"

MEND = "Restore the file, or choose another `workdir`."  # for files that somebody has changed

# They say how a run is watched and stored, not what it computes, so they may change when it goes on.
CHANGEABLE = (
    "eval_batch_size",
    "log_every_steps",
    "checkpoint_every_epochs",
    "checkpoint_every_minutes",
    "data.dir",
    "wandb_project",
)


def locate(path: epath.PathLike) -> epath.Path:
    """The absolute path of a workdir that may be given relative to the current directory, or to ~."""
    located = epath.Path(path).expanduser()
    return located if "://" in str(path) else epath.Path(os.path.abspath(located))


def open_for_training(path: epath.PathLike, spec: TrainSpec, *, allow_change: Sequence[str] = ()) -> epath.Path:
    """Opens the workdir of a run, and creates it where there is none.

    Until the first checkpoint is there nothing is lost by another config, so a start that failed does not
    occupy the folder. After that the folder keeps its config until `remember` is told another one, so that a start
    with a wrong one does no harm.

    Args:
      path: local, or in a bucket.
      spec: of the run. A workdir that already holds a run has to hold this one.
      allow_change: fields, as in optim.lr, that may differ all the same.

    Returns:
      The path.

    Raises:
      ValueError: it cannot be written, or holds another config's run, or a field to change does not exist.
    """
    for name in allow_change:
        config.require_field("--allow_change", name)
    workdir = locate(path)
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir: got {workdir}, which is a file, expected a folder or a new path.")
    wanted = config.to_dict(spec)
    stored = wanted
    if (workdir / CHECKPOINTS).exists() and any((workdir / CHECKPOINTS).iterdir()):
        stored = config.to_dict(read_spec(workdir))
        _require_same_run(workdir, stored, wanted, {*CHANGEABLE, *allow_change})
    if jax.process_index() == 0:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            files.write_json(workdir / CONFIG, stored)
        except OSError as error:
            raise ValueError(
                f"--workdir: got {workdir}, which cannot be written ({error.strerror or error}), expected a folder "
                f"that can. Choose another --workdir, or mend its permissions or its disk."
            ) from error
    return workdir


def remember(workdir: epath.Path, spec: TrainSpec) -> None:
    """Records the config that a run goes on with, once it is known to fit what is saved.

    Args:
      workdir: of the run.
      spec: that `open_for_training` was given.
    """
    if jax.process_index() == 0:
        files.write_json(workdir / CONFIG, config.to_dict(spec))


def read_spec(path: epath.PathLike) -> TrainSpec:
    """Reads the config that a workdir remembers.

    Raises:
      ValueError: there is no run, or its config cannot be read.
    """
    file = locate(path) / CONFIG
    if not file.exists():
        raise ValueError(
            f"--workdir: got {path}, which has no {CONFIG}, expected a run's workdir. Give the --workdir of a run."
        )
    content = files.read_json(file, mend=MEND)
    try:
        return config.from_dict(content, may_be_older=True)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def require_same_data(workdir: epath.Path, *, class_names: Sequence[str], training_images: int, started: bool) -> None:
    """Records what data a run learns from, or checks, when it goes on, that they are still the same.

    Args:
      workdir: of the run.
      class_names: in the order of the labels.
      training_images: how many.
      started: the run goes on.

    Raises:
      ValueError: the data are other ones: the order of examples would no longer be that of the run.
    """
    now = {"class_names": list(class_names), "training_images": training_images}
    if started and (workdir / DATA).exists():
        before = _read_data(workdir / DATA)
        for name, value in now.items():
            if before[name] != value:
                raise ValueError(
                    f"--workdir: {workdir} holds a run on other data: got {name} {_shortened(value)}, expected "
                    f"{_shortened(before[name])}. Give the data of that run (--config.data.dir), or another --workdir."
                )
    elif jax.process_index() == 0:
        files.write_json(workdir / DATA, now)


def read_class_names(workdir: epath.Path) -> tuple[str, ...] | None:
    """The classes that a run has learnt, in the order of the labels; None for converted weights, which name none."""
    file = workdir / DATA
    return tuple(_read_data(file)["class_names"]) if file.exists() else None


def add_results(workdir: epath.Path, record: Mapping[str, Any]) -> None:
    """Adds a result to results.json, in the place of an earlier one of the same evaluation.

    Args:
      workdir: of the run.
      record: of `evaluate.evaluate_workdir`.
    """
    same = ("data", "image_size", "eval_classes", "split", "flip", "step")
    file = workdir / RESULTS
    kept = [other for other in files.read_records(file, {}) if any(other.get(name) != record[name] for name in same)]
    files.write_json(file, [*kept, dict(record)])


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl, in order; none where there is no file."""
    return files.read_lines(epath.Path(path) / METRICS, {"step": int}, mend=MEND)


def _read_data(file: epath.Path) -> dict[str, Any]:
    return files.read_record(file, {"class_names": list[str], "training_images": int}, mend=MEND)


def _require_same_run(
    workdir: epath.Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], may_change: Set[str]
) -> None:
    old, new = _flatten(stored), _flatten(wanted)
    differ = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    if "batch_size" in differ:
        raise ValueError(
            f"--workdir: {workdir} holds a run with another batch_size: got {new['batch_size']}, expected "
            f"{old['batch_size']}. A run counts in steps, and the position in the data, the learning rate and the logs "
            f"follow from their number, so it cannot change on the way, not even with --allow_change. Give "
            f"--config.batch_size={old['batch_size']}; where memory lacks, with --config.accumulate_steps=2 "
            f"--allow_change=accumulate_steps. Or go on from this run's weights in another --workdir: "
            f"--config.init_from={workdir}"
        )
    differ = [name for name in differ if name not in may_change]
    if differ:
        lines = [f"  {name}: got {new.get(name)!r}, expected {old.get(name)!r}" for name in differ]
        raise ValueError(
            "\n".join([f"--workdir: {workdir} holds a run with another config.", *lines])
            + "\n  Choose another --workdir for a new run, or give the old values to go on with this one, or go "
            f"on with the new ones: --allow_change={','.join(differ)}"
        )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _shortened(value: object) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:100]} ..."
