"""The gradient of a batch: in one piece, in parts one after the other, and uphill of the parameters (SAM)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from skipnet_jax.optim.norm import global_norm
from skipnet_jax.training import objectives

Apply = Callable[..., Any]  # as of `nn.Module.apply`, in training: (variables, images, rngs=) -> (logits, updates)

SAM_EPSILON = 1e-12


class Pass(NamedTuple):
    """What a pass forward and backward over a batch gives.

    Args:
      grads: of the mean loss.
      batch_stats: running statistics after it.
      losses: [b], of each example, in nats.
      logits: [b, c].
    """

    grads: PyTree
    batch_stats: PyTree
    losses: Array
    logits: Array


def of_batch(
    apply: Apply,
    params: PyTree,
    batch_stats: PyTree,
    images: Float[Array, "b h w 3"],
    targets: Float[Array, "b c"],
    key: PRNGKeyArray,
) -> Pass:
    """Gradient of the mean over the rows of the batch. A row with targets of zero adds nothing, but is a row.

    Args:
      apply: the network.
      images: normalised.
      targets: distributions over the classes.
      key: of the network's noise.
    """

    def mean_loss(params: PyTree) -> tuple[Float[Array, ""], tuple[PyTree, Float[Array, "b"], Float[Array, "b c"]]]:
        logits, updates = apply({"params": params, "batch_stats": batch_stats}, images, rngs={"dropout": key})
        losses = objectives.cross_entropy(logits, targets)
        return jnp.mean(losses), (updates.get("batch_stats", {}), losses, logits)

    grads, rest = jax.grad(mean_loss, has_aux=True)(params)
    return Pass(grads, *rest)


def in_parts(
    parts: int,
    apply: Apply,
    params: PyTree,
    batch_stats: PyTree,
    images: Float[Array, "b h w 3"],
    targets: Float[Array, "b c"],
    key: PRNGKeyArray,
) -> Pass:
    """The same gradient with the memory of a part of the batch: the parts take turns, and their gradients add up.

    It is that of the whole batch for every network without batch norm. Batch norms normalise within a part, and their
    running statistics move once per part. Noise differs from part to part.

    Args:
      parts: a divisor of the batch; 1 = all at once.
    """
    if parts == 1:
        return of_batch(apply, params, batch_stats, images, targets, key)

    # Part i is the rows i, i + parts, i + 2 parts ... A device holds neighbouring rows, so every part has some of each
    # device's own, and nothing travels; with neighbouring rows a part would be that of a few devices.
    def split(rows: Shaped[Array, "b *row"]) -> Shaped[Array, "parts _rows *row"]:
        return rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1)

    def join(rows: Shaped[Array, "parts _rows *row"]) -> Shaped[Array, "b *row"]:
        return rows.swapaxes(0, 1).reshape(-1, *rows.shape[2:])

    def add(so_far: tuple[PyTree, PyTree], part: tuple[Array, Array, Array]) -> tuple[tuple[PyTree, PyTree], Any]:
        grads, batch_stats = so_far
        i, images, targets = part
        one = of_batch(apply, params, batch_stats, images, targets, jax.random.fold_in(key, i))
        return (optax.tree.add(grads, one.grads), one.batch_stats), (one.losses, one.logits)

    start = (optax.tree.zeros_like(params), batch_stats)
    (total, batch_stats), (losses, logits) = jax.lax.scan(
        add, start, (jnp.arange(parts), split(images), split(targets))
    )
    return Pass(optax.tree.scale(1 / parts, total), batch_stats, join(losses), join(logits))


def uphill(params: PyTree, grads: PyTree, rho: float) -> PyTree:
    """Where SAM takes its gradient: a step of length rho in the direction in which the loss grows fastest.

    Optax's own SAM (`optax.contrib.sam`) makes this step too, but knows nothing of running statistics, which move
    in both passes.

    Args:
      grads: at `params`; bare, without weight decay.
      rho: length of the step.

    Source: Foret et al., Sharpness-Aware Minimization (ICLR 2021), equation 2.
    """
    return optax.tree.add_scale(params, rho / (global_norm(grads) + SAM_EPSILON), grads)
