"""What a finished write of a checkpoint leaves, as far as it shows without reading the arrays.

    STEP/state/               the TrainState, in Orbax's format
    STEP/metrics/metrics      results of the network, where it has been evaluated
    STEP/progress/metadata    what `Console.snapshot` returns
    STEP/_CHECKPOINT_METADATA which of these were written

Results may come later than the rest, and older versions wrote no progress: one of the two is there.
"""

import json
import math
from collections.abc import Collection
from typing import Any

from etils import epath

STATE = "state"  # name of Orbax's item that holds the TrainState
PROGRESS = "progress"
WRITTEN = "_CHECKPOINT_METADATA"  # its file that lists the items
METRICS = "metrics"  # its item for results, and their file


class DamagedError(ValueError):
    """A checkpoint is there, but cannot be read.

    Args:
      text: for the user.
      why: the part of it that tells what is wrong, where that is known.
    """

    def __init__(self, text: str, why: str = "") -> None:
        super().__init__(text)
        self.why = why or text


def accuracy(metrics: Any) -> float:
    """What decides which checkpoint is the best: that of the moving average where there is one; never a damaged one's.

    Args:
      metrics: results of the checkpoint, as they are on the disk.
    """
    if not _are_numbers(metrics, "accuracy"):
        return -math.inf
    return metrics.get("average_accuracy", metrics["accuracy"])


def what_is_missing(directory: epath.Path) -> str:
    """Which file a checkpoint lacks, or has damaged, as far as that shows without reading the arrays; "" if none.

    Args:
      directory: of the checkpoint.
    """
    if not (directory / STATE / "_METADATA").exists():
        return f"{STATE}/_METADATA is missing"
    written = _written(directory)
    if written is None:
        return f"{WRITTEN} is damaged: it holds something else"
    told = {directory / METRICS / METRICS: _are_results, directory / PROGRESS / "metadata": _is_progress}
    for file in told:
        if file.parent.name in written and not file.exists():
            return f"{file.parent.name}/{file.name} is missing"
    told = {file: fits for file, fits in told.items() if file.exists()}
    if not told:
        return "its results are missing"
    for file, fits in told.items():
        try:
            whole = fits(json.loads(file.read_bytes()))
        except (ValueError, RecursionError) as error:
            return f"{file.parent.name}/{file.name} is damaged: {error}"
        if not whole:
            return f"{file.parent.name}/{file.name} is damaged: it holds other names or no numbers"
    return ""


def _written(directory: epath.Path) -> Collection[str] | None:
    """The parts that a checkpoint was written with; none where that is not told; None where Orbax would choke on it."""
    try:
        content = json.loads((directory / WRITTEN).read_bytes())
    except (OSError, ValueError, RecursionError):  # then Orbax does without it
        return ()
    items = content.get("item_handlers", {}) if isinstance(content, dict) else None
    return items if isinstance(items, dict) else None


def _are_results(content: Any) -> bool:
    return _are_numbers(content, "accuracy")


def _is_progress(content: Any) -> bool:
    """Whether it has the form of what `Console.snapshot` returns."""
    if not isinstance(content, dict) or not isinstance(content.get("window", []), list):
        return False
    return all(_are_numbers(sums) for sums in (*content.get("window", []), content.get("epoch", {})))


def _are_numbers(content: Any, *names: str) -> bool:
    """Whether it is a dict of numbers that has these names."""
    if not isinstance(content, dict) or not set(names) <= content.keys():
        return False
    return all(type(value) in (int, float) for value in content.values())
