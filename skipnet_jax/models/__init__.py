"""The networks: `create_model`, `init_variables`, `list_models`, `model_info`."""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from skipnet_jax.models.network import Network
from skipnet_jax.models.zoo import find, list_models

__all__ = ["ModelInfo", "abstract_variables", "create_model", "init_variables", "list_models", "model_info"]


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    dtype: DTypeLike = jnp.float32,
    bn_group_size: int = 128,
    gate_reduction: int = 0,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    shake_drop: float = 0.0,
    drop_block: float = 0.0,
    drop_block_size: int = 7,
    signal_augment: float = 0.0,
    remat: bool = False,
) -> Network:
    """Builds a network as a linen module; `specs.ModelSpec` describes the arguments.

    Args:
      num_classes: None = as in the published tables (1000 for ImageNet, 100 for CIFAR networks).

    Raises:
      ValueError: the name is unknown (the message lists the nearest ones), or float64 is not enabled in JAX.
    """
    plan, junction = find(name)
    if jnp.dtype(dtype) == np.float64 and jnp.result_type(float) != np.float64:
        raise ValueError(
            "model.dtype: got float64, expected JAX to be told so. Set the environment variable JAX_ENABLE_X64=1, or "
            "give --config.model.dtype=float32."
        )
    return Network(
        plan,
        junction,
        num_classes=plan.num_classes if num_classes is None else num_classes,
        dtype=dtype,
        bn_group_size=bn_group_size,
        gate_reduction=gate_reduction or plan.gate_reduction,
        dropout=dropout,
        drop_path=drop_path,
        shake_drop=shake_drop,
        drop_block=drop_block,
        drop_block_size=drop_block_size,
        signal_augment=signal_augment,
        remat=remat,
    )


def init_variables(model: nn.Module, key: PRNGKeyArray, image_size: int) -> dict[str, Any]:
    """What `model.init` returns, bit for bit, in a fraction of the time.

    The forward pass is traced for shapes, and then left out: the initialisers run one by one. `jax.jit(model.init)`
    compiles them all as one program, and `model.lazy_init` a part of every function of the network, for nothing.

    Args:
      image_size: side of the square images, in pixels.

    Returns:
      {"params": ..., "batch_stats": ...}, the latter only where the network has any.
    """
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.result_type(float))
    traced, shapes = jax.make_jaxpr(functools.partial(model.init, train=False), return_shape=True)(key, images)
    needed, used = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    leaves = jax.core.eval_jaxpr(needed, traced.consts, *([key] if used[0] else []))
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def abstract_variables(model: nn.Module, image_size: int) -> dict[str, Any]:
    """Shapes and types of a network's parameters and statistics, without making any.

    Args:
      image_size: side of the square images, in pixels.

    Returns:
      {"params": ..., "batch_stats": ...}, the latter only where the network has any.
    """
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What is known of a network without building its parameters.

    Args:
      published_name: as in the papers.
      image_size: side of the training images in pixels.
      num_classes: of the data set in the published tables; `params` and `flops` count for it.
    """

    name: str
    published_name: str
    image_size: int
    num_classes: int

    @functools.cached_property
    def params(self) -> int:
        """Number of parameters, running statistics excluded."""
        shapes = abstract_variables(create_model(self.name), self.image_size)
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))

    @functools.cached_property
    def flops(self) -> int:
        """FLOPs of classifying one image, as the published tables count: see `analysis.complexity`."""
        from skipnet_jax.analysis.complexity import count  # which reads the networks: they do not need it

        return count(self.name).flops


def model_info(name: str) -> ModelInfo:
    """Facts about a network, by name.

    Raises:
      ValueError: the name is unknown; the message lists the nearest ones.
    """
    plan, junction = find(name)
    return ModelInfo(name, junction.published_prefix + plan.published_name, plan.image_size, plan.num_classes)
