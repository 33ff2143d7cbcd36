"""SE-ResNeXt-101-32x4d on ImageNet.

    python -m skipnet_jax.main --config=configs/seresnext101_32x4d.py --workdir=runs/seresnext101_32x4d

Published top-1 (median of 3 runs), by image side in pixels:

    ImageNet   80.85 % at 224, 81.37 % at 256, 81.65 % at 288, 81.88 % at 320
    ImageNet-A 10.33 % at 224, 12.35 % at 256, 13.25 % at 288, 13.40 % at 320
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ResNet recipe for `seresnext101_32x4d`."""
    return recipes.imagenet_resnet("seresnext101_32x4d")
