"""SE-ResNet-101 on ImageNet.

    python -m skipnet_jax.main --config=configs/seresnet101.py --workdir=runs/seresnet101

The published tables have no figure for this network.
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ResNet recipe for `seresnet101`."""
    return recipes.imagenet_resnet("seresnet101")
