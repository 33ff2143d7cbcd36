"""The machine that the numbers depend on: its processor and cores, the device, and the device's peak."""

import datetime
import os
import pathlib
import platform
import sys
from typing import Any

# Dense FLOP/s in bfloat16 with float32 accumulation, without sparsity, by the beginning of `jax.Device.device_kind`.
# Sources: NVIDIA's data sheets of A100, H100 (SXM) and H200; Google Cloud's pages of TPU v4, v5e and v5p.
PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,  # SXM; the PCIe card has another name and is slower
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
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
