"""Devices that this machine need not have: XLA compiles for them where their compiler is installed.

Source: `jax.experimental.topologies`; for the environment variables, libtpu's own messages.
"""

import contextlib
import dataclasses
import importlib.util
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence

import jax
from jax.experimental import topologies

from skipnet_jax.analysis import chips
from skipnet_jax.analysis.chips import Chip
from skipnet_jax.errors import UserError

FIELD = "topology"

# libtpu reads these when it is loaded. Without them it asks the cloud for the machine's TPUs, and complains.
_FOR_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any type: the topology's name overrides it
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compiling takes no TPU from a process that trains
}

# Hosts with more or fewer chips than the default of four, by Google Cloud's tables of VM types.
_CHIPS_PER_HOST = {"1x1": (1, 1, 1), "2x4": (2, 4, 1)}

# A Hopper SXM board, by the CUDA programming guide's table of compute capability 9.0 and `cudaGetDeviceProperties`. XLA
# needs it to know which code the device can run; only memory and bandwidth differ between H100 and H200.
_HOPPER = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  core_count: 132 fpus_per_core: 128 threads_per_warp: 32 threads_per_core_limit: 2048 threads_per_block_limit: 1024
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  clock_rate_ghz: 1.98 l2_cache_size: 52428800 memory_bandwidth: {bandwidth} device_memory_size: {memory}
  device_vendor: "NVIDIA Corporation" name: "{kind}"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{kind}"
"""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Args:
      name: as the user gives it.
      devices: in JAX's order.
      chip: None = unknown, as for CPUs.
      hosts: machines that feed the devices.
    """

    name: str
    devices: Sequence[jax.Device]
    chip: Chip | None
    hosts: int

    @property
    def chips(self) -> int:
        """Number of chips."""
        return -(-len(self.devices) // (self.chip.per_chip if self.chip else 1))

    @property
    def memory(self) -> int:
        """Bytes that a program may use on each device; for CPUs, this machine's memory."""
        if self.chip:
            return self.chip.memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def open_topology(name: str, chips_used: int | None = None) -> Topology:
    """Makes the devices of a topology; no accelerator is touched.

    Args:
      name: cpu, gpu:h100, gpu:h200, or a slice of TPUs, such as v5e:4x4.
      chips_used: only this many chips, the first ones; None = the whole slice, all CPUs, or one GPU.

    Raises:
      UserError: an unknown name, too few chips, or a compiler that is missing or busy.
    """
    if chips_used is not None and chips_used < 1:
        raise UserError("chips", f"{chips_used}", "at least 1", "Change `chips`.")
    # Planning must not open this machine's own accelerators.
    if jax.config.jax_platforms != "cpu":  # type: ignore[attr-defined]
        jax.config.update("jax_platforms", "cpu")
    kind, _, detail = name.partition(":")
    devices: Sequence[jax.Device]
    chip: Chip | None
    if name == "cpu":
        devices, chip = jax.devices("cpu"), None
    elif kind == "gpu" and detail in chips.GPUS:
        chip = chips.GPUS[detail]
        devices = _gpus(name, chip, chips_used or 1)
    elif kind in chips.TPUS and re.fullmatch(r"\d+x\d+(x\d+)?", detail):
        chip = chips.TPUS[kind]
        devices = _tpus(name)
    else:
        raise _unknown(name)
    if chips_used is not None:
        most = len(devices) // (chip.per_chip if chip else 1)
        if chips_used > most:
            mend = "Set XLA_FLAGS=--xla_force_host_platform_device_count=N for more." if name == "cpu" else ""
            raise UserError("chips", f"{chips_used}", f"at most {most}, all that {name} has", mend or "Change `chips`.")
        devices = devices[: chips_used * (chip.per_chip if chip else 1)]
    return Topology(name, devices, chip, hosts=len({device.process_index for device in devices}))


def _tpus(name: str) -> Sequence[jax.Device]:
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        expected = "libtpu, XLA's compiler for TPUs, which runs on x86-64 Linux"
        raise UserError(FIELD, f"{name} without libtpu", expected, 'Run: pip install -e ".[tpu]".')
    for variable, value in _FOR_LIBTPU.items():
        os.environ.setdefault(variable, value)
    generation, _, shape = name.partition(":")
    options: dict[str, object] = {}
    if generation in ("v5e", "v6e") and shape in _CHIPS_PER_HOST:
        options["chips_per_host_bounds"] = _CHIPS_PER_HOST[shape]
    if generation == "v4":
        options["chip_config_name"] = "megacore"  # as on Cloud TPUs: both cores of a chip are one device
    try:
        with _quiet():
            return topologies.get_topology_desc(topology_name=name, platform="tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        if "lockfile" in str(error) or "already in use" in str(error):
            expected = "libtpu to be free, since ALLOW_MULTIPLE_LIBTPU_LOAD is not 1 here"
            mend = "Set ALLOW_MULTIPLE_LIBTPU_LOAD=1, or wait for the other process."
            raise UserError(FIELD, f"{name}, but another process holds libtpu's lock", expected, mend) from error
        if str(error).startswith("INVALID_ARGUMENT"):
            raise _unknown(name) from error
        raise


def _gpus(name: str, chip: Chip, count: int) -> Sequence[jax.Device]:
    if all(importlib.util.find_spec(f"jax_cuda{version}_plugin") is None for version in (12, 13)):
        expected = "XLA's compiler for NVIDIA GPUs"
        mend = 'Run: pip install -e ".[gpu-compiler]".'
        raise UserError(FIELD, f"{name} without jax-cuda13-plugin", expected, mend)
    if count > chips.GPUS_PER_HOST:
        expected = f"at most {chips.GPUS_PER_HOST}, the GPUs of one host"
        raise UserError("chips", f"{count}", expected, "Change `chips`.")
    memory = round(chip.memory / chips.JAX_SHARE)
    target = _HOPPER.format(kind=chip.kind, bandwidth=int(chip.bandwidth), memory=memory)
    with _quiet():
        return topologies.get_topology_desc(
            name, platform="cuda", topology=f"1x1x{count}", target_config=target
        ).devices


def _unknown(name: str) -> UserError:
    known = [f"{generation}:{shape}" for generation, shapes in chips.SHAPES.items() for shape in shapes]
    known += ["cpu", *(f"gpu:{gpu}" for gpu in chips.GPUS)]
    return UserError(FIELD, repr(name), f"one of {', '.join(known)}", f"Change `{FIELD}`.")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides what a compiler's library prints while it loads, and takes back the handler of SIGTERM.

    libtpu's own handler would print a stack trace.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as noise:
        os.dup2(noise.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            if threading.current_thread() is threading.main_thread():  # Python lets no other thread set a handler
                signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
