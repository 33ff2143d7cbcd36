"""What XLA's CPU backend has to be told to be fast. Other platforms are left as they are.

Measured with XLA of jaxlib 0.10.2 (docs/benchmarks.md).
"""

COMPILER_OPTIONS = {
    "cpu": {
        # By default barriers are taken out before operations are joined, and with them all that `models.ops.memory`
        # says: a deep network then computes its states again and again, and rematerialisation is undone.
        "xla_disable_hlo_passes": "cse_barrier_expander",
        # YNNPACK sums better than XLA's own loops. Its convolutions and products are slower than Eigen's.
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
    }
}


def compiler_options(platform: str) -> dict[str, str]:
    """Options of `jax.jit` for programs on this platform, as JAX names it: "cpu", "gpu", "tpu"."""
    return COMPILER_OPTIONS.get(platform, {})
