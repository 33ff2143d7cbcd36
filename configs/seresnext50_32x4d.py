"""SE-ResNeXt-50-32x4d on ImageNet.

    python -m skipnet_jax.main --config=configs/seresnext50_32x4d.py --workdir=runs/seresnext50_32x4d

Published top-1 (median of 3 runs), by image side in pixels:

    ImageNet   80.41 % at 224, 80.93 % at 256, 81.17 % at 288, 81.10 % at 320
    ImageNet-A  7.49 % at 224,  9.29 % at 256, 10.28 % at 288, 10.63 % at 320
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ResNet recipe for `seresnext50_32x4d`."""
    return recipes.imagenet_resnet("seresnext50_32x4d")
