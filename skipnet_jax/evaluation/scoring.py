"""Exact scores: every example counts once, whatever the batch size and the number of devices."""

import operator
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from jax.sharding import Mesh
from jaxtyping import PyTree

from skipnet_jax.data import pipeline, sources
from skipnet_jax.specs import TrainSpec
from skipnet_jax.training import sharding, steps
from skipnet_jax.training.sums import IN_FLIGHT, means

MEANS = {"loss": "loss", "accuracy": "correct", "top5_accuracy": "correct_top5"}  # name of a mean: of its sum


class Tally:
    """Adds up the details of batches, on the device: those of ImageNet are a million numbers each time.

    Attributes:
      total: of all batches so far, as `objectives.details` has them for one; None before the first.
    """

    def __init__(self) -> None:
        self.total: dict[str, Any] | None = None

    def add(self, details: dict[str, Any]) -> None:
        """One more batch."""
        self.total = details if self.total is None else jax.tree.map(operator.add, self.total, details)


def evaluate(
    eval_step: Callable[[dict[str, PyTree], steps.Batch], dict[str, PyTree]],
    variables: dict[str, PyTree],
    batches: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
    *,
    check: Callable[[], None] | None = None,
    tally: Tally | None = None,
) -> dict[str, float | int]:
    """Scores a network on all batches.

    The host is a few batches ahead, so that the device never waits, but not so many that they fill its memory; numbers
    are fetched at the end.

    Args:
      eval_step: of `steps.make_eval_step`.
      variables: "params" and "batch_stats" of the network.
      batches: of `pipeline.eval_batches`, this host's share.
      check: called before each batch; may raise, to break off.
      tally: takes the details, where the step gives any; None = they are dropped.

    Returns:
      "loss" (mean cross entropy, nats), "accuracy" and "top5_accuracy" (0..1), "count" (examples).
    """
    [results] = _evaluate_all(eval_step, [variables], batches, mesh, check=check, tally=tally)
    return results


def evaluate_state(
    eval_step: Callable[[dict[str, PyTree], steps.Batch], dict[str, PyTree]],
    state: steps.TrainState,
    source: sources.Source,
    spec: TrainSpec,
    mesh: Mesh,
    *,
    check: Callable[[], None] | None = None,
    tally: Tally | None = None,
) -> dict[str, float | int]:
    """Scores a network on a whole split, and beside it its moving average where there is one, in one pass.

    Args:
      eval_step: of `steps.make_eval_step`.
      state: with "params", "batch_stats" and "average".
      source: the split.
      spec: says the batch size.
      check: as for `evaluate`.
      tally: as for `evaluate`; takes the details of the average where there is one, by which the best checkpoint is
        chosen too.

    Returns:
      Those of `evaluate`; the average's are called "average_loss" and so on.
    """
    networks = [state.variables, *([state.average] if state.average else [])]
    results, *averages = _evaluate_all(eval_step, networks, batches(source, spec, mesh), mesh, check=check, tally=tally)
    return results | {f"average_{name}": averaged[name] for averaged in averages for name in MEANS}


def batches(source: sources.Source, spec: TrainSpec, mesh: Mesh) -> Iterable[dict[str, np.ndarray]]:
    """Every example of the source once, as this host's share of the batches, with a bar on a terminal.

    The batch size is rounded up to a multiple of the number of devices; no result depends on it.
    """
    batch_size = -(-spec.eval_batch_size // mesh.size) * mesh.size
    batches = pipeline.eval_batches(
        source,
        spec.data,
        batch_size=batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    bar = tqdm.tqdm(
        batches,
        desc=f"{source.name} at {spec.data.image_size} px",
        total=-(-source.num_examples // batch_size),
        leave=False,
        disable=jax.process_index() > 0 or not sys.stderr.isatty(),
    )
    return iter(bar)


def summary(results: Mapping[str, Any]) -> str:
    """Results of `evaluate` in words."""
    correct = round(results["accuracy"] * results["count"])
    average = f"; moving average {results['average_accuracy']:.2%}" if "average_accuracy" in results else ""
    return (
        f"test accuracy {results['accuracy']:.2%} ({correct} of {results['count']} images), "
        f"top-5 {results['top5_accuracy']:.2%}, loss {results['loss']:.4f}{average}"
    )


def _evaluate_all(
    eval_step: Callable[[dict[str, PyTree], steps.Batch], dict[str, PyTree]],
    networks: Sequence[dict[str, PyTree]],
    batches: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
    *,
    check: Callable[[], None] | None,
    tally: Tally | None,
) -> list[dict[str, float | int]]:
    """`evaluate` for several networks on the same batches, each of which is read and decoded once.

    The tally takes the details of the last network.
    """
    sums: list[list[dict[str, PyTree]]] = [[] for _ in networks]
    for batch in batches:
        if check is not None:
            check()
        images = sharding.to_global(batch, mesh)
        for variables, found in zip(networks, sums, strict=True):
            found.append(eval_step(variables, images))
            details = found[-1].pop("details", None)
        if tally is not None and details is not None:
            tally.add(details)
        if len(sums[-1]) > IN_FLIGHT:
            jax.block_until_ready(sums[-1][-1 - IN_FLIGHT])
    fetched = jax.device_get(sums)
    return [means(found, MEANS) | {"count": int(sum(batch["count"] for batch in found))} for found in fetched]
