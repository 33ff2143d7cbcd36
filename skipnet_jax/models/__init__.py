"""Networks by name: build one, list them all, look up facts, draw initial weights, load published weights."""

from typing import Any

from skipnet_jax.models.initializers import abstract_variables, init_variables
from skipnet_jax.models.network import Network
from skipnet_jax.models.table import ModelInfo, model_info
from skipnet_jax.models.zoo import build_network, create_model, list_models

__all__ = [
    "ModelInfo",
    "abstract_variables",
    "build_network",
    "create_model",
    "init_variables",
    "list_models",
    "load_pretrained",
    "model_info",
]


def load_pretrained(name: str) -> tuple[Network, dict[str, Any]]:
    """Makes a network with the weights that its author published; see `interop.pretrained.load_pretrained`."""
    from skipnet_jax.interop import pretrained  # not above: building a network needs none of it

    return pretrained.load_pretrained(name)
