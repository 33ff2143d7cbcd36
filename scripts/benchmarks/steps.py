"""Times training and evaluation steps in JAX and PyTorch, in one process and in alternation.

In each round every contender takes one untimed step, which fills the caches, and then as many steps as fill
`--seconds`; the clock stops when the device is done. Ratios are taken within a round, so that a slow phase of the
machine affects both sides alike. Odd rounds run in reverse order.

FLOPs are twice the multiply-adds of `skipnet_jax.models.complexity`, whatever the compiled program computes. It counts
norms and activations too (about a hundredth of a ResNet-50). A training step counts as three forward passes.
"""

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from scripts.benchmarks import machine, tables
from scripts.benchmarks.contenders import HostCalls, Setting, Steps
from skipnet_jax.errors import UserError
from skipnet_jax.models import complexity, model_info

JAX = "JAX"
PASSES = {"train": 3, "eval": 1}  # in forward passes: a backward pass costs two
HOST_CALLS = 30  # in a round
NO_PEER = ("--peer", "torch", "PyTorch, torchvision and timm to be installed", 'Run: pip install -e ".[peer]".')

Key = tuple[str, str, str]  # mode, network, framework


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure.

    Args:
      seconds: at least, per timed piece.
    """

    seconds: float
    repeats: int


@dataclasses.dataclass
class Contender:
    """A network in a framework, ready to take steps of one mode.

    Args:
      run: takes a number of steps, and waits until they are done.
      rest: called after the contender's turn.
      facts: "init_s", "lower_s", "compile_s", and "memory" in bytes; None = unknown.
      rounds: seconds per step in each round.
    """

    run: Callable[[int], None]
    rest: Callable[[], None]
    facts: Mapping[str, float | None]
    rounds: list[float] = dataclasses.field(default_factory=list)


def run(
    models: Sequence[str], *, setting: Setting, modes: Sequence[str], peer: bool, effort: Effort, form: str = "markdown"
) -> None:
    """Prints Markdown tables, or one JSON object.

    Args:
      modes: some of train, eval and host.
      peer: compare with PyTorch.
      form: "markdown" or "json".

    Raises:
      UserError: PyTorch is not installed, cannot use the device, or has no such network.
    """
    versions, contenders = (), {}
    stepping = [mode for mode in modes if mode in PASSES]
    if peer:  # first: PyTorch needs its memory before JAX takes more
        versions, contenders = _peers(models, setting, stepping)
    contenders |= _ours(models if stepping else (), setting, stepping)
    # Neighbours in the tables are neighbours in time.
    order = sorted(contenders, key=lambda key: (stepping.index(key[0]), models.index(key[1])))
    contenders = {key: contenders[key] for key in order}
    _measure(contenders, effort)
    device = jax.devices()[0]
    result = {
        "machine": machine.describe(*versions),
        "setting": dataclasses.asdict(setting),
        "effort": dataclasses.asdict(effort),
        "steps": [_row(key, contender, setting, device.device_kind) for key, contender in contenders.items()],
        "gate_tax": _gate_taxes(models, contenders),
        "peer": _peer_ratios(contenders),
        "host": _host(models, setting.dtype, effort) if "host" in modes else [],
        "device_peak_memory": machine.peak_memory(device),
    }
    tables.print_result(result, form)


def _peers(
    models: Sequence[str], setting: Setting, modes: Sequence[str]
) -> tuple[tuple[str, ...], dict[Key, Contender]]:
    """The versions of PyTorch's libraries, and its contenders, warmed up."""
    try:
        from scripts.benchmarks import peer_networks, peer_steps
    except ModuleNotFoundError as error:
        raise UserError(*NO_PEER) from error
    platform = jax.devices()[0].platform
    if platform not in ("cpu", "gpu"):
        raise UserError("--peer", "torch", f"none: PyTorch cannot use this device ({platform})")
    device = "cuda" if platform == "gpu" else "cpu"
    peer_steps.prepare(device, {name: setting.size_of(name) for name in models})
    made = {}
    for name, framework in itertools.product(models if modes else (), peer_steps.frameworks(device)):
        begin = time.perf_counter()
        steps = peer_steps.PeerSteps(name, setting, framework, device)
        init = time.perf_counter() - begin
        for mode in modes:
            take = steps.train if mode == "train" else steps.evaluate
            facts = steps.warm_up(mode)
            steps.rest()
            made[mode, name, framework] = Contender(take, steps.rest, {"init_s": init, **facts})
            machine.say(f"{name}: {mode} step of {framework} is warm")
    return peer_networks.VERSIONS, made


def _ours(models: Sequence[str], setting: Setting, modes: Sequence[str]) -> dict[Key, Contender]:
    """JAX's contenders, warmed up."""
    made = {}
    for name in models:
        steps = Steps(name, setting)
        init = steps.init()
        for mode in modes:
            facts = steps.compile(mode)
            take = steps.train if mode == "train" else steps.evaluate
            take(1)
            made[mode, name, JAX] = Contender(take, lambda: None, {"init_s": init, **facts})
            machine.say(f"{name}: {mode} step compiled in {facts['compile_s']:.1f} s")
    return made


def _measure(contenders: Mapping[Key, Contender], effort: Effort) -> None:
    for number in range(effort.repeats):
        line = list(contenders.items())
        for (mode, name, framework), contender in line if number % 2 == 0 else reversed(line):
            estimate = min([_seconds(contender, 1), *contender.rounds])
            count = max(1, math.ceil(effort.seconds / estimate))
            contender.rounds.append(_seconds(contender, count) / count)
            contender.rest()
            machine.say(
                f"round {number + 1} of {effort.repeats}: {name}, {mode}, {framework}: "
                f"{1000 * contender.rounds[-1]:,.2f} ms ({count} steps)"
            )


def _seconds(contender: Contender, count: int) -> float:
    begin = time.perf_counter()
    contender.run(count)
    return time.perf_counter() - begin


def _row(key: Key, contender: Contender, setting: Setting, device_kind: str) -> dict[str, Any]:
    mode, name, framework = key
    seconds = statistics.median(contender.rounds)
    counted = complexity.count(name, image_size=setting.size_of(name), num_classes=model_info(name).num_classes)
    flops = 2 * counted.flops * setting.batch * PASSES[mode] / seconds
    peak = machine.peak_flops(device_kind, setting.dtype)
    return {
        "mode": mode,
        "network": name,
        "framework": framework,
        "image_size": setting.size_of(name),
        "params": model_info(name).params,
        "rounds_s": contender.rounds,
        "step_s": spread(contender.rounds),
        "images_per_s": setting.batch / seconds,
        "flops_per_s": flops,
        "share_of_peak": flops / peak if peak else None,
        **contender.facts,
    }


def _gate_taxes(models: Sequence[str], contenders: Mapping[Key, Contender]) -> list[dict[str, Any]]:
    """time(skip_X) / time(X) within a round, and the ratio of their memory, for every such pair."""
    rows = []
    for (mode, name, framework), plain in contenders.items():
        if f"skip_{name}" not in models:
            continue
        gated = contenders[mode, f"skip_{name}", framework]
        held = gated.facts["memory"], plain.facts["memory"]
        rows.append(
            {
                "mode": mode,
                "above": f"skip_{name}",
                "below": name,
                "framework": framework,
                "ratio": ratios(gated.rounds, plain.rounds),
                "memory_ratio": held[0] / held[1] if all(held) else None,
            }
        )
    return rows


def _peer_ratios(contenders: Mapping[Key, Contender]) -> list[dict[str, Any]]:
    """time(JAX) / time(PyTorch) within a round, for PyTorch's format with the lower median."""
    rows = []
    for (mode, name, framework), ours in contenders.items():
        others = [key for key in contenders if key[:2] == (mode, name) and key[2] != framework]
        if framework == JAX and others:
            fastest = min(others, key=lambda key: statistics.median(contenders[key].rounds))
            ratio = ratios(ours.rounds, contenders[fastest].rounds)
            rows.append(
                {"mode": mode, "above": name, "below": name, "framework": f"{JAX} / {fastest[2]}", "ratio": ratio}
            )
    return rows


def _host(models: Sequence[str], dtype: str, effort: Effort) -> list[dict[str, Any]]:
    """The measurements of `HostCalls` for each network, in alternation."""
    calls = {name: HostCalls(name, dtype) for name in models}
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in models}
    for _, name in itertools.product(range(effort.repeats), models):
        for all_rounds, one_round in zip(seconds[name], calls[name].time(HOST_CALLS), strict=True):
            all_rounds += one_round
    return [
        {"network": name, "arrays": calls[name].arrays, "call_s": spread(returned), "ready_s": spread(ready)}
        for name, (returned, ready) in seconds.items()
    ]


def ratios(above: Iterable[float], below: Iterable[float]) -> dict[str, float]:
    """The `spread` of the ratios within each round."""
    return spread(one / other for one, other in zip(above, below, strict=True))


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
