"""Says what a run needs and costs on devices that are not here: `--mode=plan` compiles its steps for them."""

import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from skipnet_jax.analysis import compiler_process, fitting, plan_tables, step_plans, topologies
from skipnet_jax.analysis.step_plans import Plan
from skipnet_jax.data import sizes, statistics
from skipnet_jax.errors import UserError
from skipnet_jax.models import build_network
from skipnet_jax.specs import TrainSpec
from skipnet_jax.training import precision

_TICK = 30  # seconds between signs of life, where stderr is no terminal


def plan_run(
    spec: TrainSpec,
    topologies_wanted: Sequence[str],
    *,
    chips: int | None = None,
    quick: bool = False,
    out: str | None = None,
    output_format: str = "text",
) -> bool:
    """Compiles the steps of a run for each topology, and prints what they need and cost.

    Args:
      topologies_wanted: as for `topologies.open_topology`.
      chips: how many chips of each topology to use, from the first; None = all.
      quick: plan only memory, bytes and collectives of TPUs: without machine code, and so without cycles.
      out: folder for the optimised programs, `train.hlo` and `eval.hlo`; for several topologies, a subfolder each.
      output_format: text = one table; json = a line for each topology.

    Returns:
      Whether the run fits on all topologies.

    Raises:
      UserError: an unknown topology, a compiler that is missing, or a spec that does not fit the data or the devices.
    """
    if not topologies_wanted or len(set(topologies_wanted)) < len(topologies_wanted):
        raise UserError("topology", repr(",".join(topologies_wanted)), "one, or several different ones", "See --help.")
    images = sizes.count_images(spec.data)
    planner = functools.partial(plan_apart, images=images, quick=quick)
    search = functools.partial(_plan_memory, images=images)
    opened = [topologies.open_topology(name, chips) for name in topologies_wanted]  # mistakes first
    plans: list[Plan] = []
    fits: dict[str, Sequence[fitting.Fit]] = {}
    try:
        for topology in opened:
            plan = planner(spec, topology.name, chips)
            if out is not None:
                folder = pathlib.Path(out) / (topology.name.replace(":", "-") if len(opened) > 1 else "")
                _write(folder, plan.programs)
            fits[plan.topology] = [] if plan.fits else fitting.find_fits(spec, plan, chips, search)
            plans.append(plan)
            if output_format == "json":
                print(json.dumps(as_json(plan, fits[plan.topology])), flush=True)
    finally:  # an interrupt or a compiler's crash loses no finished plan
        if output_format == "text" and plans:
            print(plan_tables.describe(spec, images, plans, fits), flush=True)
    return all(plan.fits for plan in plans)


def plan_topology(
    spec: TrainSpec, topology: str, chips: int | None, *, images: tuple[int, int], quick: bool = False
) -> Plan:
    """Compiles the steps of a run for one topology; `plan_run` and `step_plans.make_plan` describe the arguments."""
    devices = topologies.open_topology(topology, chips)
    spec = precision.resolve(spec, devices.devices[0])
    return step_plans.make_plan(
        build_network(spec.model),
        spec,
        devices,
        images=images,
        statistics=statistics.of_data(spec.data.name),
        progress=_progress,
        quick=quick,
    )


def plan_apart(
    spec: TrainSpec, topology: str, chips: int | None, *, images: tuple[int, int], quick: bool = False
) -> Plan:
    """`plan_topology`, in a process of its own unless the topology is this machine's CPUs."""
    compile_plan = functools.partial(plan_topology, spec, topology, chips, images=images, quick=quick)
    return compile_plan() if topology == "cpu" else compiler_process.call(topology, compile_plan)


def _plan_memory(spec: TrainSpec, topology: str, chips: int | None, *, images: tuple[int, int]) -> Plan:
    """Makes a quick plan, or a whole one if this version of XLA:TPU makes no quick ones."""
    try:
        return plan_apart(spec, topology, chips, images=images, quick=True)
    except UserError as error:
        if error.field != "quick":
            raise
        return plan_apart(spec, topology, chips, images=images, quick=False)


def as_json(plan: Plan, fits: Sequence[fitting.Fit]) -> dict[str, Any]:
    """A plan and the changes that would make it fit, without the programs."""
    values = dataclasses.asdict(plan)
    del values["programs"]
    values["places"] = dict(itertools.islice(values["places"].items(), plan_tables.PLACES))
    changes = [{"changes": fit.changes, "memory": fit.plan.memory} for fit in fits]
    return values | {"what_fits": changes}


def _write(folder: pathlib.Path, programs: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in programs.items():
        (folder / name).write_text(text)


@contextlib.contextmanager
def _progress(text: str) -> Iterator[None]:
    """Shows on stderr which work is under way, and how long it has taken."""
    begin, done, terminal = time.perf_counter(), threading.Event(), sys.stderr.isatty()

    def seconds() -> str:
        return f"{text}: {time.perf_counter() - begin:.0f} s"

    def tick() -> None:
        while not done.wait(1 if terminal else _TICK):
            print(
                f"\r{seconds()}" if terminal else seconds(), end="" if terminal else "\n", file=sys.stderr, flush=True
            )

    print(text, end="" if terminal else "\n", file=sys.stderr, flush=True)
    ticking = threading.Thread(target=tick, daemon=True)
    ticking.start()
    try:
        yield
    finally:
        done.set()
        ticking.join()
        print(f"\r{seconds()}" if terminal else seconds(), file=sys.stderr, flush=True)
