"""How long the weight gradient of a single convolution takes: grouped against ungrouped, and against PyTorch's.

Ours is the project's own layer in a compiled program that returns nothing but the gradient of the kernel, beside one
that returns the output and both gradients. Networks may do better or worse: their programs lay out memory as a whole.
"""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from scripts import machine, step_tables
from scripts.step_benchmark import HERE, NO_PEER, Effort, ratios, spread
from skipnet_jax.models import layers
from skipnet_jax.training import xla_options

PEER = "PyTorch"
WHAT = ("weight gradient", "all")  # all: output and both gradients

Run = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Case:
    """One convolution that keeps the size.

    Args:
      pixels: side of the map.
    """

    kernel: int
    channels: int
    pixels: int
    groups: int

    def __str__(self) -> str:
        kind = f"{self.groups} groups" if self.groups < self.channels else "depthwise"
        return f"{self.kernel}x{self.kernel}, {self.channels} channels, {self.pixels} px, " + (
            kind if self.groups > 1 else "ungrouped"
        )


# Stages 2 and 3 of ResNeXt-50-32x4d are of this kind, and stage 1 of ConvNeXt-T.
GROUPED = (Case(3, 128, 28, 32), Case(3, 512, 14, 32), Case(7, 96, 56, 96))


def run(*, batch: int, dtype: str, peer: bool, effort: Effort, cases: Sequence[Case] = GROUPED) -> None:
    """Prints Markdown tables.

    Args:
      batch: examples.
      dtype: of the computation.
      peer: compare with PyTorch.
      effort: how long to measure.
      cases: grouped convolutions.

    Raises:
      ValueError: PyTorch is not installed.
    """
    pairs = ((case, dataclasses.replace(case, groups=1)) for case in cases)
    every = list(dict.fromkeys(itertools.chain.from_iterable(pairs)))
    runs: dict[tuple[Case, str, str], Run] = {}
    versions: tuple[str, ...] = ()
    if peer:
        versions = _add_peers(runs, every, batch, dtype)
    for case, what in itertools.product(every, WHAT):
        runs[case, what, HERE] = _ours(case, what, batch, dtype)
        runs[case, what, HERE](2)  # compiles
    rounds: dict[tuple[Case, str, str], list[float]] = {key: [] for key in runs}
    for number in range(effort.repeats):
        for key, take in runs.items():
            count = max(1, math.ceil(effort.seconds / _seconds(take, 1)))
            rounds[key].append(_seconds(take, count) / count)
        machine.say(f"round {number + 1} of {effort.repeats}")

    print(machine.describe(*versions))
    print(f"Batch {batch}, {dtype}; {effort.repeats} rounds.\n")
    titles = ["convolution", "what", "framework", "ms", "least..greatest", "grouped : ungrouped", "least..greatest"]
    titles += [f"{HERE} : {PEER}", "least..greatest"] if peer else []
    step_tables.print_table(titles, [_cells(key, rounds, peer) for key in sorted(runs, key=_order(every))], left=3)


def _cells(key: tuple[Case, str, str], rounds: dict[tuple[Case, str, str], list[float]], peer: bool) -> list[str]:
    case, what, framework = key
    ungrouped, there = (dataclasses.replace(case, groups=1), what, framework), (case, what, PEER)
    empty = ["-", "-"]
    cells = [str(case), what, framework, *step_tables.milliseconds(spread(rounds[key]))]
    cells += step_tables.ratio(ratios(rounds[key], rounds[ungrouped])) if case.groups > 1 else empty
    if peer:
        cells += step_tables.ratio(ratios(rounds[key], rounds[there])) if framework == HERE else empty
    return cells


def _order(every: Sequence[Case]) -> Callable[[tuple[Case, str, str]], tuple[int, int, str]]:
    return lambda key: (every.index(key[0]), WHAT.index(key[1]), key[2])


def _seconds(take: Run, count: int) -> float:
    begin = time.perf_counter()
    take(count)
    return time.perf_counter() - begin


def _arrays(case: Case, batch: int) -> list[np.ndarray]:
    """Input, and the gradient of the output."""
    shape = (batch, case.pixels, case.pixels, case.channels)
    return [np.random.default_rng(seed).standard_normal(shape, np.float32) for seed in (0, 1)]


def _ours(case: Case, what: str, batch: int, dtype: str) -> Run:
    conv = layers.Conv(case.channels, case.kernel, groups=case.groups, dtype=jnp.dtype(dtype))
    x, cotangent = (jnp.asarray(array, dtype) for array in _arrays(case, batch))
    params = conv.init(jax.random.key(0), x)

    @functools.partial(jax.jit, compiler_options=xla_options.compiler_options(jax.devices()[0].platform))
    def compute(params, x, cotangent):
        if what == "all":
            y, pull = jax.vjp(conv.apply, params, x)
            return y, *pull(cotangent)
        return jax.vjp(lambda params: conv.apply(params, x), params)[1](cotangent)

    def take(count: int) -> None:
        for _ in range(count):
            jax.block_until_ready(compute(params, x, cotangent))

    return take


def _add_peers(
    runs: dict[tuple[Case, str, str], Run], every: Sequence[Case], batch: int, dtype: str
) -> tuple[str, ...]:
    """Adds PyTorch's, and returns its version."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ValueError(NO_PEER) from error
    torch.set_num_threads(machine.cores())
    if jax.devices()[0].platform != "cpu":
        raise ValueError("--peer: got torch, expected none: here PyTorch is compared on CPUs only.")

    def take(case: Case, what: str, x, weight, cotangent, count: int) -> None:
        pad = case.kernel // 2
        for _ in range(count):
            if what == "all":
                y = torch.nn.functional.conv2d(x, weight, padding=pad, groups=case.groups)
                torch.autograd.grad(y, (x, weight), cotangent)
            else:
                torch.nn.grad.conv2d_weight(x, weight.shape, cotangent, padding=pad, groups=case.groups)

    for case, what in itertools.product(every, WHAT):
        x, cotangent = (
            torch.from_numpy(array).permute(0, 3, 1, 2).contiguous().to(getattr(torch, dtype))
            for array in _arrays(case, batch)
        )
        conv = torch.nn.Conv2d(case.channels, case.channels, case.kernel, groups=case.groups, bias=False)
        weight = conv.weight.to(x.dtype).detach().requires_grad_()
        runs[case, what, PEER] = functools.partial(take, case, what, x.requires_grad_(), weight, cotangent)
        runs[case, what, PEER](1)
    return (f"PyTorch {torch.__version__}",)
