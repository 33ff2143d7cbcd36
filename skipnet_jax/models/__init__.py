"""The networks, by name: build one, list them all, look up the facts, draw the initial weights."""

from skipnet_jax.models.initializers import abstract_variables, init_variables
from skipnet_jax.models.table import ModelInfo, model_info
from skipnet_jax.models.zoo import build_network, create_model, list_models

__all__ = [
    "ModelInfo",
    "abstract_variables",
    "build_network",
    "create_model",
    "init_variables",
    "list_models",
    "model_info",
]
