"""One step of training and of evaluation: pure functions, and their compilation over a mesh.

Everything random follows from (seed, step), and every sum runs over the global batch, so a step gives the same numbers
on any number of devices, to rounding.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

from skipnet_jax.models import init_variables
from skipnet_jax.optim.optimizers import global_norm
from skipnet_jax.specs import Statistics, TrainSpec
from skipnet_jax.training import gradients, mixing, nonfinite, objectives, sharding, xla_options

Batch = dict[str, Shaped[Array, "..."]]
Metrics = dict[str, Shaped[Array, ""]]


@flax.struct.dataclass
class TrainState:
    """All that changes during training.

    Args:
      step: number of updates made, int32.
      params: of the network.
      batch_stats: running statistics of batch norms; empty for networks without.
      opt_state: of the optimizer.
      average: moving averages of "params" and "batch_stats", to apply the network with as with `variables`; empty
        where none are kept.
    """

    step: PyTree  # an array in a state; JAX also makes trees of shapes, shardings and NumPy arrays in this form
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    average: PyTree = flax.struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, PyTree]:
        """What the network is applied with."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    image_size: int,
    seed: int,
    mesh: Mesh,
    average: bool = False,
) -> TrainState:
    """A network that has not seen anything, replicated over the mesh.

    Args:
      image_size: side of the square images, in pixels.
      seed: of the initial numbers.
      average: keep a moving average.
    """
    variables = init_variables(model, jax.random.key(seed), image_size)
    return start_from(variables, optimizer, mesh=mesh, average=average)


def start_from(
    variables: Mapping[str, PyTree], optimizer: optax.GradientTransformation, *, mesh: Mesh, average: bool = False
) -> TrainState:
    """The state before the first step of a network with these variables, replicated over the mesh.

    Args:
      variables: "params", and "batch_stats" where the network has any.
      average: keep a moving average, which starts as a copy.
    """
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=jax.jit(optimizer.init)(variables["params"]),  # else one program for every shape
    )
    if average:  # in memory of its own: a buffer that appears twice cannot be donated
        state = dataclasses.replace(state, average=jax.tree.map(jnp.copy, state.variables))
    return sharding.replicate(state, mesh)


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    spec: TrainSpec,
    *,
    steps_per_epoch: int,
    statistics: Statistics,
    mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compiles `train_step` over a mesh. The given state is donated: only the returned one may be used afterwards.

    Args:
      steps_per_epoch: floor(training examples / batch size).
      statistics: what the images are normalised with.

    Raises:
      ValueError: a part of the batch does not divide among the devices.
    """
    part = spec.batch_size // spec.accumulate_steps
    if part % mesh.size:
        raise ValueError(
            f"accumulate_steps: got {spec.accumulate_steps}, which makes parts of {part} examples, expected a multiple "
            f"of the number of devices ({mesh.size}). Lower --config.accumulate_steps or raise --config.batch_size."
        )
    step = functools.partial(
        train_step,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        spec=spec,
        steps_per_epoch=steps_per_epoch,
        statistics=statistics,
    )
    everywhere = sharding.replicated(mesh)
    return jax.jit(
        step,
        in_shardings=(everywhere, sharding.batch_sharding(mesh)),
        out_shardings=everywhere,
        donate_argnums=0,
        compiler_options=xla_options.compiler_options(sharding.platform(mesh)),
    )


def make_eval_step(
    model: nn.Module,
    *,
    statistics: Statistics,
    mesh: Mesh,
    classes: tuple[int, ...] | None = None,
    flip: bool = False,
    per_example: bool = False,
) -> Callable[[dict[str, PyTree], Batch], dict[str, PyTree]]:
    """Compiles `eval_step` over a mesh.

    Args:
      statistics: what the images are normalised with.
      classes, flip, per_example: as for `eval_step`.
    """
    everywhere = sharding.replicated(mesh)
    return jax.jit(
        functools.partial(
            eval_step, model=model, statistics=statistics, classes=classes, flip=flip, per_example=per_example
        ),
        in_shardings=(everywhere, sharding.batch_sharding(mesh)),
        out_shardings=everywhere,
        compiler_options=xla_options.compiler_options(sharding.platform(mesh)),
    )


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    spec: TrainSpec,
    steps_per_epoch: int,
    statistics: Statistics,
) -> tuple[TrainState, Metrics]:
    """Prepares a batch on the device and takes one step with it.

    Args:
      batch: "image" uint8 [b, s, s, 3], "label" int32 [b] (-1 = counts for nothing), and where the recipe has it
        "lighting" float32 [b, 3], offsets of the colours on the scale 0..1.

    Returns:
      The next state, and sums over the batch: "loss", "correct" (against the labels before mixing), "count" (of
      labels), with SAM "loss_uphill"; with "grad_norm" and "learning_rate" of this step. All stay on the device.
      With `on_nonfinite=skip` also "skipped", 1 if the update was left out, and then the sums are 0.
    """
    images, targets, key = prepare(batch, state.step, spec=spec, statistics=statistics)
    progress = state.step // steps_per_epoch / spec.epochs
    next_state, logits, metrics = update(
        state, images, targets, key, model=model, optimizer=optimizer, spec=spec, progress=progress
    )
    labels = batch["label"]
    metrics["correct"] = _count(objectives.topk_correct(logits, labels, 1))
    metrics["count"] = _count(labels >= 0)
    if spec.on_nonfinite == "skip":
        ok = nonfinite.all_finite((next_state, metrics))
        kept = nonfinite.keep_finite(ok, next_state, state)
        next_state = dataclasses.replace(kept, step=next_state.step)
        metrics = nonfinite.without_skipped(ok, metrics)
    metrics["learning_rate"] = schedule(state.step)
    return next_state, metrics


def prepare(
    batch: Batch, step: Int[Array, ""], *, spec: TrainSpec, statistics: Statistics
) -> tuple[Float[Array, "b h w 3"], Float[Array, "b c"], PRNGKeyArray]:
    """What the network sees of a batch: images normalised, erased and mixed, and their targets.

    Args:
      batch: as for `train_step`.
      step: that the batch is for.

    Returns:
      Images, targets, and the key of what else is random in this step.
    """
    mix_key, noise_key = jax.random.split(jax.random.fold_in(jax.random.key(spec.seed), step))
    images = mixing.normalize_images(batch["image"], statistics, jnp.result_type(float), batch.get("lighting"))
    images, targets = mixing.mix(mix_key, images, batch["label"], spec.model.num_classes, spec.mixing)
    return images, targets, noise_key


def update(
    state: TrainState,
    images: Float[Array, "b h w 3"],
    targets: Float[Array, "b c"],
    key: PRNGKeyArray,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    spec: TrainSpec,
    progress: Float[Array, ""] | float = 1.0,
) -> tuple[TrainState, Float[Array, "b c"], Metrics]:
    """One step on images and targets as they are: forward, backward, optimizer, running statistics, average.

    SAM goes forward and backward twice, with the same noise: at the parameters, and uphill of them. The optimizer
    gets the second gradient, and both passes move the running statistics.

    Args:
      images: normalised.
      targets: distributions over the classes, or zeros for an image that has no loss. The mean loss is over all.
      key: of dropout and other noise.
      spec: optimiser, parts of the batch, average.
      progress: share of the run that is done, 0..1, for noise that grows.

    Returns:
      The next state; the logits before the step; "loss" (summed over the batch) and "grad_norm" (of the gradient of
      the mean loss), both before the step; with SAM "loss_uphill".
    """
    apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    if spec.model.drop_block:  # all that depends on it
        apply = functools.partial(apply, progress=progress)

    def run(params: PyTree, batch_stats: PyTree) -> gradients.Pass:
        return gradients.accumulate(spec.accumulate_steps, apply, params, batch_stats, images, targets, key)

    first = last = run(state.params, state.batch_stats)
    metrics = {"loss": jnp.sum(first.losses), "grad_norm": global_norm(first.grads)}
    if spec.optim.name == "sam":
        last = run(gradients.perturb(state.params, first.grads, spec.optim.rho), first.batch_stats)
        metrics["loss_uphill"] = jnp.sum(last.losses)
    updates, opt_state = optimizer.update(last.grads, state.opt_state, state.params)
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=last.batch_stats,
        opt_state=opt_state,
    )
    if spec.ema_decay:
        # The bound is that of TensorFlow's ExponentialMovingAverage: a short run is not averaged with its random start.
        decay = jnp.minimum(spec.ema_decay, state.step / (9 + state.step))  # state.step counts this step already
        average = optax.incremental_update(state.variables, state.average, 1 - decay)
        state = dataclasses.replace(state, average=average)
    return state, first.logits, metrics


def eval_step(
    variables: dict[str, PyTree],
    batch: Batch,
    *,
    model: nn.Module,
    statistics: Statistics,
    classes: tuple[int, ...] | None = None,
    flip: bool = False,
    per_example: bool = False,
) -> dict[str, PyTree]:
    """Scores a batch, of which some rows may be padding.

    Args:
      variables: "params" and "batch_stats" of the network; `TrainState.variables` or `TrainState.average`.
      batch: "image" uint8 [b, s, s, 3], "mask" bool [b], False for padding, and "label" int32 [b], or [b, n] for
        several right answers, padded with -1: then any of them is correct, and the loss is against all of them
        alike. An image without an answer counts as padding.
      classes: the only classes that can be predicted, None = all. Labels stay numbers among all.
      flip: the scores of an image are the mean of its logits and those of its mirror image, left for right.
      per_example: return the predictions too.

    Returns:
      Sums over the rows that are not padding: "loss", and as int32 "correct", "correct_top5" (of fewer than five
      classes: all), "count"; with `per_example` also "predictions" [b] of `objectives.predict`, on every device.
    """
    images = mixing.normalize_images(batch["image"], statistics, jnp.result_type(float))
    logits: Any = model.apply(variables, images, train=False)  # flax's type allows for updated collections too
    if flip:  # one pass after the other needs no more memory than one
        logits = (logits + model.apply(variables, images[:, :, ::-1], train=False)) / 2
    labels = batch["label"].reshape(len(images), -1)
    if classes is not None:
        logits, labels = objectives.restrict(logits, labels, classes)
    losses = objectives.cross_entropy(logits, objectives.uniform_targets(labels, logits.shape[-1], logits.dtype))
    mask = batch["mask"] & jnp.any(labels >= 0, axis=1)
    sums: dict[str, PyTree] = {
        "loss": jnp.sum(jnp.where(mask, losses, 0)),
        "correct": _count(mask & objectives.any_topk_correct(logits, labels, 1)),
        "correct_top5": _count(mask & objectives.any_topk_correct(logits, labels, min(5, logits.shape[-1]))),
        "count": _count(mask),
    }
    if per_example:
        sums["predictions"] = objectives.predict(logits, labels, mask)
    return sums


def _count(hits: Bool[Array, "b"]) -> Int[Array, ""]:
    return jnp.sum(hits, dtype=jnp.int32)
