"""Skip-SE-ResNeXt-50-32x4d on ImageNet.

    python -m skipnet_jax.main --config=configs/skip_seresnext50_32x4d.py --workdir=runs/skip_seresnext50_32x4d

The published tables have no figure for this network.
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ResNet recipe for `skip_seresnext50_32x4d`."""
    return recipes.imagenet_resnet("skip_seresnext50_32x4d")
