"""Networks of three blocks and their weights: all that exporting has to cope with, in seconds."""

import dataclasses

import flax
import jax.numpy as jnp
import numpy as np

from skipnet_jax.interop import torch_weights
from skipnet_jax.models import zoo
from skipnet_jax.runs import weights

# Name -> the network that it is part of, the blocks that it keeps, side of its images.
SMALL = {
    "tiny": ("resnet20", (0, 1, 3), 8),
    "tinyregnet": ("regnety_008", (0, 1), 32),
    "tinyconvnext": ("convnext_tiny", (0, 3), 16),
    "tinyswin": ("swin_tiny", (0, 2, 4), 60),
}


def add_small_networks(patch):
    """Puts them into the table of networks, for as long as the pytest.MonkeyPatch lasts."""
    for name, (whole, kept, image_size) in SMALL.items():
        plan = zoo.NETWORKS[whole]
        blocks = tuple(plan.blocks[k] for k in kept)
        patch.setitem(zoo.NETWORKS, name, dataclasses.replace(plan, blocks=blocks, image_size=image_size))


def make_variables(name, num_classes):
    """Numbers as a trained network has them: a signal that neither vanishes nor grows."""
    rng = np.random.default_rng(0)

    def draw(path, shape):
        if path[-1] in ("var", "scale"):
            return rng.uniform(0.5, 1.5, shape)
        return rng.standard_normal(shape) / (np.sqrt(np.prod(shape[:-1])) if path[-1] == "kernel" else 10)

    shapes = torch_weights.variable_shapes(name, num_classes)
    return flax.traverse_util.unflatten_dict(
        {path: jnp.asarray(draw(path, leaf.shape), jnp.float32) for path, leaf in shapes.items()}
    )


def write_weights(path, name):
    """A workdir of converted weights with ten classes; returns its path."""
    origin = weights.Origin(name, 10, "some.pt")
    weights.save(path, origin, make_variables(name, 10))
    return path
