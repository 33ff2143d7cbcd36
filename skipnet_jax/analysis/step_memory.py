"""What a compiled step holds in a device's memory, by kind."""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.stages import Compiled

from skipnet_jax.analysis.program_costs import Costs
from skipnet_jax.training import run_steps, steps

# Beginning of an argument's name in the program -> kind of memory.
_ARGUMENTS = {
    "state.params": "parameters",
    "state.opt_state": "optimiser",
    "state.batch_stats": "statistics",
    "state.average": "average",
    "batch": "inputs",
}
KEPT = ("parameters", "optimiser", "statistics", "average", "program")  # independent of the batch
NOTHING = dict.fromkeys((*_ARGUMENTS.values(), "activations", "program"), 0)
_SUFFIXES = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def of_program(compiled: Compiled, costs: Costs) -> dict[str, int]:
    """Bytes by kind, by XLA's own account; "activations" includes gradients and workspace."""
    stats: Any = compiled.memory_analysis()
    memory = _of_arguments(costs)
    memory["activations"] = stats.temp_size_in_bytes + max(0, stats.output_size_in_bytes - stats.alias_size_in_bytes)
    memory["program"] = stats.generated_code_size_in_bytes
    return memory


def of_optimised(total: int, costs: Costs) -> dict[str, int]:
    """Bytes by kind of a program without machine code; the size of the code is unknown.

    Args:
      total: bytes of all values.
    """
    memory = _of_arguments(costs)
    memory["activations"] = max(0, total - sum(memory.values()))
    return memory


def _of_arguments(costs: Costs) -> dict[str, int]:
    memory = dict(NOTHING)
    for name, size in costs.arguments.items():
        memory[_ARGUMENTS.get(name, "parameters")] += size
    return memory


def of_refused(state: Any, batch: run_steps.Shapes, message: str, devices: int) -> dict[str, int]:
    """Bytes by kind of a program that XLA refuses because it is too large.

    Args:
      message: XLA's, with "Used 20.1G of 15.7G", or with "(1.0T) exceeds" for the workspace alone.
      devices: that share the batch.
    """
    memory = dict(NOTHING)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        kind = _ARGUMENTS.get(f"state.{jax.tree_util.keystr(path[:1], simple=True)}", "parameters")
        memory[kind] += math.prod(leaf.shape) * leaf.dtype.itemsize
    memory["inputs"] = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in batch.values()) // devices
    found = re.search(r"Used ([\d.]+)([KMGT])|\(([\d.]+)([KMGT])\) exceeds", message)
    if found:
        needed = float(found[1] or found[3]) * _SUFFIXES[found[2] or found[4]]
        memory["activations"] = max(0, int(needed) - (sum(memory.values()) if found[1] else 0))
    return memory


def most_held(memory: Mapping[str, int]) -> int:
    """Bytes that a device must hold: while training or while evaluating, whichever takes more.

    Args:
      memory: as `add_up` returns it.
    """
    return max(memory["total"], memory["evaluation"])


def add_up(train: Mapping[str, int], evaluation: Mapping[str, int], available: int) -> dict[str, int]:
    """Everything that is in a device's memory at once, including the waiting batches and both programs.

    Args:
      train, evaluation: the kinds of each step.
      available: bytes that a program may use.

    Returns:
      The kinds while training, their "total", the "evaluation" in total, and "available".
    """
    batches = 1 + steps.IN_FLIGHT
    memory = {**train, "inputs": batches * train["inputs"], "program": train["program"] + evaluation["program"]}
    evaluating = batches * evaluation["inputs"] + evaluation["activations"] + sum(memory[kind] for kind in KEPT)
    return {**memory, "total": sum(memory.values()), "evaluation": evaluating, "available": available}
