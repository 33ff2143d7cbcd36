"""Sums that steps leave on the device, and their means on the host."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

IN_FLIGHT = 2  # steps that the host may be ahead of the device, so that the device never waits


def means(sums: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> dict[str, float]:
    """Means over all examples, from sums over batches.

    Args:
      sums: one entry per batch, fetched, each with "count" examples.
      names: name of each mean -> name of its sum.
    """
    count = sum(int(batch["count"]) for batch in sums)
    totals = {name: sum(float(batch[part]) for batch in sums) for name, part in names.items()}
    return {name: total / count if count else math.nan for name, total in totals.items()}
