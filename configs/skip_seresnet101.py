"""Skip-SE-ResNet-101 on ImageNet.

    python -m skipnet_jax.main --config=configs/skip_seresnet101.py --workdir=runs/skip_seresnet101

The published tables have no figure for this network.
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ResNet recipe for `skip_seresnet101`."""
    return recipes.imagenet_resnet("skip_seresnet101")
