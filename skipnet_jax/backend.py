"""What XLA's CPU backend has to be told to be fast. Other platforms are left as they are.

Measured on XLA of jaxlib 0.10.2 (docs/benchmarks.md).
"""

import ctypes
import platform

COMPILER_OPTIONS = {
    "cpu": {
        # By default barriers are taken out before operations are joined, and with them all that `models.ops.memory`
        # says: a deep network then computes its states again and again, and rematerialisation is undone.
        "xla_disable_hlo_passes": "cse_barrier_expander",
        # YNNPACK sums better than XLA's own loops. Its convolutions and products are slower than Eigen's.
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
    }
}

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_LARGEST = 2**31 - 1  # what fits into an int


def compiler_options(platform: str) -> dict[str, str]:
    """Options of `jax.jit` for programs on this platform, as JAX names it: "cpu", "gpu", "tpu"."""
    return COMPILER_OPTIONS.get(platform, {})


def keep_memory() -> None:
    """Lets this process keep the memory that it frees, before it makes any large array.

    XLA takes all memory of a step at once from the C library, which by default gives it back to the system after the
    step; getting it anew, page by page, takes a fifth of a step on a CPU. Only glibc is told; others do as they do.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_ARENA_MAX, 1)  # other arenas cannot hold arrays as large
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _LARGEST)
