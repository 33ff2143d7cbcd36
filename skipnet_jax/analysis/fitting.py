"""Looks for changes that make a run fit: a smaller batch, rematerialisation, a larger slice. Each is compiled."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from skipnet_jax.analysis import chips, step_memory
from skipnet_jax.analysis.step_plans import Plan
from skipnet_jax.errors import UserError
from skipnet_jax.specs import TrainSpec

MOST_TRIES = 6  # programs to compile; each may take minutes
_MARGIN = 1.25  # times the memory: a larger prediction is not worth compiling

Planner = Callable[[TrainSpec, str, int | None], Plan]


@dataclasses.dataclass(frozen=True)
class Fit:
    """A change that makes a run fit, as compiled.

    Args:
      changes: field of the config, or "topology", -> its new value.
      plan: of the run with the change.
    """

    changes: Mapping[str, Any]
    plan: Plan


class _Search:
    """Compiles changes of a run until it has compiled enough."""

    def __init__(self, spec: TrainSpec, plan: Plan, chips_used: int | None, compile_plan: Planner) -> None:
        self._spec, self._plan, self._chips, self._compile = spec, plan, chips_used, compile_plan
        self._left = MOST_TRIES

    def attempt(self, changes: Mapping[str, Any]) -> Plan | None:
        """The plan with these changes; None if they break another rule, or after `MOST_TRIES` plans."""
        if not self._left:
            return None
        try:
            plan = self._compile(_apply(self._spec, changes), changes.get("topology", self._plan.topology), self._chips)
        except UserError:  # such as groups that no longer divide the batch
            return None
        self._left -= 1
        return plan

    def smaller(self, changes: Mapping[str, Any]) -> Fit | None:
        """These changes, with the batches halved until the run fits; None if it does not."""
        changes, plan = dict(changes), self._plan
        while halves := _halve(_apply(self._spec, changes), plan):
            changes |= halves
            tried = self.attempt(changes)
            if tried and tried.fits:
                return Fit(changes, tried)
            plan = tried or plan
            if not self._left:
                break
        return None


def find_fits(spec: TrainSpec, plan: Plan, chips_used: int | None, compile_plan: Planner) -> list[Fit]:
    """Compiles changes of a run that does not fit, and returns those that fit: at most one of each kind.

    Args:
      compile_plan: plans a spec on a number of a topology's chips.
    """
    search, fits = _Search(spec, plan, chips_used, compile_plan), []
    if not spec.model.remat and plan.memory["total"] > plan.memory["available"]:
        changes = {"model.remat": True}
        tried = search.attempt(changes)
        if tried and tried.fits:
            fits.append(Fit(changes, tried))
    smaller = search.smaller({})
    if smaller:
        fits.append(smaller)
    for name in _larger(plan, smaller) if chips_used is None else ():
        tried = search.attempt({"topology": name})
        if tried and tried.fits:
            return [*fits, Fit({"topology": name}, tried)]
    return fits


def _apply(spec: TrainSpec, changes: Mapping[str, Any]) -> TrainSpec:
    own = {name: value for name, value in changes.items() if name in ("batch_size", "eval_batch_size")}
    model = dataclasses.replace(spec.model, remat=changes.get("model.remat", spec.model.remat))
    return dataclasses.replace(spec, model=model, **own)


def _halve(spec: TrainSpec, plan: Plan) -> dict[str, int]:
    """Halves each batch that is too large until it may fit, by the memory that the plan needs per example."""
    memory, halves = plan.memory, {}
    kept = sum(memory[kind] for kind in step_memory.KEPT)
    sizes = {"batch_size": (spec.batch_size, "total"), "eval_batch_size": (spec.eval_batch_size, "evaluation")}
    for field, (size, what) in sizes.items():
        moving = memory[what] - kept
        while kept + moving > (_MARGIN if field in halves else 1) * memory["available"]:
            if size % 2 or size // 2 < plan.devices:
                return {}
            size, moving = size // 2, moving // 2
            halves[field] = size
    return halves


def _larger(plan: Plan, smaller: Fit | None) -> list[str]:
    """Larger slices on which a device's share of the batch is at most the share that is known to fit."""
    share = smaller.plan.batch_size / smaller.plan.devices if smaller else 0.9 * plan.batch_size / plan.devices
    slices = {name: chips.chips_of(name.partition(":")[2]) for name in chips.larger_slices(plan.topology)}
    devices = {name: plan.devices // plan.chips * count for name, count in slices.items()}
    return [name for name, n in devices.items() if plan.batch_size % n == 0 and plan.batch_size / n <= share]
