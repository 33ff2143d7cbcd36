"""What a finished write of a checkpoint leaves, as far as it shows without reading the arrays.

    STEP/state/               the TrainState, in Orbax's format
    STEP/metrics/metrics      results of the network, where it has been evaluated
    STEP/progress/metadata    what `Progress.snapshot` returns

One of the last two may be missing.
"""

import json
import math
from typing import Any

from etils import epath

STATE = "state"  # name of Orbax's item that holds the TrainState
PROGRESS = "progress"


class DamagedError(ValueError):
    """A checkpoint is there, but cannot be read."""


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
    told = {directory / "metrics" / "metrics": _are_results, directory / PROGRESS / "metadata": _is_progress}
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


def _are_results(content: Any) -> bool:
    return _are_numbers(content, "accuracy")


def _is_progress(content: Any) -> bool:
    """Whether it has the form of what `Progress.snapshot` returns."""
    if not isinstance(content, dict) or not isinstance(content.get("window", []), list):
        return False
    return all(_are_numbers(sums) for sums in (*content.get("window", []), content.get("epoch", {})))


def _are_numbers(content: Any, *names: str) -> bool:
    """Whether it is a dict of numbers that has these names."""
    if not isinstance(content, dict) or not set(names) <= content.keys():
        return False
    return all(type(value) in (int, float) for value in content.values())
