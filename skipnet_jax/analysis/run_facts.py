"""What a report says of a run, read from its workdir: results, times, config, starts and stops."""

import dataclasses
import datetime
import shlex
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from skipnet_jax import config, files
from skipnet_jax.analysis.runs import Run, require_fields
from skipnet_jax.models import model_info
from skipnet_jax.models.complexity import count
from skipnet_jax.models.zoo import find
from skipnet_jax.runs import events
from skipnet_jax.runs import workdir as workdirs

PLACES = ("git", "python", "platform", "devices", "device_kind", "hosts")  # of a start, in the order they are told


@dataclasses.dataclass(frozen=True)
class Measured:
    """A test during training.

    Args:
      accuracy: 0..1, of the moving average where the run has one.
    """

    accuracy: float | int
    epoch: float | int


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A line of results.json: what `--mode=evaluate` found, of the moving average where the run has one.

    Args:
      data: name of the data set, and how it was scored where that is not the usual way.
      image_size: in pixels.
      top1, top5, calibration_error: 0..1; the last is None without `--details`.
    """

    data: str
    image_size: int
    step: int
    count: int
    top1: float | int
    top5: float | int
    loss: float | int
    calibration_error: float | int | None


@dataclasses.dataclass(frozen=True)
class Facts:
    """A run in numbers.

    Args:
      name: of its folder.
      last, best: tests; None = there has been none.
      epochs: done.
      seconds: from starts to stops; None = not recorded.
      interrupted: starts without a stop, whose time is not in `seconds`.
      images_per_second: median over the log.
      flops: of one image, at the size the run uses.
      config: every hyperparameter, by dotted name.
      events: starts and stops, oldest first.
      evaluations: in the order they were made.
    """

    run: Run
    name: str
    network: str
    last: Measured | None
    best: Measured | None
    epochs: float | int
    seconds: float | None
    interrupted: int
    images_per_second: float | int | None
    params: int
    flops: int
    config: Mapping[str, str]
    events: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Evaluation]

    @property
    def command(self) -> str:
        """That started it last, ready to be copied."""
        program, *flags = next((start["command"] for start in reversed(self.starts) if start.get("command")), [""])
        is_main = program.endswith("skipnet_jax/main.py")  # of `python -m` the path of the module is recorded
        return shlex.join(
            [*(("python", "-m", "skipnet_jax.main") if is_main else (program,)), *flags] if program else []
        )

    @property
    def has_gates(self) -> bool:
        """Its network's junctions see several states."""
        return find(self.run.spec.model.name)[1].published_prefix != ""

    @property
    def config_groups(self) -> dict[str, list[tuple[str, str]]]:
        """The hyperparameters by their part of the config."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for name, value in self.config.items():
            part, _, field = name.rpartition(".")
            groups.setdefault(part or "training", []).append((field, value))
        return groups

    @property
    def starts(self) -> list[Mapping[str, Any]]:
        """The events that are starts."""
        return [event for event in self.events if event.get("event") == "start"]

    @property
    def environment(self) -> dict[str, str]:
        """Of the last start, by name; libraries with their versions."""
        if not self.starts:
            return {}
        last = self.starts[-1]
        places = {name.replace("_", " "): str(last[name]) for name in PLACES if last.get(name) is not None}
        return places | {name: str(version) for name, version in last.get("libraries", {}).items()}


def read(run: Run) -> Facts:
    """Puts the facts of a run together; traces its network, which takes a second or two.

    Raises:
      ValueError: one of its files is not what training writes.
    """
    model, data = run.spec.model, run.spec.data
    size = count(model.name, image_size=data.image_size, num_classes=model.num_classes)
    tests = list(_tests(run.metrics))
    rates = [line["images_per_second"] for line in run.metrics if line.get("images_per_second")]
    log = events.read(run.path)
    require_fields(run.path / workdirs.EVENTS, log, {"time": str, "event": str, "step": int})
    seconds, interrupted = _seconds(log)
    return Facts(
        run,
        name=run.path.name,
        network=model_info(model.name).published_name,
        last=tests[-1] if tests else None,
        best=max(tests, key=lambda test: test.accuracy, default=None),
        epochs=run.metrics[-1]["epoch"] if run.metrics else 0.0,
        seconds=seconds,
        interrupted=interrupted,
        images_per_second=statistics.median(rates) if rates else None,
        params=size.params,
        flops=size.flops,
        config=dict(_flatten(config.to_dict(run.spec))),
        events=log,
        evaluations=list(_evaluations(run.path / workdirs.RESULTS)),
    )


def differing(facts: Sequence[Facts]) -> list[str]:
    """Names of the hyperparameters that are not the same in all runs."""
    return [name for name in facts[0].config if len({each.config.get(name) for each in facts}) > 1]


def pictures(workdir: epath.Path, folder: str) -> list[epath.Path]:
    """PNGs in a folder of a workdir, in the order of their names."""
    return sorted((workdir / folder).glob("*.png")) if (workdir / folder).exists() else []


def _tests(metrics: Iterable[Mapping[str, Any]]) -> Iterator[Measured]:
    for line in metrics:
        accuracy = line.get("test/average_accuracy", line.get("test/accuracy"))
        if accuracy is not None:
            yield Measured(accuracy, line["epoch"])


def _evaluations(file: epath.Path) -> Iterator[Evaluation]:
    for record in files.read_json(file) if file.exists() else ():
        own = ", among its own classes" if record["eval_classes"] == "own" else ""
        flip = ", with mirror images" if record.get("flip") else ""
        averaged = "average_" if "average_accuracy" in record else ""
        try:
            top1, top5, loss = (record[f"{averaged}{name}"] for name in ("accuracy", "top5_accuracy", "loss"))
        except KeyError as error:
            raise ValueError(
                f"{file}: got a record without {error}, expected what --mode=evaluate writes. Remove the file and "
                f"evaluate again."
            ) from error
        where = (f"{record['data']}{own}{flip}", record["image_size"], record["step"], record["count"])
        yield Evaluation(*where, top1, top5, loss, record.get("calibration_error"))


def _seconds(log: Iterable[Mapping[str, Any]]) -> tuple[float | None, int]:
    """Time between starts and their stops, and how many starts have none."""
    total, open_since, without_stop, known = 0.0, None, 0, False
    for event in log:
        time = datetime.datetime.fromisoformat(event["time"])
        if event["event"] == "start":
            without_stop += open_since is not None
            open_since = time
        elif event["event"] == "stop" and open_since is not None:
            total, open_since, known = total + (time - open_since).total_seconds(), None, True
    return (total if known else None), without_stop + (open_since is not None)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, repr(value) if value == "" else str(value)
