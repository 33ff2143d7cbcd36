"""Experimental options that make XLA fast on CPUs, and the measurements that justify them.

Measured with the XLA of jaxlib 0.10.2; docs/benchmarks.md has the details. Other platforms need no options.
"""

COMPILER_OPTIONS = {
    "cpu": {
        # Keeps optimisation barriers (`models/ops/cpu.py`) until XLA has fused operations. By default XLA:CPU removes
        # them before, recomputes a deep network's states again and again (3.1 s of a ResNet-110's step of 3.2 s), and
        # undoes rematerialisation.
        "xla_disable_hlo_passes": "cse_barrier_expander",
        # YNNPACK adds up faster than XLA's own loops. Its convolutions and products are slower than Eigen's.
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
    }
}


def compiler_options(platform: str) -> dict[str, str]:
    """The options of `jax.jit` for programs on a platform, in JAX's names: "cpu", "gpu", "tpu"."""
    return COMPILER_OPTIONS.get(platform, {})
