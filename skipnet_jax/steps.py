"""One step of training and of evaluation: pure functions, and their compilation over a mesh.

Everything random follows from (seed, step), and every sum runs over the global batch, so a step gives the same numbers
on any number of devices, to rounding.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped

from skipnet_jax import mixing, objectives, sharding
from skipnet_jax.specs import TrainSpec

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
    """

    step: PyTree  # an array in a state; JAX also makes trees of shapes, shardings and NumPy arrays in this form
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree

    @property
    def variables(self) -> dict[str, PyTree]:
        """What the network is applied with."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_state(
    model: nn.Module, optimizer: optax.GradientTransformation, *, image_size: int, seed: int, mesh: Mesh
) -> TrainState:
    """A network that has not seen anything, replicated over the mesh.

    Only the initialisers run, one by one; the forward pass is traced for shapes. The initialisation of a deep gated
    network as one program compiles for half a minute on a CPU.

    Args:
      image_size: side of the square images, in pixels.
      seed: of the initial numbers.
    """
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.result_type(float))
    variables = model.lazy_init(jax.random.key(seed), images, train=False)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(variables["params"]),
    )
    return sharding.replicate(state, mesh)


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    spec: TrainSpec,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compiles `train_step` over a mesh. The given state is donated: only the returned one may be used afterwards.

    Args:
      mean: of each channel of the data set, for pixels scaled to 0..1.
      std: the same.
    """
    step = functools.partial(
        train_step, model=model, optimizer=optimizer, schedule=schedule, spec=spec, mean=mean, std=std
    )
    everywhere = sharding.replicated(mesh)
    return jax.jit(
        step,
        in_shardings=(everywhere, sharding.batch_sharding(mesh)),
        out_shardings=everywhere,
        donate_argnums=0,
    )


def make_eval_step(
    model: nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...], mesh: Mesh
) -> Callable[[dict[str, PyTree], Batch], Metrics]:
    """Compiles `eval_step` over a mesh.

    Args:
      mean: of each channel of the data set, for pixels scaled to 0..1.
      std: the same.
    """
    everywhere = sharding.replicated(mesh)
    return jax.jit(
        functools.partial(eval_step, model=model, mean=mean, std=std),
        in_shardings=(everywhere, sharding.batch_sharding(mesh)),
        out_shardings=everywhere,
    )


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    spec: TrainSpec,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> tuple[TrainState, Metrics]:
    """Prepares a batch on the device and takes one step with it.

    Args:
      batch: "image" uint8 [b, s, s, 3] and "label" int32 [b].

    Returns:
      The next state, and sums over the batch: "loss", "correct" (against the labels before mixing), "count"; with
      "grad_norm" and "learning_rate" of this step. All stay on the device.
    """
    key = jax.random.fold_in(jax.random.key(spec.seed), state.step)
    mix_key, dropout_key = jax.random.split(key)
    images = mixing.normalize(batch["image"], mean, std, jnp.result_type(float))
    images, targets = mixing.mix(mix_key, images, batch["label"], spec.model.num_classes, spec.mixing)
    next_state, logits, metrics = update(state, images, targets, dropout_key, model=model, optimizer=optimizer)
    metrics["correct"] = jnp.sum(objectives.topk_correct(logits, batch["label"], 1), dtype=jnp.int32)
    metrics["learning_rate"] = schedule(state.step)
    return next_state, metrics


def update(
    state: TrainState,
    images: Float[Array, "b h w 3"],
    targets: Float[Array, "b c"],
    key: PRNGKeyArray,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Float[Array, "b c"], Metrics]:
    """One step on images and targets as they are: forward, backward, optimizer, running statistics.

    Args:
      images: normalised.
      targets: distributions over the classes.
      key: of dropout and stochastic depth.

    Returns:
      The next state; the logits before the step; "loss" (summed over the batch), "count" and "grad_norm" (of the
      gradient of the mean loss).
    """

    def mean_loss(params: PyTree) -> tuple[Float[Array, ""], tuple[Float[Array, "b"], Float[Array, "b c"], PyTree]]:
        logits, updates = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        losses = objectives.cross_entropy(logits, targets)
        return jnp.mean(losses), (losses, logits, updates.get("batch_stats", {}))

    grads, (losses, logits, batch_stats) = jax.grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {
        "loss": jnp.sum(losses),
        "count": jnp.asarray(len(losses), jnp.int32),
        "grad_norm": optax.tree.norm(grads),
    }
    state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    return state, logits, metrics


def eval_step(
    variables: dict[str, PyTree], batch: Batch, *, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]
) -> Metrics:
    """Scores a batch, of which some rows may be padding.

    Args:
      variables: "params" and "batch_stats" of the network; `TrainState.variables`.
      batch: "image" uint8 [b, s, s, 3], "label" int32 [b], and "mask" bool [b], False for padding.

    Returns:
      Sums over the rows that are not padding: "loss", and as int32 "correct", "correct_top5" (of fewer than five
      classes: all), "count".
    """
    images = mixing.normalize(batch["image"], mean, std, jnp.result_type(float))
    logits: Any = model.apply(variables, images, train=False)  # flax's type allows for updated collections too
    labels, mask = batch["label"], batch["mask"]
    classes = logits.shape[-1]
    losses = objectives.cross_entropy(logits, jax.nn.one_hot(labels, classes, dtype=logits.dtype))

    def count(hits: Shaped[Array, "b"]) -> Int[Array, ""]:
        return jnp.sum(hits & mask, dtype=jnp.int32)

    return {
        "loss": jnp.sum(jnp.where(mask, losses, 0)),
        "correct": count(objectives.topk_correct(logits, labels, 1)),
        "correct_top5": count(objectives.topk_correct(logits, labels, min(5, classes))),
        "count": count(mask),
    }
