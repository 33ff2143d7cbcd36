"""SE-ResNet-50 on ImageNet.

    python -m skipnet_jax.main --config=configs/seresnet50.py --workdir=runs/seresnet50

Published top-1 (median of 3 runs), by image side in pixels:

    ImageNet   79.91 % at 224, 80.55 % at 256, 80.81 % at 288, 80.72 % at 320
    ImageNet-A  5.60 % at 224,  7.63 % at 256,  8.55 % at 288,  8.68 % at 320
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ResNet recipe for `seresnet50`."""
    return recipes.imagenet_resnet("seresnet50")
