"""Says what to do when a batch is too big for a device's memory, instead of showing XLA's trace."""

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from skipnet_jax.errors import UserError

# In XLA's messages: when compiling, the memory that a program needs and a TPU has; otherwise, a failed allocation.
_USED = re.compile(r"Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?)")
_ALLOCATION = re.compile(r"allocat(?:e|ing) ([\d.]+ ?[KMGT]?)")
_SUFFIXES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@contextlib.contextmanager
def explained(field: str, batch_size: int, state: Any, mesh: Mesh) -> Iterator[None]:
    """Turns a device's lack of memory within this block into a UserError that lists the state's memory by part.

    Args:
      field: the field with the batch size: batch_size or eval_batch_size.
      batch_size: of all devices together.
      state: a TrainState; only shapes and types are read.

    Raises:
      UserError: a device has run out of memory.
    """
    parts = {
        "parameters": _bytes_of(state.params),
        "optimiser": _bytes_of(state.opt_state),
        "statistics": _bytes_of(state.batch_stats),
        "moving average": _bytes_of(state.average),
    }
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # ValueError: raised by jax.block_until_ready
        if isinstance(error, UserError) or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise _too_big(field, batch_size, parts, str(error), mesh) from error


def _too_big(field: str, batch_size: int, parts: dict[str, int], message: str, mesh: Mesh) -> UserError:
    kept = sum(parts.values())
    stats = mesh.local_devices[0].memory_stats() or {}  # None on CPUs
    available = int(stats.get("bytes_limit", 0))
    if found := _USED.search(message):
        needed, available = _read(found[1]), _read(found[2])
    elif found := _ALLOCATION.search(message):
        needed = _read(found[1]) + int(stats.get("bytes_in_use", kept))
    else:
        needed = 0
    named = ", ".join(f"{name} {_words(size)}" for name, size in parts.items() if size)
    per_device = f"{batch_size // mesh.size} images per device"
    total = f"needs at least {_words(needed)} of a device's memory" if needed else "needs too much memory"
    rest = f", {_words(needed - kept)} for activations, gradients and images" if needed > kept else ""
    room = f"; the device has {_words(available)}" if available else ""
    fits = _fitting(batch_size, mesh.size, (available - kept) / (needed - kept)) if needed > available > kept else ""
    less = " `model.remat`=True (recomputes activations), twice the `accumulate_steps`,"
    less = "" if field == "eval_batch_size" else less
    return UserError(
        field,
        f"{batch_size} ({per_device}), which {total}: {named}{rest}{room}",
        "a batch that fits",
        f"Give a smaller `{field}`,{less} or more devices.{fits} --mode=plan says what fits without trying.",
    )


def _fitting(batch_size: int, devices: int, share: float) -> str:
    """Names the batch and the number of devices that should fit, as a sentence.

    Args:
      share: the device has room for this share (0..1) of the memory that grows with its part of the batch. XLA names
        the least that the step needs, so less may fit.
    """
    options = []
    if size := int(batch_size * share) // devices * devices:
        options.append(f"a batch of {size}")
    enough = range(math.ceil(devices / share), batch_size + 1)
    if more := next((count for count in enough if batch_size % count == 0), 0):
        options.append(f"{more} devices")
    return f" By this estimate {' or '.join(options)} should fit." if options else ""


def _bytes_of(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _read(text: str) -> int:
    """Reads XLA's sizes without their units: 20.1G, 123456."""
    number, suffix = re.fullmatch(r"([\d.]+) ?([KMGT]?)", text).groups()  # type: ignore[union-attr]
    return int(float(number) * _SUFFIXES[suffix])


def _words(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
