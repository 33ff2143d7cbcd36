"""Accelerators in numbers: memory, peaks, bandwidths, clocks, and the slices that one can rent."""

import dataclasses
import math
from collections.abc import Mapping

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """An accelerator, in numbers per JAX device. A TPU v3 chip is two devices; all others are one.

    Args:
      kind: the beginning of `jax.Device.device_kind`.
      memory: bytes that a program may use.
      flops: peak FLOP/s of dense matrix products, by the network's dtype.
      bandwidth: bytes/s to and from the device's memory.
      link: bytes/s that the device sends to its neighbours, all links together.
      clock: Hz of the cycles that XLA:TPU estimates; None = XLA estimates none.
      per_chip: devices per chip.
      source: of these numbers.
    """

    kind: str
    memory: int
    flops: Mapping[str, float]
    bandwidth: float
    link: float
    clock: float | None
    source: str
    per_chip: int = 1


def _tpu(
    kind: str,
    *,
    memory_gib: float,
    tflops: float,
    bandwidth: float,
    link: float,
    clock: float,
    page: str,
    per_chip: int = 1,
) -> Chip:
    """A TPU, by the numbers of a whole chip.

    A TPU multiplies float32 as bfloat16 too, unless `jax_default_matmul_precision` says otherwise.

    Args:
      memory_gib: the memory that XLA:TPU lets a program use on one device. libtpu 0.0.42.1 names it when a program
        needs more.
      page: of Google Cloud's documentation of TPUs.
    """
    return Chip(
        kind,
        memory=int(memory_gib * GIB),
        flops=dict.fromkeys(("bfloat16", "float32"), tflops * 1e12 / per_chip),
        bandwidth=bandwidth / per_chip,
        link=link / per_chip,
        clock=clock,
        source=f"Google Cloud's page on {page}",
        per_chip=per_chip,
    )


# Peaks, bandwidths and links: https://cloud.google.com/tpu/docs/v3, /v4, /v5e, /v5p and /v6e. Links: half of the
# bidirectional bandwidth; for v3 and v4, the pod's all-reduce bandwidth over its chips.
# Clocks: peak / (matrix units * 2 * rows * columns), which for v3 and v4 gives the published 940 and 1,050 MHz (Jouppi
# et al., TPU v4, ISCA 2023, table 4). No clock of v6e is published: four units of 256 x 256 would need 1.75 GHz.
TPUS = {
    "v3": _tpu(
        "TPU v3",
        memory_gib=15.48,
        tflops=123.0,
        bandwidth=900e9,
        link=340e12 / 1024,
        clock=0.94e9,
        page="TPU v3",
        per_chip=2,
    ),
    "v4": _tpu(
        "TPU v4", memory_gib=30.75, tflops=275.0, bandwidth=1200e9, link=1.1e15 / 4096, clock=1.05e9, page="TPU v4"
    ),
    "v5e": _tpu(
        "TPU v5 lite", memory_gib=15.75, tflops=197.0, bandwidth=819e9, link=200e9, clock=1.5e9, page="TPU v5e"
    ),
    "v5p": _tpu("TPU v5", memory_gib=95.74, tflops=459.0, bandwidth=2765e9, link=600e9, clock=1.75e9, page="TPU v5p"),
    "v6e": _tpu(
        "TPU v6 lite", memory_gib=31.25, tflops=918.0, bandwidth=1638e9, link=400e9, clock=1.75e9, page="TPU v6e"
    ),
}

# NVIDIA's data sheets, SXM boards, dense: float32 products are TF32, JAX's default on GPUs. Link: one direction of
# NVLink. Memory: what the driver reports of 80 and 141 GB, times JAX's default share of 0.75.
JAX_SHARE = 0.75  # XLA_PYTHON_CLIENT_MEM_FRACTION
_H100 = Chip(
    "NVIDIA H100 80GB HBM3",
    memory=int(JAX_SHARE * 84_942_979_072),
    flops={"bfloat16": 989e12, "float32": 494.5e12},
    bandwidth=3.35e12,
    link=450e9,
    clock=None,
    source="NVIDIA's data sheet for H100 SXM",
)
_H200 = dataclasses.replace(  # the same processor with more and faster memory
    _H100,
    kind="NVIDIA H200",
    memory=int(JAX_SHARE * 151_397_597_184),
    bandwidth=4.8e12,
    source="NVIDIA's data sheet for H200 SXM",
)
GPUS = {"h100": _H100, "h200": _H200}
GPUS_PER_HOST = 8  # of an HGX board

# Shapes that the pages above document, small to large.
_TORUS_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_TORUS_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
SHAPES = {
    "v3": ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16", "16x32", "32x32"),
    "v4": _TORUS_3D,
    "v5e": _TORUS_2D,
    "v5p": _TORUS_3D,
    "v6e": _TORUS_2D,
}


def chips_of(shape: str) -> int:
    """Number of chips of a slice, such as 16 for "4x4"."""
    return math.prod(int(side) for side in shape.split("x"))


def larger_slices(topology: str) -> list[str]:
    """The documented slices of the same TPU with more chips, small to large; none for other topologies."""
    generation, _, shape = topology.partition(":")
    shapes = SHAPES.get(generation, ())
    return [f"{generation}:{other}" for other in shapes if chips_of(other) > chips_of(shape)]
