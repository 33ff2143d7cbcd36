"""Dense-ResNet-34 on ImageNet.

    python -m skipnet_jax.main --config=configs/dense_resnet34.py --workdir=runs/dense_resnet34

The published tables have no figure for this network.
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ResNet recipe for `dense_resnet34`."""
    return recipes.imagenet_resnet("dense_resnet34")
