"""Scores a run's chosen checkpoint on the test images."""

from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from skipnet_jax.data import sources
from skipnet_jax.evaluation import scoring
from skipnet_jax.models import build_network
from skipnet_jax.runs import weights
from skipnet_jax.runs import workdir as workdirs
from skipnet_jax.specs import TrainSpec
from skipnet_jax.training import sharding, steps


def test_once(workdir: epath.Path, spec: TrainSpec, mesh: Mesh) -> dict[str, Any]:
    """Evaluates the best checkpoint, chosen by a hold-out, on the test images, and adds the record to results.json.

    If an earlier call did so already, returns its record. Every host must call this.

    Returns:
      A record as `evaluate.evaluate_workdir` makes it; empty if there are no test images beside the hold-out.
    """
    split = sources.load(spec.data, "test")
    if split.held_out:
        return {}
    state = load_state(workdir, "best", mesh)
    record = describe(spec, workdir, state.step, flip=False)
    for earlier in workdirs.read_results(workdir):
        if record.items() <= earlier.items():
            return earlier
    eval_step = steps.make_eval_step(
        build_network(spec.model), statistics=split.statistics, mesh=mesh, classes=split.classes
    )
    results, _ = scoring.evaluate_state(eval_step, state, split, spec, mesh)
    record |= results
    if jax.process_index() == 0:
        workdirs.add_results(workdir, record)
    return record


def describe(spec: TrainSpec, workdir: epath.Path, step: int, *, flip: bool) -> dict[str, Any]:
    """The fields of a record in results.json that say what has been evaluated, and how."""
    return {
        "model": spec.model.name,
        "data": spec.data.name,
        "image_size": spec.data.image_size,
        "eval_classes": spec.data.eval_classes,
        "split": spec.data.test_split or "test",
        "flip": flip,
        "checkpoint": str(workdir / workdirs.CHECKPOINTS / str(step)),
        "step": step,
    }


def load_state(workdir: epath.Path, which: str, mesh: Mesh) -> steps.TrainState:
    """Loads what evaluation needs of a checkpoint: the network, and its moving average if the run keeps one."""
    everywhere = sharding.replicated(mesh)
    network = weights.load(workdir, which, averaged=False, sharding=everywhere)
    average = {}
    if network.spec.ema_decay:
        average = weights.load(workdir, str(network.step), averaged=True, sharding=everywhere).variables
    return steps.TrainState(step=network.step, opt_state={}, average=average, **network.variables)
