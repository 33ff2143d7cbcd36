"""SE-ResNet-101 on ImageNet.

    python -m skipnet_jax.main --config=configs/seresnet101.py --workdir=runs/seresnet101

Published top-1 (median of 3 runs), by image side in pixels:

    ImageNet   81.02 % at 224, 81.57 % at 256, 81.84 % at 288, 81.77 % at 320
    ImageNet-A  8.41 % at 224, 10.83 % at 256, 12.03 % at 288, 12.53 % at 320
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ResNet recipe for `seresnet101`."""
    return recipes.imagenet_resnet("seresnet101")
