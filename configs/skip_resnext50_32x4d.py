"""Skip-ResNeXt-50-32x4d on ImageNet.

    python -m skipnet_jax.main --config=configs/skip_resnext50_32x4d.py --workdir=runs/skip_resnext50_32x4d

Published top-1 (median of 3 runs), by image side in pixels:

    ImageNet   80.67 % at 224, 81.25 % at 256, 81.31 % at 288, 81.26 % at 320
    ImageNet-A  9.16 % at 224, 10.72 % at 256, 11.79 % at 288, 11.79 % at 320
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ResNet recipe for `skip_resnext50_32x4d`."""
    return recipes.imagenet_resnet("skip_resnext50_32x4d")
