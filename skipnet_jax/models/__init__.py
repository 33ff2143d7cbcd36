"""The networks: `create_model`, `init_variables`, `list_models`, `model_info`."""

import dataclasses
import difflib
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

from skipnet_jax.errors import UserError
from skipnet_jax.models.network import Network
from skipnet_jax.models.zoo import find, list_models
from skipnet_jax.specs import ModelSpec

__all__ = [
    "ModelInfo",
    "abstract_variables",
    "build_network",
    "create_model",
    "init_variables",
    "list_models",
    "model_info",
]


def create_model(
    name: str, *, num_classes: int | None = None, dtype: DTypeLike = "float32", **settings: Any
) -> Network:
    """Builds a network as a linen module.

    Args:
      name: of `list_models()`.
      num_classes: None = as in the published tables (1000 for ImageNet, 100 for CIFAR networks).
      dtype: of the computation.
      settings: the other fields of `specs.ModelSpec`, by name.

    Raises:
      UserError: an unknown name (the message lists the nearest ones) or setting, a value out of range, or float64
        without JAX_ENABLE_X64=1.
    """
    known = {field.name for field in dataclasses.fields(ModelSpec)}
    for unknown in settings.keys() - known:
        nearest = difflib.get_close_matches(unknown, known, n=3, cutoff=0.0)
        raise UserError(f"model.{unknown}", "an unknown setting", f"one such as {', '.join(nearest)}")
    architecture, _ = find(name)
    classes = architecture.num_classes if num_classes is None else num_classes
    return build_network(ModelSpec(name=name, num_classes=classes, dtype=jnp.dtype(dtype).name, **settings))


def build_network(spec: ModelSpec) -> Network:
    """Builds the network of a spec.

    Raises:
      UserError: an unknown name, or float64 without JAX_ENABLE_X64=1.
    """
    architecture, junction = find(spec.name)
    if spec.dtype == "float64" and jnp.result_type(float) != np.float64:
        raise UserError(
            "model.dtype",
            "float64",
            "float32 or bfloat16, since float64 needs JAX_ENABLE_X64=1",
            "Set that environment variable, or change `model.dtype`.",
        )
    return Network(architecture, junction, spec)


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
        """FLOPs of classifying one image, as the published tables count: see `models.complexity`."""
        from skipnet_jax.models.complexity import count  # which reads the networks: they do not need it

        return count(self.name).flops


def model_info(name: str) -> ModelInfo:
    """Facts about a network, by name.

    Raises:
      ValueError: the name is unknown; the message lists the nearest ones.
    """
    architecture, junction = find(name)
    return ModelInfo(
        name, junction.published_prefix + architecture.published_name, architecture.image_size, architecture.num_classes
    )
