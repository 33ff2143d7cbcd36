"""Reads runs from their workdirs, and groups those that differ in nothing but their seed."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax
from etils import epath

from skipnet_jax import files
from skipnet_jax.analysis.eval_sets import Condition, EvalSet
from skipnet_jax.data import tfds_names
from skipnet_jax.errors import UserError
from skipnet_jax.evaluation.scoring import HELD_OUT
from skipnet_jax.models import list_models, model_info
from skipnet_jax.runs import workdir as workdirs
from skipnet_jax.specs import TrainSpec

TEST = "test"
IMAGENET_CLASSES, IMAGENET_TEST_IMAGES = 1000, 50_000
WORDNET_ID = re.compile(r"n\d{8}")

CIFAR_DIFFERENCES = ("data.name", "model.num_classes", "data.json: class_names", "data.json: training_images")

METRICS_FIELDS = {"step": int, "epoch": float}
RESULTS_FIELDS = {"data": str, "image_size": int, "eval_classes": str, "step": int, "count": int} | {
    "accuracy": float,
    "top5_accuracy": float,
    "loss": float,
}
OPTIONAL_FIELDS = dict.fromkeys(("average_accuracy", "average_top5_accuracy", "average_loss"), float) | {
    "split": str,
    "dir": str,
    "flip": bool,
    HELD_OUT: int,
    "calibration_error": float,
    "class_accuracy": dict,  # of floats, and null for a class without images
}


@dataclasses.dataclass(frozen=True)
class Score:
    """The accuracy of a run under one condition.

    Args:
      accuracy: 0..1; of the averaged parameters if the run has them.
      count: number of test images; None = not recorded.
      source: the file in the workdir that records it.
    """

    accuracy: float
    step: int
    count: int | None
    source: str


@dataclasses.dataclass(frozen=True)
class EpochTest:
    """A test during training.

    Args:
      accuracy: 0..1; of the averaged parameters if the run has them.
      held_out: it was on images held out of training.
    """

    epoch: float | int
    step: int
    accuracy: float
    held_out: bool


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, as read from its workdir.

    Args:
      data: the content of data.json; empty without this file.
      metrics: the lines of metrics.jsonl.
      results: the records of results.json.
    """

    path: epath.Path
    spec: TrainSpec
    data: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    results: Sequence[Mapping[str, Any]]

    @functools.cached_property
    def tests(self) -> list[EpochTest]:
        """All tests during training, in order."""
        return [
            EpochTest(line["epoch"], line["step"], float(_accuracy(line, f"{judge}/")), judge == "holdout")
            for line in self.metrics
            for judge in ("test", "holdout")
            if _accuracy(line, f"{judge}/") is not None
        ]

    @property
    def finished(self) -> bool:
        """Whether the last epoch has been tested."""
        return bool(self.tests) and self.tests[-1].epoch >= self.spec.epochs

    @property
    def trained_on(self) -> EvalSet:
        """The test set that belongs to its training data."""
        data = self.spec.data
        tested = title_of(data.name, data.test_split or TEST)
        if data.name not in tfds_names.FORMATS:
            return EvalSet(tested, tuple(map(str, data.classes)), data.eval_classes)
        names = tuple(self.data.get("class_names", ()))
        if tested == data.name and len(names) == IMAGENET_CLASSES and all(map(WORDNET_ID.fullmatch, names)):
            return EvalSet("imagenet2012", (), data.eval_classes)
        return EvalSet(tested, names, data.eval_classes)

    @functools.cached_property
    def scores(self) -> dict[Condition, Score]:
        """The newest score under each condition.

        `--mode=evaluate` takes precedence over training's last test on the same images. Of several checkpoints the
        newest counts: taking the best would be a choice by the result. The run's own place of the images counts before
        others, which may hold other images.
        """
        in_training = {
            Condition(dataclasses.replace(self.trained_on, held_out=test.held_out), self.spec.data.image_size): Score(
                test.accuracy, test.step, None, workdirs.METRICS
            )
            for test in self.tests[-1:]
        }
        evaluated: dict[Condition, Score] = {}
        for record in sorted(self.results, key=lambda record: (record["step"], "dir" not in record)):
            condition = Condition(self._eval_set(record), record["image_size"])
            evaluated[condition] = Score(float(_accuracy(record)), record["step"], record["count"], workdirs.RESULTS)
        return in_training | evaluated

    def _eval_set(self, record: Mapping[str, Any]) -> EvalSet:
        data = title_of(record["data"], record.get("split", TEST))
        held_out = bool(record.get(HELD_OUT))
        asked = EvalSet(data, (), record["eval_classes"], record.get("flip", False), held_out)
        if asked.data != title_of(self.spec.data.name, self.spec.data.test_split or TEST):
            return asked
        own = dataclasses.replace(self.trained_on, eval_classes=asked.eval_classes, flip=asked.flip, held_out=held_out)
        if own.data != asked.data and record["count"] != IMAGENET_TEST_IMAGES:  # other images in ImageNet's format
            return asked
        return own


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only.

    Args:
      label: published name of the network, and what distinguishes the group from others of this network.
      runs: in the order of their seeds.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def network(self) -> str:
        return self.runs[0].spec.model.name

    @property
    def trained_on(self) -> EvalSet:
        return self.runs[0].trained_on


def title_of(data: str, split: str) -> str:
    """The name of a test set, without its version, and with its split unless that is the usual `TEST`."""
    name = data.partition(":")[0]
    return name if split == TEST else f"{name} ({split})"


def _accuracy(numbers: Mapping[str, Any], prefix: str = "") -> Any:
    """The accuracy that counts: the moving average's, if there is one."""
    return numbers.get(f"{prefix}average_accuracy", numbers.get(f"{prefix}accuracy"))


def read(path: epath.PathLike) -> Run:
    """Reads a workdir.

    Raises:
      UserError: the folder holds no run, or a file in it is damaged.
    """
    workdir = workdirs.locate(path)
    spec = workdirs.read_spec(workdir)
    data_file = workdir / workdirs.DATA
    data = files.read_record(data_file, {"class_names": list[str]}, mend=workdirs.MEND) if data_file.exists() else {}
    metrics = workdirs.read_metrics(workdir, METRICS_FIELDS, mend="Remove the line.")
    mend, file = "Remove the file and evaluate again.", workdir / workdirs.RESULTS
    results = files.read_records(file, RESULTS_FIELDS, mend=mend)
    for record in results:
        known = {name: kind for name, kind in OPTIONAL_FIELDS.items() if name in record}
        files.require_fields(record, known, f"{file}", mend=mend)
    return Run(workdir, spec, data, metrics, results)


def group_by_config(runs: Iterable[Run]) -> list[Group]:
    """Groups the runs that differ in their seed only.

    Fields that may change when a run resumes (`workdir.CHANGEABLE`) are ignored.

    Returns:
      The groups in the order of `list_models`. Where one table holds several groups of a network, their labels state
      the differences.

    Raises:
      UserError: two runs have the same config and the same seed.
    """
    by_config: dict[str, list[Run]] = {}
    for run in runs:
        by_config.setdefault(repr(sorted(identity(run).items())), []).append(run)
    related: dict[tuple[str, str], list[list[Run]]] = {}  # network, table -> runs of each config
    for members in by_config.values():
        _require_different_seeds(members)
        related.setdefault((members[0].spec.model.name, members[0].trained_on.table), []).append(members)
    groups = []
    for (network, table), configs in related.items():
        ignored = CIFAR_DIFFERENCES if table == "CIFAR" else ()
        identities, seen = [identity(members[0]) for members in configs], [members[0].trained_on for members in configs]
        texts = differences(identities, ignored)
        if len({*zip(texts, seen, strict=True)}) < len(configs):  # such as two versions of one CIFAR
            texts = differences(identities, ())
        for members, text in zip(configs, texts, strict=True):
            label = model_info(network).published_name + (f" ({text})" if text else "")
            groups.append(Group(label, tuple(sorted(members, key=lambda run: run.spec.seed))))
    order = list_models()
    return sorted(groups, key=lambda group: order.index(group.network))


def identity(run: Run) -> dict[str, Any]:
    """Everything that runs of one group have in common, by dotted name."""
    config = flax.traverse_util.flatten_dict(dataclasses.asdict(run.spec), sep=".")
    kept = {name: value for name, value in config.items() if name != "seed" and name not in workdirs.CHANGEABLE}
    return kept | {f"data.json: {name}": value for name, value in run.data.items()}


def differences(identities: Sequence[Mapping[str, Any]], ignored: Sequence[str]) -> list[str]:
    """For each identity, a text with the values that not all of them share."""
    names = dict.fromkeys(name for identity in identities for name in identity if name not in ignored)
    differing = [name for name in names if any(other.get(name) != identities[0].get(name) for other in identities)]
    texts = {name: _shortened([identity.get(name) for identity in identities]) for name in differing}
    return [", ".join(f"{name}={texts[name][i]}" for name in differing) for i in range(len(identities))]


def _shortened(values: Sequence[Any]) -> list[str]:
    """The values as text, shortened unless different ones would then read alike."""
    whole = [repr(value) if value == "" else str(value) for value in values]
    short = [text if len(text) <= 60 else f"{text[:30]}...{text[-27:]}" for text in whole]
    return short if len({*short}) == len({*whole}) else whole


def _require_different_seeds(runs: Sequence[Run]) -> None:
    by_seed: dict[int, Run] = {}
    for run in runs:
        first = by_seed.setdefault(run.spec.seed, run)
        if first is not run:
            raise UserError(
                "workdir",
                f"the same run twice: {first.path} and {run.path} have the same config and seed {run.spec.seed}",
                "different seeds",
                "Leave one of them out.",
            )
