"""A ResNet-50 and its training step from flax.linen's layers alone, as anyone would write them first.

As in Flax's own ImageNet example, the step minimises the cross-entropy and a penalty on the weights by SGD with
Nesterov momentum.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

DEPTHS = (3, 4, 6, 3)
WIDTH = 64
PENALTY = 1e-4
State = dict[str, Any]


class Bottleneck(nn.Module):
    """A residual block of three convolutions."""

    width: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(nn.BatchNorm, use_running_average=False, momentum=0.9, dtype=self.dtype)
        y = nn.relu(norm()(conv(self.width, (1, 1))(x)))
        y = nn.relu(norm()(conv(self.width, (3, 3), self.stride)(y)))
        y = norm(scale_init=nn.initializers.zeros)(conv(4 * self.width, (1, 1))(y))
        if x.shape != y.shape:
            x = norm()(conv(4 * self.width, (1, 1), self.stride)(x))
        return nn.relu(x + y)


class ResNet50(nn.Module):
    """A stem, four sections and a classifier of 1,000 classes."""

    dtype: Any

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b 1000"]:
        x = nn.Conv(WIDTH, (7, 7), 2, padding=3, use_bias=False, dtype=self.dtype)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=False, momentum=0.9, dtype=self.dtype)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        for section, depth in enumerate(DEPTHS):
            for block in range(depth):
                x = Bottleneck(WIDTH * 2**section, 2 if section and not block else 1, self.dtype)(x)
        logits = nn.Dense(1000, dtype=self.dtype)(jnp.mean(x, (1, 2)))
        return logits.astype(jnp.float32)


def make_step(batch: int, image_size: int, dtype: str) -> tuple[Any, tuple[Any, Any]]:
    """Returns the jitted training step, and the shapes of its state and batch."""
    model, optimizer = ResNet50(jnp.dtype(dtype)), optax.sgd(0.1, momentum=0.9, nesterov=True)
    images = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), jnp.dtype(dtype))
    shapes = {"images": images, "labels": jax.ShapeDtypeStruct((batch,), jnp.int32)}

    def init(images: Float[Array, "b h w 3"]) -> State:
        variables = model.init(jax.random.key(0), images)
        return {**variables, "optimizer": optimizer.init(variables["params"])}

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: State, batch: dict[str, Array]) -> tuple[State, dict[str, Array]]:
        def loss_of(params: Any) -> tuple[Array, tuple[Any, Array]]:
            variables = {"params": params, "batch_stats": state["batch_stats"]}
            logits, updated = model.apply(variables, batch["images"], mutable=["batch_stats"])
            loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]))
            weights = [param for param in jax.tree.leaves(params) if param.ndim > 1]
            penalty = PENALTY / 2 * sum(jnp.sum(weight**2) for weight in weights)
            return loss + penalty, (updated["batch_stats"], logits)

        (loss, (batch_stats, logits)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
        updates, memory = optimizer.update(gradients, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["labels"])
        new = {"params": params, "batch_stats": batch_stats, "optimizer": memory}
        return new, {"loss": loss, "accuracy": accuracy}

    return step, (jax.eval_shape(init, images), shapes)
