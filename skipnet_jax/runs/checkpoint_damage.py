"""Finds damage in a checkpoint, as far as its small files show it. The arrays are checked when they are read.

    STEP/state/               the TrainState, in Orbax's format
    STEP/metrics/metrics      the results, once the network has been evaluated
    STEP/progress/metadata    the sums that metrics.jsonl has not reported yet: `Console.pending`
    STEP/checksums/metadata   a checksum of every array; the three small files each hold one of their own
    STEP/_CHECKPOINT_METADATA Orbax's list of these parts

Results may be added later, and older versions wrote no progress; one of the two is always there. Before
December 2026 there were no checksums.
"""

import json
import math
from collections.abc import Collection
from typing import Any

from etils import epath

from skipnet_jax import files
from skipnet_jax.errors import UserError
from skipnet_jax.runs import checksums

STATE, METRICS, PROGRESS, CHECKSUMS = "state", "metrics", "progress", "checksums"  # Orbax's names of the parts
RESULTS_FILE, PROGRESS_FILE, CHECKSUMS_FILE = f"{METRICS}/metrics", f"{PROGRESS}/metadata", f"{CHECKSUMS}/metadata"
_PARTS_FILE = "_CHECKPOINT_METADATA"
_FIELDS: dict[str, files.Fields] = {
    RESULTS_FILE: {"accuracy": float},
    PROGRESS_FILE: {"window": list[dict[str, float]], "epoch": dict[str, float]},
    CHECKSUMS_FILE: {checksums.ARRAYS: dict[str, list]},
}


def accuracy(results: Any) -> float:
    """The number by which the best checkpoint is chosen: the moving average's accuracy, if there is one.

    Args:
      results: any JSON; damaged results are never the best.
    """
    found = results if isinstance(results, dict) else {}
    if checksums.CRC in found and not checksums.is_intact(found):
        return -math.inf
    value = found.get("average_accuracy", found.get("accuracy"))
    return float(value) if isinstance(value, int | float) else -math.inf


def find(checkpoint: epath.Path) -> str:
    """Says which part of a checkpoint is missing or damaged; "" if none is."""
    if not (checkpoint / STATE / "_METADATA").exists():
        return f"no {STATE}/_METADATA"
    parts = _parts(checkpoint)
    if parts is None:
        return f"a damaged {_PARTS_FILE}"
    found = [name for name in _FIELDS if (checkpoint / name).exists()]
    for name in _FIELDS:
        if name not in found and name.split("/")[0] in parts:
            return f"no {name}"
    for name in found:
        try:
            record = files.read_record(checkpoint / name, _FIELDS[name])
            if name == RESULTS_FILE:
                files.require_fields(record, dict.fromkeys(record, float), name)
        except UserError as error:
            return f"a damaged {name}: {error.got}"
        if (CHECKSUMS_FILE in found or checksums.CRC in record) and not checksums.is_intact(record):
            return f"a damaged {name}: its checksum is wrong"
    return "" if {RESULTS_FILE, PROGRESS_FILE} & set(found) else "no results"


def _parts(checkpoint: epath.Path) -> Collection[str] | None:
    """The names of the parts that were written, empty if unknown; None if Orbax would stumble over its list."""
    try:
        content = json.loads((checkpoint / _PARTS_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):  # Orbax does without it
        return ()
    items = content.get("item_handlers", {}) if isinstance(content, dict) else None
    return items if isinstance(items, dict) else None
