"""The facts about a run that a report shows: results, times, config, starts and stops."""

import dataclasses
import datetime
import functools
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax
from etils import epath

from skipnet_jax import config
from skipnet_jax.analysis import result_tables
from skipnet_jax.analysis.run_groups import TEST, EpochTest, Run, title_of
from skipnet_jax.evaluation.scoring import HELD_OUT
from skipnet_jax.models import complexity, model_info
from skipnet_jax.models.zoo import find
from skipnet_jax.runs import events

ENVIRONMENT = ("git", "python", "platform", "devices", "device_kind", "hosts")  # fields of a start, in this order


@dataclasses.dataclass(frozen=True)
class Facts:
    """A run for the report.

    Args:
      size: at the run's image size.
      events: starts and stops, oldest first.
    """

    run: Run
    size: complexity.Complexity
    events: Sequence[Mapping[str, Any]]

    @property
    def name(self) -> str:
        """Name of the workdir."""
        return self.run.path.name

    @property
    def network(self) -> str:
        """Published name."""
        return model_info(self.run.spec.model.name).published_name

    @property
    def has_gates(self) -> bool:
        """Whether the junctions of the network see several states."""
        return find(self.run.spec.model.name)[1].published_prefix != ""

    @property
    def last(self) -> EpochTest | None:
        """The last test during training."""
        return self.run.tests[-1] if self.run.tests else None

    @property
    def best(self) -> EpochTest | None:
        """The test with the highest accuracy during training."""
        return max(self.run.tests, key=lambda test: test.accuracy, default=None)

    @property
    def epochs(self) -> float | int:
        """Number of epochs done."""
        return self.run.metrics[-1]["epoch"] if self.run.metrics else 0.0

    @property
    def images_per_second(self) -> float | None:
        """The median over the log."""
        rates = [line["images_per_second"] for line in self.run.metrics if line.get("images_per_second")]
        return statistics.median(rates) if rates else None

    @functools.cached_property
    def config(self) -> dict[str, str]:
        """Every hyperparameter, by dotted name."""
        flat = flax.traverse_util.flatten_dict(config.to_dict(self.run.spec), sep=".")
        return {name: repr(value) if value == "" else str(value) for name, value in flat.items()}

    @property
    def config_groups(self) -> dict[str, list[tuple[str, str]]]:
        """The hyperparameters by their part of the config."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for name, value in self.config.items():
            part, _, field = name.rpartition(".")
            groups.setdefault(part or "training", []).append((field, value))
        return groups

    @property
    def seconds(self) -> float | None:
        """Total time from each start to its stop; None if not recorded."""
        return _seconds(self.events)[0]

    @property
    def interrupted(self) -> int:
        """Number of starts without a stop, whose time is not in `seconds`."""
        return _seconds(self.events)[1]

    @property
    def command(self) -> str:
        """The command of the last start, ready to be copied."""
        program, *flags = next((start["command"] for start in reversed(self.starts) if start.get("command")), [""])
        is_main = program.endswith("skipnet_jax/main.py")  # `python -m` records the path of the module
        return shlex.join(
            [*(("python", "-m", "skipnet_jax.main") if is_main else (program,)), *flags] if program else []
        )

    @property
    def starts(self) -> list[Mapping[str, Any]]:
        """The events that are starts."""
        return [event for event in self.events if event["event"] == "start"]

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the last start, including the versions of libraries."""
        if not self.starts:
            return {}
        last = self.starts[-1]
        fields = {name.replace("_", " "): str(last[name]) for name in ENVIRONMENT if last.get(name) is not None}
        return fields | {name: str(version) for name, version in last.get("libraries", {}).items()}

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The records of results.json, with titles; their scores are the averaged parameters' if the run has them."""
        return [_evaluation(record) for record in self.run.results]


def read(run: Run) -> Facts:
    """Collects the facts of a run; traces its network, which takes a second or two.

    Raises:
      UserError: events.jsonl is damaged.
    """
    model, data = run.spec.model, run.spec.data
    size = result_tables.count(model.name, data.image_size, model.num_classes, model.gate_reduction)
    return Facts(run, size, events.read(run.path))


def differing(facts: Sequence[Facts]) -> list[str]:
    """Names of the hyperparameters that differ between the runs."""
    return [name for name in facts[0].config if len({each.config.get(name) for each in facts}) > 1]


def pictures(workdir: epath.Path, folder: str) -> list[epath.Path]:
    """The PNGs in a folder of a workdir, by name."""
    return sorted((workdir / folder).glob("*.png")) if (workdir / folder).exists() else []


def _evaluation(record: Mapping[str, Any]) -> dict[str, Any]:
    title = title_of(record["data"], record.get("split", TEST))
    held_out = ", held out of training" if record.get(HELD_OUT) else ""
    own = ", among its own classes" if record["eval_classes"] == "own" else ""
    flip = ", with mirror images" if record.get("flip") else ""
    place = f" in {record['dir']}" if "dir" in record else ""
    names = ("accuracy", "top5_accuracy", "loss")
    scores = {name: record.get(f"average_{name}", record[name]) for name in names}
    return {"calibration_error": None, **record, **scores, "title": f"{title}{held_out}{place}{own}{flip}"}


def _seconds(log: Iterable[Mapping[str, Any]]) -> tuple[float | None, int]:
    """Seconds between starts and their stops, and the number of starts without a stop."""
    total, started, without_stop, known = 0.0, None, 0, False
    for event in log:
        time = datetime.datetime.fromisoformat(event["time"])
        if event["event"] == "start":
            without_stop += started is not None
            started = time
        elif event["event"] == "stop" and started is not None:
            total, started, known = total + (time - started).total_seconds(), None, True
    return (total if known else None), without_stop + (started is not None)
