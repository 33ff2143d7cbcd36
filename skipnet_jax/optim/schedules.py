"""Learning rates over a run."""

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from skipnet_jax.specs import OptimSpec

Rates = Float[np.ndarray, "n"]


def make_schedule(spec: OptimSpec, *, batch_size: int, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """The published curves: a cosine, an exponential, a constant, with a warm-up; constant within an epoch, or not.

    It is a table, computed in float64 on the host: the same numbers on every device, and no cosine in float32. By
    epoch it has one entry per epoch, by step one per step: 4 bytes each on the device, 1.5 MB for the longest
    published run.

    Args:
      spec: base rate and its scaling, curve, unit, warm-up in epochs, final rate.
      batch_size: training examples per step, for the linear scaling.
      epochs: length of the run. The final rate is the limit at its end, so the last epoch runs a little above it.
      steps_per_epoch: floor(training examples / batch size).

    Returns:
      Learning rate at a step (0-based); beyond the end that of the last one.

    Raises:
      ValueError: an epoch without a step.

    Source: Loshchilov and Hutter, SGDR (ICLR 2017), without restarts; the warm-up factor (e + 1) / (W + 1) of epoch
      e < W is that of the code behind the published tables; linear scaling: Goyal et al., Accurate, Large Minibatch
      SGD (2017), section 2.1.
    """
    if steps_per_epoch < 1:
        raise ValueError(
            f"steps per epoch: got {steps_per_epoch}, expected at least 1: the training set is smaller than one batch. "
            f"Lower --config.batch_size."
        )
    scale = batch_size / spec.lr_batch_size if spec.lr_scale == "linear" else 1.0
    steps_per_entry = {"epoch": steps_per_epoch, "step": 1}[spec.schedule_unit]
    epoch = np.arange(0, epochs * steps_per_epoch, steps_per_entry) / steps_per_epoch
    rates = CURVES[spec.schedule](epoch / epochs, spec.lr * scale, spec.last_lr * scale)
    if spec.schedule != "constant":
        rates = rates * np.minimum(1, (epoch + 1) / (spec.warmup_epochs + 1))

    def schedule(step: Int[Array, ""] | int) -> Float[Array, ""]:
        return jnp.take(jnp.asarray(rates), step // steps_per_entry, mode="clip")

    return schedule


def _cosine(share: Rates, base: float, last: float) -> Rates:
    return last + (base - last) * (1 + np.cos(np.pi * share)) / 2


def _exponential(share: Rates, base: float, last: float) -> Rates:
    return base * ((last or 0.01 * base) / base) ** share


def _constant(share: Rates, base: float, last: float) -> Rates:
    return np.full_like(share, base)


# Share of the run that is done (0..1), base rate, final rate (0 = the curve's own) -> rate.
CURVES = {"cosine": _cosine, "exponential": _exponential, "constant": _constant}
