"""The type that a network computes in, where the config leaves it to the machine (`model.dtype=auto`)."""

import dataclasses
from typing import Any

from skipnet_jax.specs import TrainSpec

_AMPERE = 8.0  # compute capability of the first NVIDIA GPUs that multiply bfloat16 in hardware
_WITHOUT = ("gfx900", "gfx906", "gfx10")  # AMD GPUs before MI100, and for games; all newer ones multiply bfloat16


def resolve(spec: TrainSpec, device: Any) -> TrainSpec:
    """Replaces `auto` by bfloat16 on TPUs and on GPUs that support it, and by float32 elsewhere."""
    if spec.model.dtype != "auto":
        return spec
    return with_dtype(spec, "bfloat16" if _has_bfloat16(device) else "float32")


def with_dtype(spec: TrainSpec, dtype: str) -> TrainSpec:
    """The spec with another computation type."""
    return dataclasses.replace(spec, model=dataclasses.replace(spec.model, dtype=dtype))


def _has_bfloat16(device: Any) -> bool:
    if device.platform == "gpu":
        name = str(device.compute_capability)  # such as 9.0, or for AMD gfx942
        return not name.startswith(_WITHOUT) if name.startswith("gfx") else float(name) >= _AMPERE
    return device.platform == "tpu"
