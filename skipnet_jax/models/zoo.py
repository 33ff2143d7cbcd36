"""Networks by name. A junction's prefix turns each plain network (`resnet50`) into six more (`skip_resnet50`, ...).

The numbers of each network are in its family's file.
"""

import dataclasses
import difflib
import fnmatch
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from skipnet_jax.errors import UserError
from skipnet_jax.models.families import convnext, pyramidnet, regnet, resnet, swin, wide_resnet
from skipnet_jax.models.junctions import JUNCTIONS, Junction
from skipnet_jax.models.network import Architecture, Network
from skipnet_jax.specs import ModelSpec, TrainSpec

NETWORKS: dict[str, Architecture] = {
    **resnet.NETWORKS,
    **wide_resnet.NETWORKS,
    **pyramidnet.NETWORKS,
    **regnet.NETWORKS,
    **convnext.NETWORKS,
    **swin.NETWORKS,
}


def list_models(pattern: str = "*") -> list[str]:
    """All names, or those that match a shell pattern such as `skip_*`."""
    prefixes = ["" if junction == "add" else f"{junction}_" for junction in JUNCTIONS]
    return fnmatch.filter((prefix + network for network in NETWORKS for prefix in prefixes), pattern)


def find(name: str) -> tuple[Architecture, Junction]:
    """The architecture and the junction behind a name.

    Raises:
      UserError: the name is unknown; the message lists the nearest ones.
    """
    if name in NETWORKS:
        return NETWORKS[name], JUNCTIONS["add"]
    prefix, _, network = name.partition("_")
    if network in NETWORKS and prefix in JUNCTIONS and prefix != "add":
        return NETWORKS[network], JUNCTIONS[prefix]
    nearest = _nearest(name, list_models(), 5)
    mend = f"Nearest: {nearest}. Change `model.name`."
    raise UserError("model.name", repr(name), "a name of skipnet_jax.models.list_models()", mend)


def require_trainable(spec: TrainSpec) -> None:
    """Checks what a run asks of its network, before anything is built.

    Raises:
      UserError: the name is unknown, or batch norm's groups do not fit the batch.
    """
    architecture, _ = find(spec.model.name)
    if architecture.has_batch_norm:
        spec.require_whole_groups()


def create_model(
    name: str, *, num_classes: int | None = None, dtype: DTypeLike = ModelSpec.dtype, **settings: Any
) -> Network:
    """Builds a network as a linen module.

    Args:
      num_classes: None = as in the published tables (1000 for ImageNet, 100 for CIFAR networks).
      settings: the other fields of `specs.ModelSpec`.

    Raises:
      UserError: an unknown name or setting (the message lists the nearest ones), a value out of range, or float64
        without JAX_ENABLE_X64=1.
    """
    known = [field.name for field in dataclasses.fields(ModelSpec)]
    for setting in settings:
        if setting not in known:
            raise UserError(f"model.{setting}", "an unknown setting", f"one such as {_nearest(setting, known, 3)}")
    if num_classes is None:
        num_classes = find(name)[0].num_classes
    dtype = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name  # "auto" and misspelt names are no JAX types
    return build_network(ModelSpec(name=name, num_classes=num_classes, dtype=dtype, **settings))


def build_network(spec: ModelSpec) -> Network:
    """Builds the network that a spec describes.

    Raises:
      UserError: an unknown name, float64 without JAX_ENABLE_X64=1, or the type `auto`.
    """
    architecture, junction = find(spec.name)
    if spec.dtype == "auto":
        raise UserError("model.dtype", "auto", "float32, bfloat16 or float64, since only training resolves auto")
    if spec.dtype == "float64" and jnp.result_type(float) != jnp.float64:
        expected = "float32 or bfloat16, since float64 needs JAX_ENABLE_X64=1"
        mend = "Set that environment variable, or change `model.dtype`."
        raise UserError("model.dtype", "float64", expected, mend)
    return Network(architecture, junction, spec)


def _nearest(name: str, names: Iterable[str], count: int) -> str:
    return ", ".join(difflib.get_close_matches(name, list(names), n=count, cutoff=0.0))
