"""ResNeXt-101-32x4d on ImageNet.

    python -m skipnet_jax.main --config=configs/resnext101_32x4d.py --workdir=runs/resnext101_32x4d

Published top-1 (median of 3 runs), by image side in pixels:

    ImageNet   80.66 % at 224, 81.02 % at 256, 81.12 % at 288, 81.01 % at 320
    ImageNet-A  8.89 % at 224, 11.55 % at 256, 12.61 % at 288, 12.88 % at 320
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ResNet recipe for `resnext101_32x4d`."""
    return recipes.imagenet_resnet("resnext101_32x4d")
