"""Networks of two or three blocks with all the operations of their families, and weights for them."""

import dataclasses

import flax
import jax.numpy as jnp
import numpy as np

from skipnet_jax.interop import layouts
from skipnet_jax.models import zoo
from skipnet_jax.runs import weights

# Name -> the network whose blocks it has, which of them, side of its images.
SMALL = {
    "tiny": ("resnet20", (0, 1, 3), 8),
    "tinyresnetd": ("resnet50d", (0, 3), 32),  # bottleneck, deep stem, average pool
    "tinyseresnext": ("seresnext50_32x4d", (0, 3), 32),  # max pool, squeeze-excite, groups
    "tinywide": ("wide_resnet28_10", (0, 1), 8),
    "tinypyramid": ("pyramidnet110_a48", (0, 1, 18), 8),
    "tinyregnet": ("regnety_008", (0, 1), 32),
    "tinyconvnext": ("convnext_tiny", (0, 3), 16),
    "tinyswin": ("swin_tiny", (0, 2, 4), 60),  # shifted and padded windows
}


def add_small_networks(patch):
    """Adds them to the table of networks until the pytest.MonkeyPatch is undone."""
    for name, (whole, kept, image_size) in SMALL.items():
        architecture = zoo.NETWORKS[whole]
        blocks = tuple(architecture.blocks[k] for k in kept)
        patch.setitem(zoo.NETWORKS, name, dataclasses.replace(architecture, blocks=blocks, image_size=image_size))


def make_variables(name, num_classes=10, seed=0):
    """Numbers like those of a trained network: the signal neither vanishes nor explodes."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        if path[-1] in ("var", "scale"):
            return rng.uniform(0.5, 1.5, shape)
        return rng.standard_normal(shape) / (np.sqrt(np.prod(shape[:-1])) if path[-1] == "kernel" else 10)

    shapes = layouts.variable_shapes(name, num_classes)
    return flax.traverse_util.unflatten_dict(
        {path: jnp.asarray(draw(path, leaf.shape), jnp.float32) for path, leaf in shapes.items()}
    )


def write_weights(path, name):
    """Writes a workdir of converted weights with ten classes; returns its path."""
    weights.save(path, weights.Origin(name, 10, "some.pt"), make_variables(name))
    return path
