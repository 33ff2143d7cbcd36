"""The operations of the networks, each with the best implementation for its platform.

To understand a network, read only `plain.py` here: every other implementation computes the same values and gradients as
the plain formula.
"""

import contextlib
import contextvars
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar, cast

import jax
from jax import lax

from skipnet_jax.models.ops import cpu, gpu, lean_gradients, plain, tpu

P = ParamSpec("P")
R = TypeVar("R")

# Operation -> platform, as JAX names it -> its implementation there. The comments say what each gains;
# docs/benchmarks.md has the measurements. A platform without an entry gets the plain formula. A generation of a
# platform, such as "tpu_v6e", may have its own entry, and otherwise gets its platform's. For TPUs, megacycles are
# XLA:TPU's own estimate of a step with 128 images on one chip of v5e.
TABLE: dict[Callable[..., Any], dict[str, Callable[..., Any]]] = {
    # CPU: grouped convolutions 5 to 80 times faster, depthwise ones 4 times. Without the barrier, repeated
    # additions took 3.1 s of a ResNet-110's step of 3.2 s.
    # GPU: the stem takes 0.7 ms, not 1.8. With this gradient of depthwise kernels, a Skip-ConvNeXt-T's step takes 58
    # ms, not 70.
    # TPU: a ResNeXt-50 takes 168 megacycles, not 207.
    # TPU v6e: a barrier keeps the compiler from crashing. On v5e, it would cost a ResNet-50 0.8 megacycles of 105.
    plain.convolve: {
        "cpu": cpu.convolve,
        "cuda": gpu.convolve,
        "tpu": tpu.convolve,
        "tpu_v6e": tpu.convolve_on_v6e,
    },
    # CPU: saves a tenth of a ResNet-50's step. GPU: the gradient takes 1.2 ms, not 2.2.
    plain.max_pool: {"cpu": cpu.max_pool, "cuda": gpu.max_pool},
    # GPU: with batch norm and gates, a step of ResNet-50 moves 92 GB, not 107, and one of Skip-ResNet-50 117, not 137.
    plain.relu: {"cpu": cpu.relu, "cuda": gpu.relu},
    # CPU: ConvNeXt-T at batch 8 needs 1,451 MB, not 1,998. GPU: with layer norm, its step moves 96 GB, not 113.
    # TPU: two blocks of a ConvNeXt-T take 52 megacycles, not 59.
    plain.gelu: {"cpu": lean_gradients.gelu, "cuda": lean_gradients.gelu, "tpu": lean_gradients.gelu},
    # CPU: saves a quarter to a third of the memory, and 2 to 10 % of a step. GPU: see `relu`.
    # TPU: with the next two and `gated_sum`, a ResNet-50 takes 105 megacycles, not 109, and a Skip-ResNet-50 122, not
    # 154.
    plain.batch_norm: {"cpu": lean_gradients.batch_norm, "cuda": lean_gradients.batch_norm, "tpu": tpu.batch_norm},
    plain.batch_norm_max_pool: {
        "cpu": cpu.batch_norm_max_pool,
        "cuda": gpu.batch_norm_max_pool,
        "tpu": tpu.batch_norm_max_pool,
    },
    plain.deferred_batch_norm: {
        "cpu": lean_gradients.deferred_batch_norm,
        "cuda": lean_gradients.deferred_batch_norm,
        "tpu": tpu.deferred_batch_norm,
    },
    # See `gelu`.
    plain.layer_norm: {"cpu": lean_gradients.layer_norm, "cuda": lean_gradients.layer_norm},
    # CPU: does not keep the branch for the backward pass. GPU: see `relu`.
    plain.gated_sum: {"cpu": cpu.gated_sum, "cuda": gpu.gated_sum, "tpu": tpu.gated_sum},
    # CPU: without these barriers, every reader of a block's output repeats the section's additions.
    plain.materialize: {"cpu": cpu.materialize},
    plain.materialize_gradient: {"cpu": cpu.materialize_gradient},
}


# XLA:TPU optimises a shared function before inlining it into its callers. If a batch norm has several groups on a chip,
# its sums then take a pass of their own: a step of ResNet-50 with 256 images on a chip of v5e moved 83 GB, not 61. With
# one group the shared function is as good or better: Skip-RegNetY-1.6 moves 19 GB, not 23.
_IN_GROUPS = (plain.batch_norm, plain.batch_norm_max_pool, plain.deferred_batch_norm)

_traced_for: contextvars.ContextVar[tuple[str | None, int]] = contextvars.ContextVar("_traced_for", default=(None, 1))


@contextlib.contextmanager
def traced_for(platform: str, devices: int = 1) -> Iterator[None]:
    """Traces only one platform's implementations, which halves the time that JAX takes to trace a training step.

    A program that is traced outside this context can be lowered for any platform.

    Args:
      platform: a device's `platform`, or a generation, as in the table. For "gpu", which may be CUDA or ROCm, all
        implementations are traced.
      devices: number of devices that share the batch.
    """
    token = _traced_for.set((None if platform == "gpu" else platform, devices))
    try:
        yield
    finally:
        _traced_for.reset(token)


def _by_platform(operation: Callable[P, R], arrays: int, inline: bool = True) -> Callable[P, R]:
    """Makes an operation that chooses its implementation by the platform.

    Within `traced_for` it calls that platform's. Otherwise JAX chooses when it lowers the program, gradients included.
    JAX traces an operation and its implementations once for all calls with the same shapes.

    Args:
      arrays: how many arguments are arrays; the settings follow them.
      inline: False shares one function among all calls with the same shapes, which makes programs smaller. Not for
        convolutions: XLA:CPU speeds up only those outside such functions.
    """
    settings = range(arrays, len(inspect.signature(operation).parameters))
    jit = functools.cache(functools.partial(jax.jit, static_argnums=settings))  # traces each implementation once

    @functools.partial(jax.jit, static_argnums=settings, inline=inline)
    def on_any_platform(*arguments: Any) -> R:
        def with_settings(way: Callable[..., R]) -> Callable[..., R]:
            return lambda *inputs: way(*inputs, *arguments[arrays:])

        ways = {way: with_settings(jit(way, inline=inline)) for way in (operation, *TABLE[operation].values())}
        by_platform = {platform: ways[way] for platform, way in TABLE[operation].items() if "_" not in platform}
        return lax.platform_dependent(*arguments[:arrays], **by_platform, default=ways[operation])

    @functools.wraps(operation)
    def call(*arguments: Any) -> Any:
        platform, devices = _traced_for.get()
        if platform is None:
            return on_any_platform(*arguments)
        ways, family = TABLE[operation], platform.partition("_")[0]
        way = ways.get(platform) or ways.get(family, operation)
        several_groups = operation in _IN_GROUPS and len(arguments[0]) > devices
        return jit(way, inline=inline or (family == "tpu" and several_groups))(*arguments)

    return cast(Callable[P, R], call)


convolve = _by_platform(plain.convolve, arrays=2)
max_pool = _by_platform(plain.max_pool, arrays=1)
relu = _by_platform(plain.relu, arrays=1)
gelu = _by_platform(plain.gelu, arrays=1)
batch_norm = _by_platform(plain.batch_norm, arrays=4, inline=False)
batch_norm_max_pool = _by_platform(plain.batch_norm_max_pool, arrays=4, inline=False)
deferred_batch_norm = _by_platform(plain.deferred_batch_norm, arrays=4, inline=False)
layer_norm = _by_platform(plain.layer_norm, arrays=3, inline=False)
gated_sum = _by_platform(plain.gated_sum, arrays=3, inline=False)
gate_weights = plain.gate_weights  # the same on every platform
materialize = _by_platform(plain.materialize, arrays=1)
materialize_gradient = _by_platform(plain.materialize_gradient, arrays=1)
