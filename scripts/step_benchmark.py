"""How long training and evaluation steps take, here and in PyTorch: all of a run in one process and in alternation.

In each round every contender takes an untimed step, in which it gets the caches back, and then as many as
fill `--seconds`; the device is waited for at the end. Ratios are made within a round, so that what slows the machine
down for a while hits both sides alike. Odd rounds go backwards.

FLOPs are twice the multiply-adds of `skipnet_jax.models.complexity`, which counts norms and activations too (about
a hundredth of a ResNet-50), whatever the compiled program really does; those of a training step are three times
those of a forward pass.
"""

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from scripts import machine, step_tables
from scripts.step_contenders import HostCalls, Setting, Steps
from skipnet_jax.models import complexity, model_info

HERE = "JAX"
MODES = ("train", "eval", "host")
PASSES = {"train": 3, "eval": 1}  # in units of a forward pass: a backward pass is two
HOST_CALLS = 30  # in a round
NO_PEER = '--peer: got torch, expected PyTorch, torchvision and timm to be installed. Run: pip install -e ".[peer]"'

Key = tuple[str, str, str]  # mode, network, framework


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure.

    Args:
      seconds: of each timed piece, at least.
      repeats: rounds.
    """

    seconds: float
    repeats: int


@dataclasses.dataclass
class Contender:
    """What takes steps.

    Args:
      run: takes so many, and waits until they are done.
      rest: is called when others have their turn.
      facts: "init_s", "lower_s", "compile_s", "memory" in bytes; None = not known.
      rounds: seconds per step in each.
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
      models: names of networks.
      setting: what they have in common.
      modes: some of `MODES`.
      peer: compare with PyTorch.
      effort: how long to measure.
      form: "markdown" or "json".

    Raises:
      ValueError: what is asked for is not possible, for example where a network has no peer.
    """
    torch_side = _torch_side(models, setting) if peer else None
    stepping = [mode for mode in modes if mode in PASSES]
    contenders = _contenders(models, setting, stepping, torch_side)
    _measure(contenders, effort)
    device = jax.devices()[0]
    result = {
        "machine": machine.describe(*(torch_side[0].VERSIONS if torch_side else ())),
        "setting": dataclasses.asdict(setting),
        "effort": dataclasses.asdict(effort),
        "steps": [_row(key, contender, setting, device.device_kind) for key, contender in contenders.items()],
        "gate_tax": _gate_taxes(models, contenders),
        "peer": _peer_ratios(contenders),
        "host": _host(models, setting.dtype, effort) if "host" in modes else [],
        "device_peak_memory": machine.peak_memory(device),
    }
    step_tables.print_result(result, form)


def _torch_side(models: Sequence[str], setting: Setting) -> tuple[Any, Any, str]:
    """The modules `peer_networks` and `peer_steps`, and PyTorch's name of JAX's device."""
    try:
        from scripts import peer_networks, peer_steps
    except ModuleNotFoundError as error:
        raise ValueError(NO_PEER) from error
    platform = jax.devices()[0].platform
    if platform not in ("cpu", "gpu"):
        raise ValueError(f"--peer: got torch, which cannot use this device ({platform}), expected none.")
    device = "cuda" if platform == "gpu" else "cpu"
    peer_steps.prepare(device, {name: setting.size_of(name) for name in models})
    return peer_networks, peer_steps, device


def _contenders(
    models: Sequence[str], setting: Setting, modes: Sequence[str], torch_side: tuple[Any, Any, str] | None
) -> dict[Key, Contender]:
    """All of them, warmed up."""
    made: dict[Key, Contender] = {}
    networks = models if modes else ()
    if torch_side:
        _, peer_steps, device = torch_side
        for name, framework in itertools.product(networks, peer_steps.frameworks(device)):
            begin = time.perf_counter()
            theirs = peer_steps.PeerSteps(name, setting, framework, device)
            init = time.perf_counter() - begin
            for mode in modes:
                steps = theirs.train if mode == "train" else theirs.evaluate
                facts = theirs.warm_up(mode)
                theirs.rest()
                made[mode, name, framework] = Contender(steps, theirs.rest, {"init_s": init, **facts})
                machine.say(f"{name}: {mode} step of {framework} is warm")
    for name in networks:
        ours = Steps(name, setting)
        init = ours.init()
        for mode in modes:
            facts = ours.compile(mode)
            take = ours.train if mode == "train" else ours.evaluate
            take(1)
            made[mode, name, HERE] = Contender(take, lambda: None, {"init_s": init, **facts})
            machine.say(f"{name}: {mode} step compiled in {facts['compile_s']:.1f} s")
    order = {name: i for i, name in enumerate(models)}  # neighbours in a table are neighbours in time
    return dict(sorted(made.items(), key=lambda item: (modes.index(item[0][0]), order[item[0][1]])))


def _measure(contenders: Mapping[Key, Contender], effort: Effort) -> None:
    """Fills in the rounds."""
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
    """One contender's numbers."""
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
    """time(skip_X) / time(X) within a round, and the same of the memory, of every such pair."""
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
    """time(here) / time(PyTorch) within a round, the latter in the format whose median is less."""
    rows = []
    for (mode, name, framework), ours in contenders.items():
        others = [key for key in contenders if key[:2] == (mode, name) and key[2] != framework]
        if framework == HERE and others:
            fastest = min(others, key=lambda key: statistics.median(contenders[key].rounds))
            ratio = ratios(ours.rounds, contenders[fastest].rounds)
            rows.append(
                {"mode": mode, "above": name, "below": name, "framework": f"{HERE} / {fastest[2]}", "ratio": ratio}
            )
    return rows


def _host(models: Sequence[str], dtype: str, effort: Effort) -> list[dict[str, Any]]:
    """What `HostCalls` measures, of each network."""
    calls = {name: HostCalls(name, dtype) for name in models}
    found: dict[str, list[tuple[list[float], list[float]]]] = {name: [] for name in models}
    for _, (name, each) in itertools.product(range(effort.repeats), calls.items()):
        found[name].append(each.time(HOST_CALLS))
    return [
        {
            "network": name,
            "arrays": each.arrays,
            "call_s": spread(itertools.chain.from_iterable(one for one, _ in found[name])),
            "ready_s": spread(itertools.chain.from_iterable(one for _, one in found[name])),
        }
        for name, each in calls.items()
    ]


def ratios(above: Iterable[float], below: Iterable[float]) -> dict[str, float]:
    """Median and spread of the rounds' ratios."""
    return spread(one / other for one, other in zip(above, below, strict=True))


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, least and greatest."""
    found = list(values)
    return {"median": statistics.median(found), "least": min(found), "greatest": max(found)}
