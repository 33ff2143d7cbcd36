"""Compiles a run's steps for devices that this machine need not have, and says what the steps need and cost."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
from jax.experimental.compilation_cache import compilation_cache

from skipnet_jax.analysis import optimised_programs, program_costs, step_memory
from skipnet_jax.analysis.program_costs import Costs, Place, Traffic
from skipnet_jax.analysis.topologies import Topology
from skipnet_jax.models import complexity
from skipnet_jax.specs import Statistics, TrainSpec
from skipnet_jax.training import run_steps, sharding

Progress = Callable[[str], AbstractContextManager[None]]

HOUR = 3600


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled step, per device.

    Args:
      memory: bytes by kind, as `step_memory` names them.
      flops: by XLA's count, or else (also with `accumulate_steps`) by the network's definition; a multiply-add counts
        as 2.
      costs: None for a program that does not fit, so that XLA gives none.
      text: the optimised program, as HLO.
      seconds: to compile it.
    """

    memory: Mapping[str, int]
    flops: float
    costs: Costs | None
    text: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run needs and costs on a topology, per step and device unless stated otherwise.

    Args:
      chips: a chip of TPU v3 is two devices.
      quick: without machine code, and so without estimated cycles and without the memory of the code.
      memory: bytes by kind, "total" while training, "evaluation" (in total), and "available".
      estimated_cycles: by XLA:TPU; None elsewhere.
      places: of the model, the costliest first, by cycles, or else by bytes.
      step_bounds: least seconds for "flops", "hbm" and "collectives" at the published speeds; None = unknown.
      step_seconds: by the estimated cycles, collectives added; without an estimate, the highest of the bounds.
      images_per_second: of all chips, by step_seconds.
      host_images_per_second: that each host's input must deliver for this rate.
      run_hours: of the whole recipe with its evaluations, by step_seconds.
      source: of the chip's peaks.
      programs: file name -> optimised program.
    """

    topology: str
    chips: int
    devices: int
    hosts: int
    device_kind: str
    batch_size: int
    dtype: str
    quick: bool
    fits: bool
    memory: Mapping[str, int]
    flops: float
    hbm_bytes: int | None
    estimated_cycles: int | None
    unestimated_kernels: int
    places: Mapping[str, Place] = dataclasses.field(repr=False)
    step_bounds: Mapping[str, float | None]
    step_seconds: float | None
    images_per_second: float | None
    collectives: Mapping[str, Traffic]
    host_images_per_second: float | None
    run_hours: float | None
    chip_hours: float | None
    compile_seconds: float
    source: str | None
    programs: Mapping[str, str] = dataclasses.field(repr=False)


_NOT_COMPILED = Step(step_memory.NOTHING, 0.0, None, "", 0.0)


def make_plan(
    model: nn.Module,
    spec: TrainSpec,
    topology: Topology,
    *,
    images: tuple[int, int],
    statistics: Statistics,
    progress: Progress,
    quick: bool = False,
) -> Plan:
    """Compiles the training and the evaluation step of a run for a topology.

    Args:
      images: number of training and of test images.
      quick: make no machine code for TPUs; threads go on with it until this process ends.
      progress: takes a text, and returns a context that is open while the described work lasts.

    Raises:
      UserError: the batch cannot be split evenly over the devices, or is larger than the training set.
    """
    mesh = sharding.make_mesh(topology.devices)
    sharding.require_divisible(spec.batch_size, mesh)
    quick = quick and topology.devices[0].platform == "tpu"
    steps_per_epoch = spec.steps_per_epoch(images[0])
    made = run_steps.make_run_steps(model, spec, steps_per_epoch=steps_per_epoch, statistics=statistics, mesh=mesh)
    state = run_steps.abstract_state(model, made.optimizer, spec.data.image_size, average=spec.ema_decay > 0)
    train_batch, eval_batch = run_steps.abstract_train_batch(spec), run_steps.abstract_eval_batch(spec, mesh)
    where = f"{topology.name}: compiling the"
    step = f"training step of {spec.model.name}, batch {spec.batch_size}{', remat' if spec.model.remat else ''}"
    per_image = 2 * _forward_flops(spec)
    with progress(f"{where} {step}"), uncached(topology):
        passes = 6 if spec.optim.name == "sam" else 3  # a backward pass counts as two forward passes
        asked = passes * per_image * spec.batch_size / mesh.size
        train = _compile(made.train_step, state, train_batch, mesh.size, asked, quick)
        if spec.accumulate_steps > 1:  # XLA counts the body of the loop over the parts once
            train = dataclasses.replace(train, flops=asked)
    evaluation = _NOT_COMPILED
    if train.costs:
        with progress(f"{where} evaluation step"), uncached(topology):
            asked = per_image * run_steps.eval_batch_size(spec, mesh) / mesh.size
            evaluation = _compile(made.eval_step, state.variables, eval_batch, mesh.size, asked, quick)
    evaluations = -(-images[1] // run_steps.eval_batch_size(spec, mesh)) * (2 if spec.ema_decay else 1)
    seconds, eval_seconds = (_seconds(step, topology, spec.model.dtype)[0] for step in (train, evaluation))
    hours = None
    if seconds is not None and eval_seconds is not None:
        hours = spec.epochs * (steps_per_epoch * seconds + evaluations * eval_seconds) / HOUR
    return _describe(spec, topology, train, evaluation, hours, quick)


def _forward_flops(spec: TrainSpec) -> int:
    """Multiply-adds of one image, by the network's definition."""
    model = spec.model
    return complexity.count(
        model.name,
        image_size=spec.data.image_size,
        num_classes=model.num_classes,
        gate_reduction=model.gate_reduction,
    ).flops


def _describe(
    spec: TrainSpec, topology: Topology, train: Step, evaluation: Step, hours: float | None, quick: bool
) -> Plan:
    memory = step_memory.add_up(train.memory, evaluation.memory, topology.memory)
    seconds, bounds = _seconds(train, topology, spec.model.dtype)
    rate = spec.batch_size / seconds if seconds else None
    costs = train.costs
    return Plan(
        topology=topology.name,
        chips=topology.chips,
        devices=len(topology.devices),
        hosts=topology.hosts,
        device_kind=topology.devices[0].device_kind,
        batch_size=spec.batch_size,
        dtype=spec.model.dtype,
        quick=quick,
        fits=all((train.costs, evaluation.costs)) and step_memory.most_held(memory) <= topology.memory,
        memory=memory,
        flops=train.flops,
        hbm_bytes=costs.bytes if costs else None,
        estimated_cycles=costs.cycles if costs else None,
        unestimated_kernels=costs.unestimated if costs else 0,
        places=_by_cost(costs),
        step_bounds=bounds,
        step_seconds=seconds,
        images_per_second=rate,
        collectives=costs.collectives if costs else {},
        host_images_per_second=rate / topology.hosts if rate else None,
        run_hours=hours,
        chip_hours=hours * topology.chips if hours is not None else None,
        compile_seconds=train.seconds + evaluation.seconds,
        source=topology.chip.source if topology.chip else None,
        programs={"train.hlo": train.text, "eval.hlo": evaluation.text} if train.costs else {},
    )


def _compile(
    step: Callable[..., Any], state: Any, batch: run_steps.Shapes, devices: int, flops: float, quick: bool
) -> Step:
    """Compiles a step.

    Args:
      flops: per device, by the network's definition; used where XLA counts none, as for GPUs and in quick plans.
    """
    begin = time.perf_counter()
    lowered = step.lower(state, batch)  # type: ignore[attr-defined]
    try:
        if quick:
            program = optimised_programs.optimise(lowered)
            costs = program_costs.read(program.text)
            memory = step_memory.of_optimised(program.memory, costs)
            return Step(memory, flops, costs, program.text, time.perf_counter() - begin)
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        memory = step_memory.of_refused(state, batch, str(error), devices)
        return Step(memory, flops, None, "", time.perf_counter() - begin)
    text = compiled.as_text() or ""
    costs = program_costs.read(text)
    flops = float((compiled.cost_analysis() or {}).get("flops", flops))
    return Step(step_memory.of_program(compiled, costs), flops, costs, text, time.perf_counter() - begin)


@contextlib.contextmanager
def uncached(topology: Topology) -> Iterator[None]:
    """Turns JAX's compilation cache off, which could not load these programs again without their devices."""
    if topology.chip is None:
        yield
        return
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it remembers whether it is in use
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _seconds(step: Step, topology: Topology, dtype: str) -> tuple[float | None, dict[str, float | None]]:
    """Seconds of a step, and their bounds: `Plan.step_seconds` and `Plan.step_bounds`."""
    bounds: dict[str, float | None] = {"flops": None, "hbm": None, "collectives": None}
    chip, costs = topology.chip, step.costs
    if chip is None or costs is None:
        return None, bounds
    sent = sum(traffic.sent for traffic in costs.collectives.values()) / chip.link
    peak = chip.flops.get(dtype)
    bounds = {"flops": step.flops / peak if peak else None, "hbm": costs.bytes / chip.bandwidth, "collectives": sent}
    if costs.cycles is not None and chip.clock:
        return costs.cycles / chip.clock + sent, bounds
    return max(bound for bound in bounds.values() if bound is not None), bounds


def _by_cost(costs: Costs | None) -> dict[str, Place]:
    places = costs.places.items() if costs else ()
    return dict(sorted(places, key=lambda item: (-item[1].cycles, -item[1].bytes)))
