"""Skip-ResNet-101 on ImageNet.

    python -m skipnet_jax.main --config=configs/skip_resnet101.py --workdir=runs/skip_resnet101

Published top-1 (median of 3 runs), by image side in pixels:

    ImageNet   81.39 % at 224, 82.17 % at 256, 82.34 % at 288, 82.08 % at 320
    ImageNet-A 11.57 % at 224, 13.24 % at 256, 14.81 % at 288, 14.55 % at 320
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ResNet recipe for `skip_resnet101`."""
    return recipes.imagenet_resnet("skip_resnet101")
