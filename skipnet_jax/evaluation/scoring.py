"""Exact scores: every example counts once, whatever the batch size and the number of devices."""

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import tqdm
from jax.sharding import Mesh
from jaxtyping import PyTree, Shaped

from skipnet_jax.data import pipeline, splits
from skipnet_jax.specs import TrainSpec
from skipnet_jax.training import device_memory, objectives, run_steps, sharding, steps

MEANS = {"loss": "loss", "accuracy": "correct", "top5_accuracy": "correct_top5"}  # name of a mean -> its sum

HELD_OUT = "held_out"  # 1 in results on images held out of training to choose the best checkpoint

Predictions = dict[str, Shaped[np.ndarray, "_n"]]


def evaluate_state(
    eval_step: Callable[[dict[str, PyTree], steps.Batch], dict[str, PyTree]],
    state: steps.TrainState,
    split: splits.DataSplit,
    spec: TrainSpec,
    mesh: Mesh,
    *,
    check: Callable[[], None] | None = None,
) -> tuple[dict[str, float | int], Predictions]:
    """Scores a network, and its moving average if there is one, in one pass over a split.

    The host runs a few batches ahead of the device: enough that the device never waits, too few to fill its memory.
    The numbers stay on the device until the end.

    Args:
      state: only "params", "batch_stats" and "average" are used.
      check: called before each batch; may raise to stop the evaluation.

    Returns:
      The results: "loss" (mean cross entropy, nats), "accuracy" and "top5_accuracy" (0..1), "count" (examples); for the
      average also "average_loss", "average_accuracy" and "average_top5_accuracy".
      The predictions, if the step was made with `per_example=True`: what `objectives.predict` returns, for all examples
      that count, on every host. They are the moving average's if there is one, since it decides which checkpoint is the
      best.
    """
    networks = [state.variables, state.average] if state.average else [state.variables]
    outputs: list[list[dict[str, PyTree]]] = [[] for _ in networks]
    with device_memory.explained("eval_batch_size", spec.eval_batch_size, state, mesh):
        for batch in batches(split, spec, mesh):
            if check is not None:
                check()
            images = sharding.to_global(batch, mesh)
            for variables, output in zip(networks, outputs, strict=True):
                output.append(eval_step(variables, images))
            if len(outputs[-1]) > steps.IN_FLIGHT:
                jax.block_until_ready(outputs[-1][-1 - steps.IN_FLIGHT])
        network, *average = jax.device_get(outputs)
    results = objectives.means(network, MEANS) | {"count": int(sum(output["count"] for output in network))}
    if split.held_out:
        results[HELD_OUT] = 1
    for output in average:
        results |= {f"average_{name}": mean for name, mean in objectives.means(output, MEANS).items()}
    return results, _join([output["predictions"] for output in [network, *average][-1] if "predictions" in output])


def batches(split: splits.DataSplit, spec: TrainSpec, mesh: Mesh) -> Iterable[dict[str, np.ndarray]]:
    """Yields this host's share of batches that show every example once, with a progress bar on a terminal."""
    batch_size = run_steps.eval_batch_size(spec, mesh)
    batches = pipeline.eval_batches(
        split,
        spec.data,
        batch_size=batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    bar = tqdm.tqdm(
        batches,
        desc=f"{split.name} at {spec.data.image_size} px",
        total=-(-split.num_examples // batch_size),
        leave=False,
        disable=jax.process_index() > 0 or not sys.stderr.isatty(),
    )
    return iter(bar)


def summary(results: Mapping[str, Any]) -> str:
    """Puts the results of `evaluate_state` into a line of text."""
    correct = round(results["accuracy"] * results["count"])
    average = f"; moving average {results['average_accuracy']:.2%}" if "average_accuracy" in results else ""
    return (
        f"{judge(results)} accuracy {results['accuracy']:.2%} ({correct} of {results['count']} images), "
        f"top-5 {results['top5_accuracy']:.2%}, loss {results['loss']:.4f}{average}"
    )


def judge(results: Mapping[str, Any]) -> str:
    """Which images the results are of, and so which images choose the best checkpoint: test or hold-out."""
    return "hold-out" if results.get(HELD_OUT) else "test"


def _join(batches: list[Predictions]) -> Predictions:
    """Joins the predictions of batches, and leaves out padding."""
    joined = {name: np.concatenate([rows[name] for rows in batches]) for name in (batches[0] if batches else ())}
    return {name: rows[joined["answer"] >= 0] for name, rows in joined.items()}
