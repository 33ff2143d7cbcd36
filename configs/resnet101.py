"""ResNet-101 on ImageNet.

    python -m skipnet_jax.main --config=configs/resnet101.py --workdir=runs/resnet101

Published top-1 (median of 3 runs), by image side in pixels:

    ImageNet   80.36 % at 224, 81.00 % at 256, 80.95 % at 288, 80.86 % at 320
    ImageNet-A  6.35 % at 224,  8.69 % at 256, 10.15 % at 288, 10.23 % at 320
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ResNet recipe for `resnet101`."""
    return recipes.imagenet_resnet("resnet101")
