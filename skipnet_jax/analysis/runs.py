"""What runs have reached: read from their workdirs, and grouped so that only seeds differ within a group."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from skipnet_jax import files
from skipnet_jax.models import list_models, model_info
from skipnet_jax.runs import workdir as workdirs
from skipnet_jax.specs import TrainSpec

# Of any other data set the name says all; of these it says only how they are read.
OWN_DATA = ("folder", "tfrecords")
IMAGENET_CLASSES, IMAGENET_TEST_IMAGES = 1000, 50_000
WORDNET_ID = re.compile(r"n\d{8}")

TITLES = {
    "digits": "Digits",
    "imagenet2012": "ImageNet",
    "imagenet_a": "ImageNet-A",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
}
CIFAR = ("cifar10", "cifar100")  # share a table, and a row of it
DIFFER_IN_CIFAR = ("data.name", "model.num_classes", "data.json: class_names", "data.json: training_images")


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """Which images a network was tested on, and among which classes it chose.

    Args:
      data: see `specs.DataSpec.name`; ImageNet that was read from shards or folders is imagenet2012 too.
      classes: names or numbers of the classes, where `data` does not say it all.
      eval_classes: see `specs.DataSpec`.
      flip: each image was scored together with its mirror image. No published figure is of that.
    """

    data: str
    classes: tuple[str, ...] = ()
    eval_classes: str = "all"
    flip: bool = False

    @property
    def title(self) -> str:
        """In words."""
        shown = ", ".join(self.classes[:5]) + (f", ... ({len(self.classes)})" if len(self.classes) > 5 else "")
        classes = f", classes {shown}" if self.classes else ""
        own = ", among its own classes" if self.eval_classes == "own" else ""
        return f"{TITLES.get(self.data, self.data)}{classes}{own}{', with mirror images' if self.flip else ''}"

    @property
    def table(self) -> str:
        """Title of the table that it belongs to."""
        return "CIFAR" if self in (EvalSet(data) for data in CIFAR) else self.title


@dataclasses.dataclass(frozen=True)
class Score:
    """How well a run does on a test set, at one image size.

    Args:
      accuracy: 0..1; of the moving average of the parameters where the run has one.
      step: of the checkpoint.
      count: number of test images; None = not recorded.
      source: the file in the workdir that says so.
    """

    accuracy: float
    step: int
    count: int | None
    source: str


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as its workdir tells it.

    Args:
      data: which classes it has learnt and from how many images; empty where the workdir does not say.
      metrics: lines of metrics.jsonl.
      scores: by test set and image size, in pixels.
    """

    path: epath.Path
    spec: TrainSpec
    data: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    scores: Mapping[tuple[EvalSet, int], Score]

    @property
    def last_test(self) -> Mapping[str, Any] | None:
        """The newest line of the metrics with a test."""
        return next((line for line in reversed(self.metrics) if "test/accuracy" in line), None)

    @property
    def finished(self) -> bool:
        """Its last epoch is tested."""
        return self.last_test is not None and self.last_test["epoch"] >= self.spec.epochs

    @property
    def learnt(self) -> EvalSet:
        """The test set of the data that it was trained on."""
        data = self.spec.data
        if data.name not in OWN_DATA:
            return EvalSet(data.name, tuple(map(str, data.classes)), data.eval_classes)
        names = tuple(self.data.get("class_names", ()))
        if len(names) == IMAGENET_CLASSES and all(map(WORDNET_ID.fullmatch, names)):
            return EvalSet("imagenet2012", (), data.eval_classes)
        return EvalSet(data.name, names, data.eval_classes)


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one config with different seeds.

    Args:
      label: published name of the network, and what tells the group from others of that network.
      runs: by seed.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def network(self) -> str:
        return self.runs[0].spec.model.name


def read(path: epath.PathLike) -> Run:
    """Reads a workdir.

    Raises:
      ValueError: there is no run, or one of its files is not what training and evaluation write.
    """
    workdir = workdirs.locate(path)
    spec = workdirs.read_spec(workdir)
    known = workdirs.read_class_names(workdir) is not None  # which looks at the form of the file too
    data = files.read_json(workdir / workdirs.DATA) if known else {}
    metrics = workdirs.read_metrics(workdir)
    require_fields(workdir / workdirs.METRICS, metrics, {"epoch": float | int})
    run = Run(workdir, spec, data, metrics, {})
    return dataclasses.replace(run, scores=_scores_in_training(run) | _scores_of_evaluation(run))


def group(runs: Iterable[Run]) -> list[Group]:
    """Puts the runs together that differ in nothing but their seed.

    Fields that a run may change when it goes on (`workdir.CHANGEABLE`) do not count as a difference.

    Returns:
      In the order of `list_models`. Where a network has several for one table, their labels say in what they differ.

    Raises:
      ValueError: two runs have the same config and the same seed.
    """
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(repr(sorted(identity(run).items())), []).append(run)
    alike: dict[tuple[str, str], list[list[Run]]] = {}  # network, table: its groups
    for same in members.values():
        _require_different_seeds(same)
        alike.setdefault((same[0].spec.model.name, same[0].learnt.table), []).append(same)
    groups = []
    for (network, table), own in alike.items():
        ignored = DIFFER_IN_CIFAR if table == "CIFAR" else ()
        for same, difference in zip(own, differences([identity(same[0]) for same in own], ignored), strict=True):
            label = model_info(network).published_name + (f" ({difference})" if difference else "")
            groups.append(Group(label, tuple(sorted(same, key=lambda run: run.spec.seed))))
    order = list_models()
    return sorted(groups, key=lambda group: order.index(group.network))


def identity(run: Run) -> dict[str, Any]:
    """All that runs of one group have in common, by dotted name."""
    config = _flatten(dataclasses.asdict(run.spec))
    kept = {name: value for name, value in config.items() if name != "seed" and name not in workdirs.CHANGEABLE}
    return kept | {f"data.json: {name}": value for name, value in run.data.items()}


def differences(identities: Sequence[Mapping[str, Any]], ignored: Sequence[str]) -> list[str]:
    """For each of several configs the values that not all of them have.

    Args:
      identities: of `identity`.
      ignored: names that do not count.
    """
    names = dict.fromkeys(name for identity in identities for name in identity if name not in ignored)
    differing = [name for name in names if any(other.get(name) != identities[0].get(name) for other in identities)]
    return [", ".join(f"{name}={_shown(identity.get(name))}" for name in differing) for identity in identities]


def require_fields(file: epath.Path, lines: Iterable[Mapping[str, Any]], fields: Mapping[str, Any]) -> None:
    """Raises a ValueError unless all lines of a file have some fields.

    Args:
      fields: name: type, or union of types.
    """
    for i, line in enumerate(lines, 1):
        for name, kind in fields.items():
            if not isinstance(line.get(name), kind):
                raise ValueError(
                    f"{file}, line {i}: got {name}={line.get(name)!r}, expected what training writes. Remove the line."
                )


def _scores_in_training(run: Run) -> dict[tuple[EvalSet, int], Score]:
    """The last test of training, on the run's own data: it takes every test image once, as `--mode=evaluate` does."""
    line = run.last_test
    if line is None:
        return {}
    accuracy = line.get("test/average_accuracy", line["test/accuracy"])
    return {(run.learnt, run.spec.data.image_size): Score(accuracy, line["step"], None, workdirs.METRICS)}


def _scores_of_evaluation(run: Run) -> dict[tuple[EvalSet, int], Score]:
    """Of each test set and size the newest checkpoint that was scored: the best one would be a choice by the result."""
    file = run.path / workdirs.RESULTS
    scores: dict[tuple[EvalSet, int], Score] = {}
    for record in files.read_json(file) if file.exists() else ():
        try:
            where = (_eval_set(run, record), record["image_size"])
            accuracy = record.get("average_accuracy", record["accuracy"])
            score = Score(accuracy, record["step"], record["count"], workdirs.RESULTS)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{file}: got a record that is not complete ({type(error).__name__}: {error}), expected what "
                f"--mode=evaluate writes. Remove the file and evaluate again."
            ) from error
        scores[where] = max(score, scores.get(where, score), key=lambda score: score.step)
    return scores


def _eval_set(run: Run, record: Mapping[str, Any]) -> EvalSet:
    """What a result is of: the run's own test images, unless it says otherwise."""
    asked = EvalSet(record["data"], (), record["eval_classes"], record.get("flip", False))
    if asked.data != run.spec.data.name:
        return asked
    own = dataclasses.replace(run.learnt, eval_classes=asked.eval_classes, flip=asked.flip)
    if own.data != asked.data and record["count"] != IMAGENET_TEST_IMAGES:  # other images, in the form of ImageNet's
        return asked
    return own


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= {f"{name}.{k}": v for k, v in _flatten(value).items()} if isinstance(value, Mapping) else {name: value}
    return flat


def _shown(value: Any) -> str:
    text = repr(value) if value == "" else str(value)
    return text if len(text) <= 60 else f"{text[:30]}...{text[-27:]}"


def _require_different_seeds(runs: Sequence[Run]) -> None:
    by_seed: dict[int, Run] = {}
    for run in runs:
        first = by_seed.setdefault(run.spec.seed, run)
        if first is not run:
            raise ValueError(
                f"got the same run twice: {first.path} and {run.path} have the same config and seed {run.spec.seed}, "
                f"expected different seeds. Leave one of them out."
            )
