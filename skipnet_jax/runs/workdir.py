"""The folder of a run. It holds everything that is needed to resume, evaluate and explain the run.

    config.json        every hyperparameter, so that evaluation needs no config file
    data.json          the class names and the number of training images
    events.jsonl       every start (git revision, library versions, devices, command) and every stop with its reason
    checkpoints/       the two newest and the best
    lease/             who is training here, if anybody is
    damaged/           checkpoints that could not be read; nothing reads them again
    metrics.jsonl      one line per record, for programs; interruptions leave no trace in it except in the timings
    tensorboard/       the same numbers for TensorBoard
    wandb.json         the run's project and id at Weights & Biases; only with `wandb_project`
    wandb/             files of Weights & Biases itself
    parameters.txt     name, shape and size of every parameter
    curves.png         loss and accuracy over the epochs
    results.json       results of evaluations, one entry per checkpoint, data set and image size
    evaluation/        tables and pictures of detailed evaluations

A folder of weights that were converted from elsewhere has `checkpoints/` and these files:

    model.json         the network, its number of classes, where its weights come from, and how images are prepared
    data.json          the class names, if they are known

Both kinds may lie in a bucket (gs://...).
"""

import os
import reprlib
from collections.abc import Mapping, Sequence, Set
from typing import Any

import flax
import jax
from etils import epath

from skipnet_jax import config, files
from skipnet_jax.errors import UserError
from skipnet_jax.models import model_info, zoo
from skipnet_jax.specs import DataSpec, MixingSpec, ModelSpec, OptimSpec, TrainSpec

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
MODEL = "model.json"

_PREPARATION = {"image_size": int, "mean": list[float], "std": list[float], "crop": float, "interpolation": str}
_STEP = {"step": int}
_OF_PATTERNS = "[\\"  # of Python's glob; its * and ? match themselves, too
MEND = "Restore the file, or choose another `workdir`."  # for files that somebody has changed

# These fields say how a run is watched and stored, not what it computes, so they may change when it resumes.
CHANGEABLE = (
    "eval_batch_size",
    "log_every_steps",
    "checkpoint_every_epochs",
    "checkpoint_every_minutes",
    "data.dir",
    "wandb_project",
)


def locate(path: epath.PathLike) -> epath.Path:
    """Makes a path absolute; it may be relative to the current directory or to ~."""
    located = epath.Path(path).expanduser()
    return epath.Path(os.path.abspath(located)) if files.is_local(path) else located


def require_plain(path: epath.PathLike) -> None:
    """Refuses a workdir whose path Orbax would misread as a pattern.

    Orbax searches its own folder with `glob` for the arrays that it has just written. In such a folder it finds none,
    and leaves a checkpoint without arrays.

    Raises:
      UserError: the path, with the folders above it, has one of the characters.
    """
    workdir = str(locate(path))
    if found := [character for character in _OF_PATTERNS if character in workdir]:
        expected = f"a path without {' '.join(_OF_PATTERNS)}, from which Orbax could not read its checkpoints"
        raise UserError("workdir", f"{workdir}, with {' '.join(found)}", expected, "Choose another `workdir`.")


def open_for_training(path: epath.PathLike, spec: TrainSpec, *, allow_change: Sequence[str] = ()) -> epath.Path:
    """Opens a run's workdir, or creates a new one, and checks that `spec` may continue the run in it.

    A run without a checkpoint takes any config: nothing would be lost, and a failed start must not occupy a folder.
    Other programs call files config.json too, and theirs stay as they are.
    With a checkpoint the folder keeps its config until `remember` replaces it, so a start with a wrong config does no
    harm.

    Args:
      path: local or gs://...
      spec: the config of this start.
      allow_change: fields (as in optim.lr) that may differ from the stored config, besides `CHANGEABLE`.

    Raises:
      UserError: the folder cannot be written, it holds another run or another program's config.json, or
        `allow_change` names an unknown field.
    """
    for name in allow_change:
        config.require_field("allow_change", name)
    workdir = locate(path)
    if workdir.exists() and not workdir.is_dir():
        raise UserError("workdir", f"{workdir}, which is a file", "a folder or a new path")
    if jax.process_index() == 0 and workdir.exists():
        files.restore_interrupted(workdir)
    wanted = config.to_dict(spec)
    started = started_spec(workdir)
    stored = config.to_dict(started) if started else wanted
    if started:
        _require_same_run(workdir, stored, wanted, {*CHANGEABLE, *allow_change})
    elif (workdir / CONFIG).exists():
        _require_own_config(workdir)
    if jax.process_index() == 0:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            files.write_json(workdir / CONFIG, stored)
        except OSError as error:
            raise files.unwritable("workdir", workdir, error) from error
    return workdir


def started_spec(workdir: epath.Path) -> TrainSpec | None:
    """The config of the run in this folder; None where there is no checkpoint.

    Raises:
      UserError: the checkpoint holds converted weights.
    """
    if not (workdir / CHECKPOINTS).exists() or not any((workdir / CHECKPOINTS).iterdir()):
        return None
    if (workdir / MODEL).exists():
        got = f"{workdir}, which holds converted weights"
        raise UserError("workdir", got, "a run or a new path", "Choose another; `init_from` takes the weights.")
    return read_spec(workdir)


def remember(workdir: epath.Path, spec: TrainSpec) -> None:
    """Stores the config of this start, once it is known to fit the checkpoint."""
    if jax.process_index() == 0:
        files.write_json(workdir / CONFIG, config.to_dict(spec))


def read_spec(path: epath.PathLike) -> TrainSpec:
    """Reads the config of a run, or makes one for converted weights.

    Converted weights do not name their data, so the config is the published one: CIFAR for networks of 32 px, else
    ImageNet, with what model.json says about the images. It serves evaluation only.

    Raises:
      UserError: the folder is no workdir, or its file is damaged.
    """
    workdir = locate(path)
    if (workdir / MODEL).exists():
        return _spec_of_converted(workdir / MODEL)
    file = workdir / CONFIG
    if not file.exists():
        raise UserError("workdir", f"{path}, which has no {CONFIG}", "a run's workdir", "Give the `workdir` of a run.")
    content = files.read_json(file, mend=MEND)
    try:
        spec = config.from_dict(content, may_be_older=True)
        zoo.find(spec.model.name)  # raises if no network has this name
        return spec
    except UserError as error:
        raise UserError(f"{file}: {error.field}", error.got, error.expected, MEND) from error


def _require_own_config(workdir: epath.Path) -> None:
    """Refuses a folder whose config.json is another program's, as in a model of the Hugging Face hub.

    Any older or newer version of this program writes the batch size and the network.
    """
    mend = "Choose another `workdir`, or remove the file."
    fields = files.read_record(workdir / CONFIG, {"batch_size": int, "model": dict}, mend=mend)
    files.require_fields(fields["model"], {"name": str}, f"{workdir / CONFIG}, model", mend=mend)


def require_same_data(
    workdir: epath.Path, *, class_names: Sequence[str], training_images: int, crop: str = "", started: bool
) -> None:
    """Records the data of a new run, or checks that a resumed run has the same data.

    With other data the examples would come in another order than in the run so far.

    Args:
      class_names: in the order of the labels.
      crop: which part of an image evaluation uses, if the name of the data set does not tell: see `read_crop`.
      started: whether the run has a checkpoint.

    Raises:
      UserError: the data are different.
    """
    now = {"class_names": list(class_names), "training_images": training_images}
    if started and (workdir / DATA).exists():
        before = _read_data(workdir / DATA)
        for name, value in now.items():
            if before[name] != value:
                raise UserError(
                    "data",
                    f"{name} {reprlib.repr(value)}",
                    f"{reprlib.repr(before[name])} as in the run in {workdir}",
                    "Give the data of that run (`data.dir`), or choose another `workdir`.",
                )
    elif jax.process_index() == 0:
        files.write_json(workdir / DATA, now | ({"crop": crop} if crop else {}))


def read_class_names(workdir: epath.Path) -> tuple[str, ...] | None:
    """Reads the class names in the order of the labels; None for converted weights without names."""
    file = workdir / DATA
    return tuple(_read_data(file)["class_names"]) if file.exists() else None


def read_crop(workdir: epath.Path) -> str | None:
    """Reads which part of an image evaluation uses (`data.splits`), if the run has recorded it."""
    file = workdir / DATA
    content = files.read_record(file, {}, mend=MEND) if file.exists() else {}
    if "crop" not in content:
        return None
    return str(files.require_fields(content, {"crop": str}, str(file), mend=MEND)["crop"])


def read_results(workdir: epath.Path) -> list[dict[str, Any]]:
    """Reads the records of results.json; none if there is no file."""
    return files.read_records(workdir / RESULTS, {}, mend=MEND)


def add_results(workdir: epath.Path, record: Mapping[str, Any]) -> None:
    """Adds the record of an evaluation to results.json; it replaces an earlier record of the same evaluation.

    Several evaluations may end at once.
    """
    same = ("data", "dir", "image_size", "eval_classes", "split", "flip", "step")
    with files.alone(workdir):
        earlier = read_results(workdir)
        kept = [other for other in earlier if any(other.get(name) != record.get(name) for name in same)]
        files.write_json(workdir / RESULTS, [*kept, dict(record)])


def read_metrics(path: epath.PathLike, fields: files.Fields = _STEP, *, mend: str = MEND) -> list[dict[str, Any]]:
    """Reads all lines of metrics.jsonl; none if there is no file. All values are numbers, or None.

    Args:
      fields, mend: as for `files.read_lines`.
    """
    file = epath.Path(path) / METRICS
    lines = files.read_lines(file, fields, mend=mend)
    for number, line in enumerate(lines, 1):
        numbers = {name: float for name, value in line.items() if value is not None}
        files.require_fields(line, numbers, f"{file}, line {number}", mend=mend)
    return lines


def _spec_of_converted(file: epath.Path) -> TrainSpec:
    mend = "Convert the weights again."
    record = files.read_record(file, {"name": str, "num_classes": int}, mend=mend)
    name, num_classes = record["name"], record["num_classes"]
    if not 0 < num_classes < 2**31:
        raise UserError(str(file), f"num_classes={num_classes}", "at least 1", mend)
    cifar = "cifar10" if num_classes == 10 else "cifar100"
    known = {field: kind for field, kind in _PREPARATION.items() if field in record}
    files.require_fields(record, known, str(file), mend=mend)
    try:
        model, published_size = ModelSpec(name, num_classes), model_info(name).image_size
        data = DataSpec(
            name=cifar if published_size == 32 else "imagenet2012",
            image_size=record.get("image_size", published_size),
            mean=tuple(map(float, record.get("mean", ()))),
            std=tuple(map(float, record.get("std", ()))),
            eval_crop=float(record.get("crop", 0)),
            interpolation=record.get("interpolation", "bilinear"),
        )
    except UserError as error:
        raise UserError(f"{file}: {error.field}", error.got, error.expected, mend) from error
    return TrainSpec(model, data, MixingSpec(), OptimSpec(), batch_size=1, epochs=1)


def _read_data(file: epath.Path) -> dict[str, Any]:
    return files.read_record(file, {"class_names": list[str], "training_images": int}, mend=MEND)


def _require_same_run(
    workdir: epath.Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], may_change: Set[str]
) -> None:
    old, new = (flax.traverse_util.flatten_dict(tree, sep=".") for tree in (stored, wanted))
    differ = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    if "batch_size" in differ:
        parts = 2 * old.get("accumulate_steps", 1)
        raise UserError(
            "batch_size",
            f"{new['batch_size']}",
            f"{old['batch_size']} as in the run in {workdir}",
            "The position in the data, the learning rate and the logs follow from the number of steps, so a run keeps "
            f"its batch size. Give `batch_size`={old['batch_size']}; if memory is short, with `accumulate_steps`="
            f"{parts} `allow_change`=accumulate_steps. Or start from the weights of this run in another `workdir`: "
            f"`init_from`={workdir}",
        )
    differ = [name for name in differ if name not in may_change]
    if differ:
        raise UserError(
            "config",
            ", ".join(f"{name}={new.get(name)!r}" for name in differ),
            ", ".join(f"{name}={old.get(name)!r}" for name in differ) + f" as in the run in {workdir}",
            "Choose another `workdir` for a new run, give the old values to resume this one, or resume it with the new "
            f"values: `allow_change`={','.join(differ)}",
        )
