"""Skip-ResNeXt-101-32x4d on ImageNet.

    python -m skipnet_jax.main --config=configs/skip_resnext101_32x4d.py --workdir=runs/skip_resnext101_32x4d

Published top-1 (median of 3 runs), by image side in pixels:

    ImageNet   81.39 % at 224, 82.03 % at 256, 82.16 % at 288, 82.10 % at 320
    ImageNet-A 13.19 % at 224, 15.28 % at 256, 16.28 % at 288, 15.57 % at 320
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ResNet recipe for `skip_resnext101_32x4d`."""
    return recipes.imagenet_resnet("skip_resnext101_32x4d")
