"""The machine that the numbers depend on: its processor and cores, the device, and the device's peak."""

import datetime
import os
import pathlib
import platform
import sys
from typing import Any

from skipnet_jax.analysis import chips

# Dense FLOP/s in bfloat16 with float32 accumulation, by the beginning of `jax.Device.device_kind`.
PEAKS = {
    "NVIDIA A100": 312e12,  # NVIDIA's data sheet
    "TPU v5e": chips.TPUS["v5e"].flops["bfloat16"],  # JAX says "TPU v5 lite" today
    **{chip.kind: chip.flops["bfloat16"] for chip in (*chips.TPUS.values(), *chips.GPUS.values())},
}


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """The device's peak in FLOP/s; None if unknown, as for every dtype but bfloat16."""
    if dtype != "bfloat16":
        return None
    return next((peak for kind, peak in PEAKS.items() if device_kind.startswith(kind)), None)


def describe(*versions: str) -> str:
    """The date, the machine and the versions of the libraries, in one line.

    Args:
      versions: of the libraries beside JAX.
    """
    import jax

    device = jax.devices()[0].device_kind
    libraries = ", ".join([f"JAX {jax.__version__}", *versions])
    return f"{datetime.date.today()}, {_cpu()}, {cores()} cores, device {device}; {libraries}."


def say(text: str) -> None:
    """Reports progress on stderr: stdout holds the tables."""
    print(text, file=sys.stderr, flush=True)


def peak_memory(device: Any) -> int | None:
    """The most bytes that the device has held since the process began; None if it does not say."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


def _cpu() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
