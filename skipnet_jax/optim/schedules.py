"""Learning rates over a run."""

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from skipnet_jax.specs import OptimSpec


def cosine_by_epoch(spec: OptimSpec, *, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """The published curve: a cosine with a warm-up, constant within an epoch.

    It is a table with one entry per epoch, computed in float64 on the host: the same numbers on every device, and no
    cosine in float32.

    Args:
      spec: base rate, warm-up in epochs, final rate.
      epochs: length of the run. The final rate is the limit at its end, so the last epoch runs a little above it.
      steps_per_epoch: floor(training examples / batch size).

    Returns:
      Learning rate at a step (0-based); beyond the end that of the last epoch.

    Raises:
      ValueError: an epoch without a step.

    Source: Loshchilov and Hutter, SGDR (ICLR 2017), without restarts; the warm-up factor (e + 1) / (W + 1) of epoch
      e < W is that of the code behind the published tables.
    """
    if steps_per_epoch < 1:
        raise ValueError(
            f"steps per epoch: got {steps_per_epoch}, expected at least 1: the training set is smaller than one batch. "
            f"Lower --config.batch_size."
        )
    epoch = np.arange(epochs)
    cosine = spec.last_lr + (spec.lr - spec.last_lr) * (1 + np.cos(np.pi * epoch / epochs)) / 2
    rates = cosine * np.minimum(1, (epoch + 1) / (spec.warmup_epochs + 1))

    def schedule(step: Int[Array, ""] | int) -> Float[Array, ""]:
        return jnp.take(jnp.asarray(rates), step // steps_per_epoch, mode="clip")

    return schedule
