"""SE-ResNet-34 on ImageNet.

    python -m skipnet_jax.main --config=configs/seresnet34.py --workdir=runs/seresnet34

The published tables have no figure for this network.
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ResNet recipe for `seresnet34`."""
    return recipes.imagenet_resnet("seresnet34")
