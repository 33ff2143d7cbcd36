"""One step of training and one step of evaluation: pure functions, and how they are compiled over a mesh.

All random numbers depend only on the seed and the step, and every sum is over the global batch. A step therefore gives
the same numbers on any number of devices, up to rounding.
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

from skipnet_jax.errors import UserError
from skipnet_jax.models import init_variables, ops
from skipnet_jax.optim.optimizers import global_norm
from skipnet_jax.specs import Statistics, TrainSpec
from skipnet_jax.training import gradients, mixing, nonfinite, objectives, sharding, xla_options

IN_FLIGHT = 2  # the host queues this many steps ahead, so that the device never waits for it

Batch = dict[str, Shaped[Array, "..."]]
Metrics = dict[str, Shaped[Array, ""]]


@flax.struct.dataclass
class TrainState:
    """Everything that training changes.

    Args:
      step: number of updates so far, int32.
      batch_stats: running statistics of the batch norms; empty for a network without any.
      average: moving averages of "params" and "batch_stats", in the form of `variables`; empty without `ema_decay`.
    """

    step: PyTree  # an array here; JAX also puts shapes, shardings and NumPy arrays into this structure
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    average: PyTree = flax.struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, PyTree]:
        """The argument of `model.apply`."""
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
    """Makes the state of a new network with random parameters, replicated over the mesh.

    Args:
      image_size: side of the square images, in pixels.
    """
    variables = init_variables(model, jax.random.key(seed), image_size)
    return state_from_variables(variables, optimizer, mesh=mesh, average=average)


def state_from_variables(
    variables: Mapping[str, PyTree], optimizer: optax.GradientTransformation, *, mesh: Mesh, average: bool = False
) -> TrainState:
    """Makes the state at step 0 of a network with the given variables, replicated over the mesh.

    Args:
      variables: "params", and "batch_stats" where the network has any.
      average: keep a moving average, which starts as a copy of the variables.
    """
    return sharding.replicate(new_state(variables, optimizer, average=average), mesh)


def new_state(variables: Mapping[str, PyTree], optimizer: optax.GradientTransformation, *, average: bool) -> TrainState:
    """Does what `state_from_variables` does, but leaves the arrays where they are."""
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=jax.jit(optimizer.init)(variables["params"]),  # without jit: one small program per shape
    )
    if average:  # a copy, because a buffer that appears twice cannot be donated
        state = dataclasses.replace(state, average=jax.tree.map(jnp.copy, state.variables))
    return state


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
    """Compiles the training step over a mesh: (state, batch) -> (next state, metrics).

    The step augments a batch on the device and updates the network with it. It donates its state: use only the state
    that it returns. A batch has "image" uint8 [b, s, s, 3]; "label" int32 [b], where -1 marks an image to ignore; and,
    if the recipe uses it, "lighting" float32 [b, 3], colour offsets on the scale 0..1.

    The metrics stay on the device. "loss", "correct" (against the labels before mixing), "count" (of labels) and with
    SAM "loss_uphill" are sums over the batch; "grad_norm" and "learning_rate" are values of this step. With
    `on_nonfinite=skip` there is also "skipped": if it is 1, the update was skipped and the other metrics, except the
    learning rate, are 0.

    Raises:
      UserError: a part of the batch cannot be split evenly over the devices.
    """
    part = spec.batch_size // spec.accumulate_steps
    if part % mesh.size:
        raise UserError(
            "accumulate_steps",
            f"{spec.accumulate_steps}, which makes parts of {part} examples",
            f"parts that are a multiple of the number of devices ({mesh.size})",
            "Lower `accumulate_steps` or raise `batch_size`.",
        )

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
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
            metrics = nonfinite.zero_if_skipped(ok, metrics)
        metrics["learning_rate"] = schedule(state.step)
        return next_state, metrics

    return _compile(train_step, mesh, xla_options.for_training(sharding.platform(mesh)), donate=(0,))


def prepare(
    batch: Batch, step: Int[Array, ""], *, spec: TrainSpec, statistics: Statistics
) -> tuple[Float[Array, "b h w 3"], Float[Array, "b c"], PRNGKeyArray]:
    """Normalises, erases and mixes the images of a batch, and makes their targets.

    Returns:
      Images, targets, and the key for all other noise of this step.
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
    """Makes one update: forward pass, backward pass, optimiser, running statistics, moving average.

    SAM runs both passes twice with the same noise: at the parameters, and at the perturbed parameters. The optimiser
    gets the second gradient, and both forward passes update the running statistics.

    Args:
      images: normalised.
      targets: distributions over the classes, or zeros for an image without a loss. The mean loss is over all images.
      key: for dropout and other noise.
      progress: share of the training that is done, 0..1, for noise that grows.

    Returns:
      The next state; the logits before the update; and "loss" (summed over the batch), "grad_norm" (of the gradient of
      the mean loss) and with SAM "loss_uphill", all before the update.
    """
    apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    if spec.model.drop_block:  # only DropBlock depends on it
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
        # TensorFlow's ExponentialMovingAverage has the same bound, so that the average soon forgets the random start.
        decay = jnp.minimum(spec.ema_decay, state.step / (9 + state.step))  # state.step already includes this step
        average = optax.incremental_update(state.variables, state.average, 1 - decay)
        state = dataclasses.replace(state, average=average)
    return state, first.logits, metrics


def make_eval_step(
    model: nn.Module,
    *,
    statistics: Statistics,
    mesh: Mesh,
    classes: tuple[int, ...] | None = None,
    flip: bool = False,
    per_example: bool = False,
) -> Callable[[dict[str, PyTree], Batch], dict[str, PyTree]]:
    """Compiles the evaluation step over a mesh: (variables, batch) -> sums over the rows that are not padding.

    The variables are `TrainState.variables` or `TrainState.average`. A batch has "image" uint8 [b, s, s, 3]; "mask"
    bool [b], False for padding; and "label" int32 [b], or [b, n] for several right answers, padded with -1. With
    several, any of them counts as correct, and the target is uniform over them. An image without an answer counts as
    padding.

    The sums are "loss", and as int32 "correct", "correct_top5" (with fewer than five classes, every row) and "count".

    Args:
      classes: the only classes that can be predicted, None = all. Labels keep their numbers among all classes.
      flip: average the logits of each image and its mirror image.
      per_example: also return "predictions", the result of `objectives.predict`, on every device.
    """

    def eval_step(variables: dict[str, PyTree], batch: Batch) -> dict[str, PyTree]:
        images = mixing.normalize_images(batch["image"], statistics, jnp.result_type(float))
        logits: Any = model.apply(variables, images, train=False)  # for flax, apply may also return updated collections
        if flip:  # a second pass, because twice the batch would need twice the memory
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

    return compile_evaluation(eval_step, mesh)


def compile_evaluation(step: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Compiles a step over a mesh: (variables, batch) -> results, without gradients."""
    return _compile(step, mesh, xla_options.for_evaluation(sharding.platform(mesh)))


def _compile(
    step: Callable[..., Any], mesh: Mesh, options: dict[str, str], donate: tuple[int, ...] = ()
) -> Callable[..., Any]:
    """Jits a step whose first argument and results are replicated, and whose batch is split over the devices."""
    everywhere = sharding.replicated(mesh)

    @functools.wraps(step)
    def on_these_devices(*arguments: Any) -> Any:
        with ops.traced_for(sharding.platform(mesh), mesh.size):
            return step(*arguments)

    return jax.jit(
        on_these_devices,
        in_shardings=(everywhere, sharding.batch_sharding(mesh)),
        out_shardings=everywhere,
        donate_argnums=donate,
        compiler_options=options,
    )


def _count(hits: Bool[Array, "b"]) -> Int[Array, ""]:
    return jnp.sum(hits, dtype=jnp.int32)
