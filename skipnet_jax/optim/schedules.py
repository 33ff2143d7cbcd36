"""The learning rate over a run."""

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from skipnet_jax.specs import OptimSpec

Rates = Float[np.ndarray, "n"]


def make_schedule(spec: OptimSpec, *, batch_size: int, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """Builds the published schedules: a cosine or exponential curve with a warm-up, or a constant rate.

    The rates are computed on the host in float64 and looked up in a table, so they are the same on every device. With
    `schedule_unit` epoch the table has one entry per epoch, with step one entry per step. Each entry takes 4 bytes on
    the device; the longest published run needs 1.5 MB.

    Args:
      batch_size: training examples per step, for linear scaling.
      epochs: length of the run. The curve reaches its final rate at the end of the last epoch, so the last epoch still
        runs slightly above it.

    Returns:
      A function from the 0-based step to the learning rate. After the last step the rate stays constant.

    Source: Loshchilov and Hutter, SGDR (ICLR 2017), without restarts; Goyal et al., Accurate, Large Minibatch SGD
      (2017), section 2.1, for linear scaling. The warm-up factor (e + 1) / (W + 1) of epoch e < W is from the code
      behind the published tables.
    """
    scale = batch_size / spec.lr_batch_size if spec.lr_scale == "linear" else 1.0
    steps_per_entry = {"epoch": steps_per_epoch, "step": 1}[spec.schedule_unit]
    epoch = np.arange(0, epochs * steps_per_epoch, steps_per_entry) / steps_per_epoch
    rates = CURVES[spec.schedule](epoch / epochs, spec.lr * scale, spec.last_lr * scale)
    if spec.schedule != "constant":
        rates = rates * np.minimum(1, (epoch + 1) / (spec.warmup_epochs + 1))

    def schedule(step: Int[Array, ""] | int) -> Float[Array, ""]:
        return jnp.take(jnp.asarray(rates), step // steps_per_entry, mode="clip")

    return schedule


def _cosine(progress: Rates, base: float, last: float) -> Rates:
    return last + (base - last) * (1 + np.cos(np.pi * progress)) / 2


def _exponential(progress: Rates, base: float, last: float) -> Rates:
    return base * ((last or 0.01 * base) / base) ** progress


def _constant(progress: Rates, base: float, last: float) -> Rates:
    return np.full_like(progress, base)


# Each curve maps the share of the training that is done (0..1) to a rate, given the base rate and the final rate.
# A final rate of 0 means the curve's own default.
CURVES = {"cosine": _cosine, "exponential": _exponential, "constant": _constant}
