"""Formats plans as a table for people, with one column per topology."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from skipnet_jax.analysis import input_records, step_memory
from skipnet_jax.analysis.fitting import Fit
from skipnet_jax.analysis.step_plans import Plan
from skipnet_jax.specs import TrainSpec

_GIB = 2**30
_UNKNOWN = "-"
PLACES = 10  # of the model, the most that the table shows
_PROGRAMS = 0.5 * _GIB  # room for the programs themselves, whose size a quick plan does not know
_MEMORY = {  # kind -> how the table names it
    "parameters": "parameters",
    "optimiser": "optimiser",
    "statistics": "batch norm's statistics",
    "average": "moving average",
    "inputs": "inputs, two batches ahead",
    "activations": "activations, gradients",
    "program": "programs",
    "total": "total, training",
    "evaluation": "total, evaluating",
    "available": "available",
}

Row = list[str]


def describe(spec: TrainSpec, images: tuple[int, int], plans: Sequence[Plan], fits: Mapping[str, Sequence[Fit]]) -> str:
    """The whole text: the run, its tables, the changes that make it fit, and notes on the numbers.

    Args:
      images: number of training and of test images.
      fits: topology -> the result of `fitting.find_fits`.
    """
    title = (
        f"{spec.model.name}, {spec.data.image_size} px, batch {spec.batch_size}: {spec.epochs} "
        f"epochs of {images[0]:,} images of {spec.data.name}, {images[1]:,} to evaluate"
    )
    parts = [title, _table(_rows(plans))]
    if any(plan.places for plan in plans):
        parts.append(_table(_place_rows(plans)))
    parts += [_advice(plan, fits.get(plan.topology, ())) for plan in plans if not plan.fits]
    return "\n\n".join([*parts, _notes(spec, plans)])


def _rows(plans: Sequence[Plan]) -> list[Row]:
    def row(name: str, value: Callable[[Plan], str]) -> Row:
        return [name, *map(value, plans)]

    rows = [
        row("", lambda plan: plan.topology),
        row("chips, hosts", lambda plan: f"{plan.chips}, {plan.hosts}"),
        row("computes in", lambda plan: plan.dtype),
        row("fits", lambda plan: "yes" if plan.fits else "NO"),
        row("memory per device, GiB", lambda plan: ""),
    ]
    for kind, text in _MEMORY.items():
        rows.append([f"  {text}", *(f"{plan.memory[kind] / _GIB:.3f}" for plan in plans)])
    rows += [
        row("per step and device", lambda plan: ""),
        row("  GFLOP", lambda plan: _number(plan.flops / 1e9, 1)),
        row("  GB to and from memory", lambda plan: _scaled(plan.hbm_bytes, 1e-9, 2)),
        row("  XLA's estimate, Mcycles", lambda plan: _scaled(plan.estimated_cycles, 1e-6, 2)),
        *_collective_rows(plans),
        row("least ms of a step, by", lambda plan: ""),
        row("  FLOP/s", lambda plan: _scaled(plan.step_bounds["flops"], 1e3, 3)),
        row("  memory bandwidth", lambda plan: _scaled(plan.step_bounds["hbm"], 1e3, 3)),
        row("  links", lambda plan: _scaled(plan.step_bounds["collectives"], 1e3, 3)),
        row("ms of a step", lambda plan: _estimated(plan, plan.step_seconds, 1e3, 2)),
        row("images/s", lambda plan: _estimated(plan, plan.images_per_second, 1, 0, at_least=False)),
        row("images/s for each host to deliver", lambda plan: _scaled(plan.host_images_per_second, 1, 0)),
        row("hours of the whole recipe", lambda plan: _estimated(plan, plan.run_hours, 1, 2)),
        row("chip-hours", lambda plan: _estimated(plan, plan.chip_hours, 1, 1)),
        row("seconds to compile", lambda plan: _number(plan.compile_seconds, 0)),
    ]
    return _without_unknown(rows)


def _without_unknown(rows: Sequence[Row]) -> list[Row]:
    """Leaves out rows whose values are all unknown or zero, and then headings without rows."""
    known = [row for row in rows if set(row[1:]) - {_UNKNOWN, "0.000"}]
    headings = [not any(row[1:]) for row in known]
    return [
        row
        for row, heading, next_ in zip(known, headings, [*known[1:], [""]], strict=True)
        if not heading or next_[0].startswith("  ")
    ]


def _collective_rows(plans: Sequence[Plan]) -> Iterable[Row]:
    kinds = dict.fromkeys(kind for plan in plans for kind in plan.collectives)
    for kind in kinds:
        row = [f"  {kind}: count, MB"]
        for plan in plans:
            traffic = plan.collectives.get(kind)
            row.append(f"{traffic.count}, {traffic.bytes / 1e6:.2f}" if traffic else _UNKNOWN)
        yield row


def _place_rows(plans: Sequence[Plan]) -> list[Row]:
    """The costliest places of the model, by their cost summed over the topologies."""
    estimated = any(plan.estimated_cycles for plan in plans)

    def cost(plan: Plan, name: str) -> float:
        place = plan.places.get(name)
        return (place.cycles / 1e6 if estimated else place.bytes / 1e9) if place else 0.0

    names = dict.fromkeys(name for plan in plans for name in plan.places)
    costliest = sorted(names, key=lambda name: -sum(cost(plan, name) for plan in plans))[:PLACES]
    rows = [[f"costliest places, {'Mcycles' if estimated else 'GB'}", *(plan.topology for plan in plans)]]
    return rows + [[f"  {name}", *(_number(cost(plan, name), 3) for plan in plans)] for name in costliest]


def _advice(plan: Plan, fits: Sequence[Fit]) -> str:
    kind = "by a quick plan" if any(fit.plan.quick for fit in fits) else "as compiled"
    lines = [f"The run does not fit on {plan.topology}. These changes fit, {kind}:"]
    for fit in fits:
        changes = ", ".join(f"{_spell(field)}={_lower(value)}" for field, value in fit.changes.items())
        used = f"{step_memory.most_held(fit.plan.memory) / _GIB:.3f} of {fit.plan.memory['available'] / _GIB:.3f} GiB"
        lines.append(f"  {changes}: {used}{', if the programs fit too' if _is_close(fit.plan) else ''}")
    if not fits:
        lines.append("  none of those tried: remat, smaller batches, larger slices")
    return "\n".join(lines)


def _is_close(plan: Plan) -> bool:
    """Whether the programs themselves may not fit into the memory that a quick plan leaves."""
    return plan.quick and plan.fits and plan.memory["available"] - step_memory.most_held(plan.memory) < _PROGRAMS


def _notes(spec: TrainSpec, plans: Sequence[Plan]) -> str:
    rate = input_records.recorded(spec.data.name)
    if rate:
        delivered = f"{rate.images_per_second:,.0f} images/s on {rate.cores} cores ({rate.date})"
        lines = [f"This machine's input delivered {delivered}."]
    else:
        path = input_records.path_of(spec.data.name)
        lines = [f"This machine's input has not been measured. Run: python -m scripts.benchmarks input --paths={path}"]
    lines += [f"Peaks of {plan.topology}: {plan.source}." for plan in plans if plan.source]
    lines += [
        f"{plan.unestimated_kernels} kernels on {plan.topology} have no estimate, and count as 0."
        for plan in plans
        if plan.unestimated_kernels
    ]
    if any(plan.estimated_cycles for plan in plans):
        lines.append("Times follow XLA's model of the chip: compare them with each other, not with a clock.")
    if any(plan.quick for plan in plans):
        lines.append("A quick plan leaves out XLA's estimate of cycles, and the memory of the programs themselves.")
    lines += [
        f"Little memory is left on {plan.topology}: leave out --quick to learn whether the programs fit too."
        for plan in plans
        if _is_close(plan)
    ]
    if any(plan.step_seconds and plan.estimated_cycles is None for plan in plans):
        lines.append(">= and <= mark bounds: no cycles are estimated there.")
    if any(plan.topology == "cpu" for plan in plans):
        lines.append("A CPU's peak is not known here. To time a step: python -m scripts.benchmarks step")
    return "\n".join(lines)


def _estimated(plan: Plan, value: float | None, factor: int | float, digits: int, *, at_least: bool = True) -> str:
    bound = "" if plan.estimated_cycles is not None else ">= " if at_least else "<= "
    return _UNKNOWN if value is None else bound + _number(value * factor, digits)


def _scaled(value: int | float | None, factor: int | float, digits: int) -> str:
    return _UNKNOWN if value is None else _number(value * factor, digits)


def _number(value: int | float, digits: int) -> str:
    return f"{value:,.{digits}f}"


def _spell(field: str) -> str:
    return f"--{field}" if field == "topology" else f"--config.{field}"


def _lower(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _table(rows: Sequence[Row]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *values in rows:
        cells = [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
