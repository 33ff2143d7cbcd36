"""The gradient of a batch: whole, accumulated over parts of the batch, or at SAM's perturbed parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from skipnet_jax.optim import optimizers
from skipnet_jax.training import objectives

Apply = Callable[..., Any]  # `nn.Module.apply` in training mode: (variables, images, rngs=) -> (logits, updates)

SAM_EPSILON = 1e-12


class Pass(NamedTuple):
    """The result of a forward and backward pass over a batch.

    Args:
      grads: gradient of the mean loss.
      batch_stats: the running statistics after the pass.
      losses: [b], the loss of each example, in nats.
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
    """Computes the gradient of the mean loss. A row whose targets are zero has no loss, but counts in the mean.

    Args:
      images: normalised.
      targets: distributions over the classes.
      key: for dropout and other noise in the network.
    """

    def mean_loss(params: PyTree) -> tuple[Float[Array, ""], tuple[PyTree, Float[Array, "b"], Float[Array, "b c"]]]:
        logits, updates = apply({"params": params, "batch_stats": batch_stats}, images, rngs={"dropout": key})
        losses = objectives.cross_entropy(logits, targets)
        return jnp.mean(losses), (updates.get("batch_stats", {}), losses, logits)

    grads, rest = jax.grad(mean_loss, has_aux=True)(params)
    return Pass(grads, *rest)


def accumulate(
    parts: int,
    apply: Apply,
    params: PyTree,
    batch_stats: PyTree,
    images: Float[Array, "b h w 3"],
    targets: Float[Array, "b c"],
    key: PRNGKeyArray,
) -> Pass:
    """Adds up the gradients of parts of the batch, one after the other, in the memory of one part.

    Without batch norm the result is the gradient of the whole batch. Batch norm normalises within a part and moves its
    running statistics once per part. Each part draws its own noise.

    Args:
      parts: number of parts, a divisor of the batch size. 1 computes the gradient of the whole batch at once.
    """
    if parts == 1:
        return of_batch(apply, params, batch_stats, images, targets, key)

    # Part i has the rows i, i + parts, i + 2 parts and so on. Each device holds consecutive rows, so every device has
    # an equal share of every part and no row moves between devices.
    def split(rows: Shaped[Array, "b *row"]) -> Shaped[Array, "parts _rows *row"]:
        return rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1)

    def join(rows: Shaped[Array, "parts _rows *row"]) -> Shaped[Array, "b *row"]:
        return rows.swapaxes(0, 1).reshape(-1, *rows.shape[2:])

    def add(carry: tuple[PyTree, PyTree], part: tuple[Array, Array, Array]) -> tuple[tuple[PyTree, PyTree], Any]:
        grads, batch_stats = carry
        i, images, targets = part
        one = of_batch(apply, params, batch_stats, images, targets, jax.random.fold_in(key, i))
        return (optax.tree.add(grads, one.grads), one.batch_stats), (one.losses, one.logits)

    start = (optax.tree.zeros_like(params), batch_stats)
    (total, batch_stats), (losses, logits) = jax.lax.scan(
        add, start, (jnp.arange(parts), split(images), split(targets))
    )
    return Pass(optax.tree.scale(1 / parts, total), batch_stats, join(losses), join(logits))


def perturb(params: PyTree, grads: PyTree, rho: float) -> PyTree:
    """Moves the parameters a distance of `rho` along the gradient: SAM takes its second gradient there.

    `optax.contrib.sam` does the same, but cannot update the running statistics in both passes.

    Args:
      grads: the gradient at `params`, without weight decay.

    Source: Foret et al., Sharpness-Aware Minimization (ICLR 2021), equation 2.
    """
    return optax.tree.add_scale(params, rho / (optimizers.global_norm(grads) + SAM_EPSILON), grads)
