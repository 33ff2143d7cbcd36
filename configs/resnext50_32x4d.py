"""ResNeXt-50-32x4d on ImageNet.

    python -m skipnet_jax.main --config=configs/resnext50_32x4d.py --workdir=runs/resnext50_32x4d

Published top-1 (median of 3 runs), by image side in pixels:

    ImageNet   79.73 % at 224, 80.15 % at 256, 80.30 % at 288, 80.11 % at 320
    ImageNet-A  5.37 % at 224,  7.43 % at 256,  8.44 % at 288,  8.43 % at 320
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ResNet recipe for `resnext50_32x4d`."""
    return recipes.imagenet_resnet("resnext50_32x4d")
