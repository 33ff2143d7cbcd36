"""ResNet-34 on ImageNet.

    python -m skipnet_jax.main --config=configs/resnet34.py --workdir=runs/resnet34

Published top-1 (median of 3 runs), by image side in pixels:

    ImageNet   75.53 % at 224, 76.22 % at 256, 76.54 % at 288, 76.65 % at 320
    ImageNet-A  1.43 % at 224,  2.04 % at 256,  2.97 % at 288,  3.21 % at 320
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ResNet recipe for `resnet34`."""
    return recipes.imagenet_resnet("resnet34")
