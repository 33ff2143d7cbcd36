"""Training steps by XLA:TPU's own estimate, with the operations that a TPU gets and with the plain formulas.

No TPU is needed: libtpu compiles for one on any x86-64 Linux machine. The estimate comes from a model of the chip, not
from a clock.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence

import jax

from scripts.benchmarks import linen_resnet
from scripts.benchmarks.contenders import Setting, plain_spec
from skipnet_jax.analysis import program_costs, step_plans, topologies
from skipnet_jax.data.statistics import IMAGENET
from skipnet_jax.models import build_network, ops
from skipnet_jax.training import run_steps, sharding

OURS, PLAIN, LINEN = "ours", "plain formulas", "flax.linen's layers"


def run(models: Sequence[str], *, setting: Setting, topology: str, plain: bool, linen: bool) -> None:
    """Prints a table line by line; each line takes minutes to compile.

    Args:
      topology: a slice; the step uses one of its chips.
      plain: compile each network with the plain formulas too.
      linen: first compile a ResNet-50 of flax.linen's layers alone.
    """
    print(f"One chip of {topology}: batch {setting.batch}, {setting.dtype}.\n")
    print("| network | operations | Mcycles | GB to and from memory | s to compile |")
    print("| --- | --- | ---: | ---: | ---: |", flush=True)
    rows = [("resnet50", LINEN)] if linen else []
    rows += [(name, operations) for name in models for operations in ([OURS, PLAIN] if plain else [OURS])]
    for name, operations in rows:
        begin = time.perf_counter()
        if operations == LINEN:
            costs = compile_linen(setting, topology)
        else:
            costs = compile_step(name, setting, topology, plain=operations == PLAIN)
        numbers = f"{(costs.cycles or 0) / 1e6:.1f} | {costs.bytes / 1e9:.1f} | {time.perf_counter() - begin:.0f}"
        print(f"| {name} | {operations} | {numbers} |", flush=True)


def compile_linen(setting: Setting, topology: str) -> program_costs.Costs:
    """Compiles the training step of `linen_resnet` for one chip."""
    chip = topologies.open_topology(topology, 1)
    size = setting.size_of("resnet50")
    step, shapes = linen_resnet.make_step(setting.batch, size, setting.dtype)
    on_chip = jax.sharding.SingleDeviceSharding(chip.devices[0])
    placed = jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=on_chip), shapes)
    with step_plans.uncached(chip):
        return program_costs.read(step.lower(*placed).compile().as_text() or "")


def compile_step(name: str, setting: Setting, topology: str, *, plain: bool) -> program_costs.Costs:
    """Compiles the training step of a network for one chip."""
    chip = topologies.open_topology(topology, 1)
    spec = plain_spec(name, setting)
    model = build_network(spec.model)
    mesh = sharding.make_mesh(chip.devices)
    made = run_steps.make_run_steps(model, spec, steps_per_epoch=1, statistics=IMAGENET, mesh=mesh)
    state = run_steps.abstract_state(model, made.optimizer, spec.data.image_size, average=False)
    with _plain_formulas() if plain else contextlib.nullcontext(), step_plans.uncached(chip):
        compiled = made.train_step.lower(state, run_steps.abstract_train_batch(spec)).compile()
    return program_costs.read(compiled.as_text() or "")


@contextlib.contextmanager
def _plain_formulas() -> Iterator[None]:
    """Removes the TPU's ways from the table while networks are traced."""
    taken = {operation: ways.pop("tpu") for operation, ways in ops.TABLE.items() if "tpu" in ways}
    jax.clear_caches()  # JAX remembers what it has traced
    try:
        yield
    finally:
        for operation, way in taken.items():
            ops.TABLE[operation]["tpu"] = way
        jax.clear_caches()
