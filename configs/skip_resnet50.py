"""Skip-ResNet-50 on ImageNet.

    python -m skipnet_jax.main --config=configs/skip_resnet50.py --workdir=runs/skip_resnet50

Published top-1 (median of 5 runs), by image side in pixels:

    ImageNet   80.41 % at 224, 81.03 % at 256, 81.20 % at 288, 81.04 % at 320
    ImageNet-A  6.95 % at 224,  8.89 % at 256,  9.87 % at 288, 10.15 % at 320
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ResNet recipe for `skip_resnet50`."""
    return recipes.imagenet_resnet("skip_resnet50")
