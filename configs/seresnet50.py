"""SE-ResNet-50 on ImageNet.

    python -m skipnet_jax.main --config=configs/seresnet50.py --workdir=runs/seresnet50

The published tables have no figure for this network.
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ResNet recipe for `seresnet50`."""
    return recipes.imagenet_resnet("seresnet50")
