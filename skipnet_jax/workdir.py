"""The folder of a run: all that it leaves behind, and all that is needed to go on with it.

    config.json        every hyperparameter; evaluation needs no config file
    data.json          the classes, and how many training images there were
    environment.json   one entry per start: git revision, library versions, devices, command
    checkpoints/       newest and best
    metrics.jsonl      one line per record, for programs; an interrupted run's equals an uninterrupted one's but for
                       timings
    tensorboard/       the same for TensorBoard
    parameters.txt     name, shape and size of every parameter
    curves.png         loss and accuracy over the epochs
    results.json       results of `--mode=evaluate`, one entry per checkpoint, data set and image size

Paths go through epath, so a workdir may lie in a bucket (gs://...).
"""

import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from skipnet_jax import config
from skipnet_jax.specs import TrainSpec

CONFIG = "config.json"
DATA = "data.json"
ENVIRONMENT = "environment.json"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
PARAMETERS = "parameters.txt"
CURVES = "curves.png"
RESULTS = "results.json"

LIBRARIES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "clu",
    "numpy",
    "tensorflow",
    "tensorflow-cpu",
    "tensorflow-datasets",
    "scikit-learn",
)

# They say how a run is watched and stored, not what it computes, so they may change when it goes on.
CHANGEABLE = ("eval_batch_size", "log_every_steps", "checkpoint_every_epochs", "data.dir")


def locate(path: epath.PathLike) -> epath.Path:
    """The absolute path of a workdir that may be given relative to the current directory, or to ~."""
    located = epath.Path(path).expanduser()
    return located if "://" in str(path) else epath.Path(os.path.abspath(located))


def open_for_training(path: epath.PathLike, spec: TrainSpec) -> epath.Path:
    """Opens the workdir of a run, and creates it where there is none.

    Until the first checkpoint is there nothing is lost by another config, so a start that failed does not
    occupy the folder.

    Args:
      path: local, or in a bucket.
      spec: of the run. A workdir that already holds a run has to hold this one.

    Returns:
      The path.

    Raises:
      ValueError: it cannot be written, or holds another config's run.
    """
    workdir = locate(path)
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir: got {workdir}, which is a file, expected a folder or a new path.")
    wanted = config.to_dict(spec)
    if (workdir / CHECKPOINTS).exists() and any((workdir / CHECKPOINTS).iterdir()):
        _require_same_run(workdir, config.to_dict(read_spec(workdir)), wanted)
    if jax.process_index() == 0:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(workdir / CONFIG, wanted)
        except OSError as error:
            raise ValueError(
                f"--workdir: got {workdir}, which cannot be written ({error.strerror or error}), expected a folder "
                f"that can. Choose another --workdir, or mend its permissions or its disk."
            ) from error
    return workdir


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
    content = read_json(file)
    try:
        return config.from_dict(content)
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
        before = read_json(workdir / DATA)
        for name, value in now.items():
            if before[name] != value:
                raise ValueError(
                    f"--workdir: {workdir} holds a run on other data: got {name} {_shortened(value)}, expected "
                    f"{_shortened(before[name])}. Give the data of that run (--config.data.dir), or another --workdir."
                )
    elif jax.process_index() == 0:
        write_json(workdir / DATA, now)


def read_class_names(workdir: epath.Path) -> tuple[str, ...] | None:
    """The classes that a run has learnt, in the order of the labels; None for converted weights, which name none."""
    file = workdir / DATA
    return tuple(read_json(file)["class_names"]) if file.exists() else None


def record_environment(workdir: epath.Path) -> None:
    """Appends to the workdir who made it: code, libraries, devices and command of this start."""
    file = workdir / ENVIRONMENT
    starts = read_json(file) if file.exists() else []
    starts.append(
        {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            "git": _git_revision(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "libraries": _versions(),
            "devices": [jax.device_count(), jax.devices()[0].device_kind],
            "hosts": jax.process_count(),
        }
    )
    write_json(file, starts)


def add_results(workdir: epath.Path, record: Mapping[str, Any]) -> None:
    """Adds a result to results.json, in the place of an earlier one of the same evaluation.

    Args:
      workdir: of the run.
      record: of `evaluate.evaluate_workdir`.
    """
    same = ("data", "image_size", "eval_classes", "split", "step")
    file = workdir / RESULTS
    records = read_json(file) if file.exists() else []
    kept = [other for other in records if any(other.get(name) != record[name] for name in same)]
    write_json(file, [*kept, dict(record)])


class MetricsLog:
    """Writes scalars to metrics.jsonl and to TensorBoard files."""

    def __init__(self, workdir: epath.Path, *, step: int) -> None:
        """Opens the logs of a run that goes on from `step`, and drops the lines that will come again.

        Args:
          workdir: of the run.
          step: that training goes on from.
        """
        from clu import metric_writers  # imports TensorFlow

        self._file = workdir / METRICS
        kept = [line for line in read_metrics(workdir) if line["step"] <= step]
        _replace(self._file, "".join(json.dumps(line) + "\n" for line in kept))
        self._tensorboard = metric_writers.SummaryWriter(str(workdir / TENSORBOARD))

    def write(self, step: int, scalars: Mapping[str, float | int]) -> None:
        """Adds one line.

        Args:
          step: training steps behind the numbers.
          scalars: by name; train/ and test/ tell the data. JSON has no NaN: what is not finite becomes null.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        with self._file.open("a") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")
        self._tensorboard.write_scalars(step, scalars)

    def close(self) -> None:
        """Writes what is still buffered."""
        self._tensorboard.flush()


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl, in order; none where there is no file. A torn last line (kill -9) is left out."""
    file = epath.Path(path) / METRICS
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    return [_parse(line, f"{file}, line {i}") for i, line in enumerate(lines, 1) if line.endswith(b"\n")]


def read_json(file: epath.Path) -> Any:
    """Reads a file that `write_json` wrote.

    Raises:
      ValueError: it holds something else by now.
    """
    return _parse(file.read_bytes(), str(file))


def write_json(file: epath.Path, content: Any) -> None:
    """Writes JSON for people to read; an interrupted write leaves the old file."""
    _replace(file, json.dumps(content, indent=2) + "\n")


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{where}: got no valid JSON ({error}), expected what training wrote. Mend it, or choose another --workdir."
        ) from error


def _replace(file: epath.Path, text: str) -> None:
    new = file.parent / f".{file.name}.new"
    new.write_text(text)
    new.replace(file)


def _require_same_run(workdir: epath.Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    old, new = _flatten(stored), _flatten(wanted)
    lines = [
        f"  {name}: got {new.get(name)!r}, expected {old.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in CHANGEABLE
    ]
    if lines:
        raise ValueError(
            "\n".join([f"--workdir: {workdir} holds a run with another config.", *lines])
            + "\n  Choose another --workdir for a new run, or give the old values to go on with this one."
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


def _git_revision() -> str | None:
    """The commit of this code, with "+changes" where files differ from it; None outside of a clone."""
    root = pathlib.Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():  # an installed package may lie within someone else's repository
        return None
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changes else "")


def _versions() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
