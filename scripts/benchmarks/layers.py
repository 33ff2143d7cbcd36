"""Times the weight gradient of single convolutions, grouped against ungrouped, and against PyTorch's.

The layer is the project's own. One compiled program returns only the gradient of the kernel; another returns the output
and both gradients. In a network the same layer may be faster or slower, since XLA lays out the memory of the whole
program at once.
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

from scripts.benchmarks import machine, tables
from scripts.benchmarks.steps import JAX, NO_PEER, Effort, ratios, spread
from skipnet_jax.errors import UserError
from skipnet_jax.models import layers
from skipnet_jax.training import xla_options

PEER = "PyTorch"
OUTPUTS = ("weight gradient", "all")  # all: the output and both gradients


@dataclasses.dataclass(frozen=True)
class Case:
    """A convolution that keeps the size of the map.

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

    @property
    def ungrouped(self) -> "Case":
        """The same convolution with one group."""
        return dataclasses.replace(self, groups=1)


Key = tuple[Case, str, str]  # case, outputs, framework
Run = Callable[[], None]

# As in stages 2 and 3 of ResNeXt-50-32x4d, and in stage 1 of ConvNeXt-T.
GROUPED = (Case(3, 128, 28, 32), Case(3, 512, 14, 32), Case(7, 96, 56, 96))


def run(*, batch: int, dtype: str, peer: bool, effort: Effort, cases: Sequence[Case] = GROUPED) -> None:
    """Prints a Markdown table.

    Args:
      peer: compare with PyTorch.
      cases: grouped convolutions.

    Raises:
      UserError: PyTorch is not installed, or JAX's device is no CPU.
    """
    every = list(dict.fromkeys(itertools.chain.from_iterable((case, case.ungrouped) for case in cases)))
    runs: dict[Key, Run] = {}
    for case, outputs in itertools.product(every, OUTPUTS):
        if peer:
            runs[case, outputs, PEER] = _peer(case, outputs, batch, dtype)
        runs[case, outputs, JAX] = _ours(case, outputs, batch, dtype)
    for warm_up in runs.values():
        warm_up()
    rounds: dict[Key, list[float]] = {key: [] for key in runs}
    for number in range(effort.repeats):
        for key, take in runs.items():
            count = max(1, math.ceil(effort.seconds / _seconds(take, 1)))
            rounds[key].append(_seconds(take, count) / count)
        machine.say(f"round {number + 1} of {effort.repeats}")

    print(machine.describe(*([_version()] if peer else [])))
    print(f"Batch {batch}, {dtype}; {effort.repeats} rounds.\n")
    titles = ["convolution", "outputs", "framework", "ms", "min..max", "grouped : ungrouped", "min..max"]
    titles += [f"{JAX} : {PEER}", "min..max"] if peer else []
    tables.print_table(titles, [_cells(key, rounds, peer) for key in runs], text_columns=3)


def _cells(key: Key, rounds: dict[Key, list[float]], peer: bool) -> list[str]:
    case, outputs, framework = key
    empty = ["-", "-"]
    cells = [str(case), outputs, framework, *tables.milliseconds(spread(rounds[key]))]
    ungrouped = rounds[case.ungrouped, outputs, framework]
    cells += tables.ratio(ratios(rounds[key], ungrouped)) if case.groups > 1 else empty
    if peer:
        theirs = rounds[case, outputs, PEER]
        cells += tables.ratio(ratios(rounds[key], theirs)) if framework == JAX else empty
    return cells


def _seconds(take: Run, count: int) -> float:
    begin = time.perf_counter()
    for _ in range(count):
        take()
    return time.perf_counter() - begin


def _arrays(case: Case, batch: int) -> list[np.ndarray]:
    """The input, and the gradient of the output."""
    shape = (batch, case.pixels, case.pixels, case.channels)
    return [np.random.default_rng(seed).standard_normal(shape, np.float32) for seed in (0, 1)]


def _ours(case: Case, outputs: str, batch: int, dtype: str) -> Run:
    conv = layers.Conv(case.channels, case.kernel, groups=case.groups, dtype=jnp.dtype(dtype))
    x, cotangent = (jnp.asarray(array, dtype) for array in _arrays(case, batch))
    params = conv.init(jax.random.key(0), x)

    @functools.partial(jax.jit, compiler_options=xla_options.for_training(jax.devices()[0].platform))
    def compute(params, x, cotangent):
        if outputs == "all":
            y, pull = jax.vjp(conv.apply, params, x)
            return y, *pull(cotangent)
        return jax.vjp(lambda params: conv.apply(params, x), params)[1](cotangent)

    return lambda: jax.block_until_ready(compute(params, x, cotangent))


def _peer(case: Case, outputs: str, batch: int, dtype: str) -> Run:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UserError(*NO_PEER) from error
    if jax.devices()[0].platform != "cpu":
        raise UserError("--peer", "torch", "none on this device: layers are compared on CPUs only")
    torch.set_num_threads(machine.cores())
    x, cotangent = (
        torch.from_numpy(array).permute(0, 3, 1, 2).contiguous().to(getattr(torch, dtype))
        for array in _arrays(case, batch)
    )
    x.requires_grad_()
    conv = torch.nn.Conv2d(case.channels, case.channels, case.kernel, groups=case.groups, bias=False)
    weight = conv.weight.to(x.dtype).detach().requires_grad_()
    pad = case.kernel // 2

    def take() -> None:
        if outputs == "all":
            y = torch.nn.functional.conv2d(x, weight, padding=pad, groups=case.groups)
            torch.autograd.grad(y, (x, weight), cotangent)
        else:
            torch.nn.grad.conv2d_weight(x, weight.shape, cotangent, padding=pad, groups=case.groups)

    return take


def _version() -> str:
    import torch

    return f"PyTorch {torch.__version__}"
