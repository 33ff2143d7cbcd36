"""Experimental options that make XLA fast on CPUs, and the measurements that justify them.

Measured with the XLA of jaxlib 0.10.2; docs/benchmarks.md has the details. Other platforms need no options.
"""

TRAINING = {
    "cpu": {
        # Keeps optimisation barriers (`models/ops/cpu.py`) until XLA has fused operations. By default XLA:CPU removes
        # them earlier, recomputes a deep network's states again and again (3.1 s of a ResNet-110's step of 3.2 s), and
        # undoes rematerialisation.
        "xla_disable_hlo_passes": "cse_barrier_expander",
        # YNNPACK adds up faster than XLA's own loops. Its convolutions and products are slower than Eigen's.
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
    }
}
EVALUATION = {
    "cpu": {
        **TRAINING["cpu"],
        # Forward passes take 0.45 (Skip-ResNet-110) to 1.0 times as long, and compiling them 0.4 to 1.0 times. Not
        # for training: a step of Skip-ResNet-110 takes 1.15 times as long.
        "xla_cpu_opt_preset": "CPU_OPT_PRESET_FAST_COMPILE",
    }
}


def for_training(platform: str) -> dict[str, str]:
    """The options of `jax.jit` for training steps on a platform, in JAX's names: "cpu", "gpu", "tpu"."""
    return TRAINING.get(platform, {})


def for_evaluation(platform: str) -> dict[str, str]:
    """The options of `jax.jit` for programs without gradients."""
    return EVALUATION.get(platform, {})
