"""ResNet-50 on ImageNet.

    python -m skipnet_jax.main --config=configs/resnet50.py --workdir=runs/resnet50

Published top-1 (median of 5 runs), by image side in pixels:

    ImageNet   79.01 % at 224, 79.53 % at 256, 79.64 % at 288, 79.54 % at 320
    ImageNet-A  3.04 % at 224,  4.77 % at 256,  5.83 % at 288,  6.25 % at 320
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ResNet recipe for `resnet50`."""
    return recipes.imagenet_resnet("resnet50")
