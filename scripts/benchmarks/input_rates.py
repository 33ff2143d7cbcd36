"""Times the input pipeline by stage, beside a PyTorch DataLoader, and how long a training step waits for it.

Everything runs in one process and in alternation. In each round every contender is opened, warmed up until the batches
that it prefetched while idle are used up, timed, and closed again, so that none works while another is timed.
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

from scripts.benchmarks import machine, tables
from scripts.benchmarks.input_stages import Setting, cifar, imagenet
from scripts.benchmarks.machine import cores, say
from skipnet_jax.analysis import input_records
from skipnet_jax.data import pipeline
from skipnet_jax.models import build_network
from skipnet_jax.training import run_steps, sharding, steps

_UNTIMED_STEPS = 10  # more than the pipeline prefetched meanwhile
_NO_PEER = 'No comparison: PyTorch and torchvision are not installed. Run: pip install -e ".[peer]"'
_ABOUT_PEER = (
    "The DataLoader has a worker per core, decodes with Pillow, augments with torchvision and normalises on the host, "
    "as its users do. Here the device normalises, so the DataLoader is timed without Normalize too. Each ratio is of "
    "the medians; brackets hold the minimum and maximum over the rounds.\n"
)


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure.

    Args:
      seconds: per timed piece.
      steps: timed training steps; 0 = none.
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
    """Prints Markdown tables, and remembers for `--mode=plan` what the whole input delivers.

    Args:
      paths: "imagenet", "cifar" or both.
      images: number of JPEGs.
      folder: keeps the JPEGs.
      networks: path -> network to train.
      batch_sizes: path -> examples per batch.
    """
    import PIL
    import tensorflow as tf

    for kind in ("GPU", "TPU"):  # as in training: TensorFlow only reads data
        tf.config.set_visible_devices([], kind)
    try:
        from scripts.benchmarks import peer_loader as peer
    except ModuleNotFoundError:
        peer = None
    versions = [f"TensorFlow {tf.__version__}", f"Pillow {PIL.__version__}", *([peer.VERSIONS] if peer else [])]
    print(machine.describe(*versions), flush=True)
    for path in paths:
        if path == "imagenet":
            setting = imagenet(folder / f"{images}-images", images, networks[path], batch_sizes[path], peer)
        else:
            setting = cifar(networks[path], batch_sizes[path], peer)
        print(f"\n### {setting.title}\n")
        rates = _measure(path, setting, effort)
        input_records.record(path, statistics.median(rates[setting.delivered]), cores())
        _print_rates(rates)
        _print_ratios(rates, setting)
        if effort.steps:
            say(f"{path}: {effort.steps} training steps of {networks[path]}")
            _print_waiting(setting, effort.steps, statistics.median(rates[setting.delivered]))


def _measure(path: str, setting: Setting, effort: Effort) -> dict[str, list[float]]:
    """Images per second of each contender in each round."""
    rates: dict[str, list[float]] = {name: [] for name in setting.contenders}
    for number, (name, opened) in itertools.product(range(effort.repeats), setting.contenders.items()):
        batches = _per_second(opened, effort.seconds)
        gc.collect()  # closes the contender
        rates[name].append(batches * setting.spec.batch_size)
        say(f"{path}, round {number + 1} of {effort.repeats}: {name}: {rates[name][-1]:,.0f} images/s")
    return rates


def _per_second(opened: Callable[[], Iterator[Any]], seconds: float) -> float:
    """Batches per second, after the prefetched ones are used up: the peer prefetches two per worker."""
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
    rows = []
    for name, values in rates.items():
        median, spread = statistics.median(values), f"{min(values):,.0f}..{max(values):,.0f}"
        rows.append([name, f"{median:,.0f}", spread, f"{median / cores():,.0f}", f"{1000 * cores() / median:.3f}"])
    titles = ["stage", "images/s", "min..max", "per core", "ms per image and core"]
    tables.print_table(titles, rows, text_columns=1)


def _print_ratios(rates: Mapping[str, list[float]], setting: Setting) -> None:
    if not setting.pairs:
        print(f"\n{_NO_PEER}", flush=True)
        return
    print(f"\n{_ABOUT_PEER}")
    rows = []
    for ours, theirs in setting.pairs:
        ratio = statistics.median(rates[ours]) / statistics.median(rates[theirs])
        rounds = [mine / other for mine, other in zip(rates[ours], rates[theirs], strict=True)]
        met = "met" if ratio >= setting.goal else "missed"
        rows.append([ours, theirs, met, f"{ratio:.2f} ({min(rounds):.2f}..{max(rounds):.2f})"])
    titles = ["here", "PyTorch", f"goal {setting.goal:g}", "images/s per core, here : PyTorch"]
    tables.print_table(titles, rows, text_columns=3)


def _print_waiting(setting: Setting, count: int, delivered: float) -> None:
    """Times training steps with the real input, and with the same batch again and again.

    Args:
      count: timed steps.
      delivered: images per second of the input alone.
    """
    name, batch_size = setting.spec.model.name, setting.spec.batch_size
    batches = pipeline.train_batches(setting.source, setting.spec.data, batch_size=batch_size, seed=0, start_step=0)
    loop, same = _training_loop(setting), itertools.repeat(next(batches))
    loop(same, 1)  # compiles
    alone, _ = loop(same, count)
    loop(batches, _UNTIMED_STEPS)
    step, waiting = loop(batches, count)
    print(
        f"\nTraining steps of {name} on this device; alone = with the same batch again and again. "
        f"On a CPU, step and input share the cores.\n"
    )
    titles = ["step, s", "waiting for the next batch, s", "share", "step alone, s"]
    titles += ["images/s of the step alone", "images/s of the input alone"]
    row = [f"{step:.4f}", f"{waiting:.4f}", f"{waiting / step:.1%}", f"{alone:.4f}"]
    row += [f"{batch_size / alone:,.0f}", f"{delivered:,.0f}"]
    tables.print_table(titles, [row], text_columns=0)


def _training_loop(setting: Setting) -> Callable[[Iterator[Any], int], tuple[float, float]]:
    """Returns a function (batches, number of steps) -> (seconds per step, seconds per step in `next`).

    The order of operations is the training loop's.
    """
    spec, mesh, source = setting.spec, sharding.make_mesh(), setting.source
    epoch = spec.steps_per_epoch(source.num_examples)
    model = build_network(spec.model)
    made = run_steps.make_run_steps(
        model, spec, steps_per_epoch=epoch, statistics=source.statistics, mesh=mesh, classes=source.classes
    )
    state = steps.init_state(model, made.optimizer, image_size=spec.data.image_size, seed=0, mesh=mesh)

    def loop(batches: Iterator[Any], count: int) -> tuple[float, float]:
        nonlocal state
        waiting, begin, window = 0.0, time.perf_counter(), []
        for _ in range(count):
            before = time.perf_counter()
            batch = next(batches)
            waiting += time.perf_counter() - before
            state, sums = made.train_step(state, sharding.to_global(batch, mesh))
            window.append(sums)
            if len(window) > steps.IN_FLIGHT:
                jax.block_until_ready(window[-1 - steps.IN_FLIGHT])
        jax.block_until_ready(state)
        return (time.perf_counter() - begin) / count, waiting / count

    return loop
