"""What the input delivers: images/s by stage, beside a PyTorch DataLoader; and how much a training step waits for it.

All in one run and in alternation: in each round every contender is opened, warmed up until what it made ahead is used
up, timed, and closed again, so that none works while another is timed.
"""

import dataclasses
import gc
import itertools
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from scripts import machine
from scripts.input_stages import Setting, cifar, imagenet
from scripts.machine import cores, say
from skipnet_jax.data import pipeline
from skipnet_jax.evaluation.scoring import IN_FLIGHT
from skipnet_jax.models import build_network
from skipnet_jax.optim import optimizers, schedules
from skipnet_jax.training import sharding, steps

_GOALS = {"imagenet": 1.5, "cifar": 5.0}  # times the peer's images/s per core
_UNTIMED_STEPS = 10  # more than were made ahead in the meantime
_NO_PEER = 'No comparison: PyTorch and torchvision are not installed. Run: pip install -e ".[peer]"'
_ABOUT_PEER = (
    "The DataLoader has a worker per core, decodes with Pillow, augments with torchvision and normalises on the host, "
    "as its users do; here the device normalises. So it is also timed without Normalize. Ratio: of the medians, and "
    "the least and the greatest of the rounds."
)


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure.

    Args:
      seconds: of each timed piece.
      repeats: rounds.
      steps: of training that are timed; 0 = none.
    """

    seconds: float
    repeats: int
    steps: int


def run(
    paths: Sequence[str],
    *,
    images: int,
    folder: pathlib.Path,
    networks: Mapping[str, str],
    batch_sizes: Mapping[str, int],
    effort: Effort,
) -> None:
    """Prints Markdown tables.

    Args:
      paths: "imagenet", "cifar" or both.
      images: how many JPEGs.
      folder: where they are kept.
      networks: whose training step is timed, by path.
      batch_sizes: examples per batch, by path.
      effort: how long to measure.
    """
    import tensorflow as tf

    for kind in ("GPU", "TPU"):  # as in training: TensorFlow only reads data
        tf.config.set_visible_devices([], kind)
    try:
        from scripts import peer_loader as peer
    except ModuleNotFoundError:
        peer = None
    print(_machine(peer), flush=True)
    for path in paths:
        if path == "imagenet":
            setting = imagenet(folder / f"{images}-images", images, networks[path], batch_sizes[path], peer)
        else:
            setting = cifar(networks[path], batch_sizes[path], peer)
        print(f"\n### {setting.title}\n")
        rates = _measure(setting, effort)
        _print_rates(rates)
        _print_ratios(rates, setting, _GOALS[path])
        if effort.steps:
            _print_waiting(setting, effort.steps, statistics.median(rates[setting.delivered]))


def _machine(peer: Any) -> str:
    """What the numbers depend on, in a line."""
    import PIL
    import tensorflow as tf

    versions = [f"TensorFlow {tf.__version__}", f"Pillow {PIL.__version__}"]
    return machine.describe(*versions, *([peer.VERSIONS] if peer else []))


def _measure(setting: Setting, effort: Effort) -> dict[str, list[float]]:
    """Images/s of each contender in each round."""
    rates: dict[str, list[float]] = {name: [] for name in setting.contenders}
    for number, (name, opened) in itertools.product(range(effort.repeats), setting.contenders.items()):
        batches = _per_second(opened, effort.seconds)
        gc.collect()  # closes it
        rates[name].append(batches * setting.spec.batch_size)
        say(f"{setting.name}, round {number + 1} of {effort.repeats}: {name}: {rates[name][-1]:,.0f} images/s")
    return rates


def _per_second(opened: Callable[[], Iterator[Any]], seconds: float) -> float:
    """Batches per second, once nothing is left of what was made ahead: two batches per worker in the peer."""
    batches = opened()
    next(batches)
    for duration, least in ((seconds / 3, 4 * cores()), (seconds, 1)):
        count, begin = 0, time.perf_counter()
        while (now := time.perf_counter()) - begin < duration or count < least:
            next(batches)
            count += 1
        rate = count / (now - begin) if now > begin else 0.0
    return rate


def _print_rates(rates: Mapping[str, list[float]]) -> None:
    print("| stage | images/s | least..greatest | per core | ms per image and core |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, values in rates.items():
        middle = statistics.median(values)
        spread = f"{min(values):,.0f}..{max(values):,.0f}"
        print(f"| {name} | {middle:,.0f} | {spread} | {middle / cores():,.0f} | {1000 * cores() / middle:.3f} |")


def _print_ratios(rates: Mapping[str, list[float]], setting: Setting, goal: float) -> None:
    pairs = [(ours, theirs) for ours, theirs in setting.pairs if theirs in rates]
    if not pairs:
        print(f"\n{_NO_PEER}", flush=True)
        return
    print(f"\n{_ABOUT_PEER}\n")
    print(f"| here | there | images/s per core, here : there | goal {goal:g} |")
    print("| --- | --- | ---: | --- |")
    for ours, theirs in pairs:
        ratio = statistics.median(rates[ours]) / statistics.median(rates[theirs])
        rounds = [mine / other for mine, other in zip(rates[ours], rates[theirs], strict=True)]
        met = "met" if ratio >= goal else "missed"
        print(f"| {ours} | {theirs} | {ratio:.2f} ({min(rounds):.2f}..{max(rounds):.2f}) | {met} |", flush=True)


def _print_waiting(setting: Setting, count: int, delivered: float) -> None:
    """Times training steps with the real input, and with one batch again and again.

    Args:
      setting: says which network, and its input.
      count: steps that are timed.
      delivered: images/s of the input alone.
    """
    name, batch_size = setting.spec.model.name, setting.spec.batch_size
    say(f"{setting.name}: {count} training steps of {name}")
    batches = pipeline.train_batches(setting.source, setting.spec.data, batch_size=batch_size, seed=0, start_step=0)
    loop, same = _training_loop(setting), itertools.repeat(next(batches))
    loop(same, 1)  # compiles
    alone, _ = loop(same, count)
    loop(batches, _UNTIMED_STEPS)
    step, waiting = loop(batches, count)
    print(
        f"\nTraining steps of {name} on this device; alone = with one batch again and again. "
        f"On a CPU, step and input share the cores.\n\n"
        f"| step, s | waiting for the next batch, s | share | step alone, s | images/s that it takes alone | "
        f"that the input delivers alone |\n| ---: | ---: | ---: | ---: | ---: | ---: |\n"
        f"| {step:.4f} | {waiting:.4f} | {waiting / step:.1%} | {alone:.4f} | {batch_size / alone:,.0f} | "
        f"{delivered:,.0f} |",
        flush=True,
    )


def _training_loop(setting: Setting) -> Callable[[Iterator[Any], int], tuple[float, float]]:
    """Returns the function from batches and a number of steps to the seconds of a step, and of these in `next`.

    The order of operations is that of the training loop.
    """
    spec, mesh, source = setting.spec, sharding.make_mesh(), setting.source
    epoch = source.num_examples // spec.batch_size
    model = build_network(spec.model)
    schedule = schedules.make_schedule(
        spec.optim, batch_size=spec.batch_size, epochs=spec.epochs, steps_per_epoch=epoch
    )
    optimizer = optimizers.make_optimizer(spec.optim, schedule)
    state = steps.init_state(model, optimizer, image_size=spec.data.image_size, seed=0, mesh=mesh)
    train_step = steps.make_train_step(
        model, optimizer, schedule, spec, steps_per_epoch=epoch, statistics=source.statistics, mesh=mesh
    )

    def loop(batches: Iterator[Any], count: int) -> tuple[float, float]:
        nonlocal state
        waiting, begin, window = 0.0, time.perf_counter(), []
        for _ in range(count):
            before = time.perf_counter()
            batch = next(batches)
            waiting += time.perf_counter() - before
            state, sums = train_step(state, sharding.to_global(batch, mesh))
            window.append(sums)
            if len(window) > IN_FLIGHT:
                jax.block_until_ready(window[-1 - IN_FLIGHT])
        jax.block_until_ready(state)
        return (time.perf_counter() - begin) / count, waiting / count

    return loop
