"""Skip-ResNet-34 on ImageNet.

    python -m skipnet_jax.main --config=configs/skip_resnet34.py --workdir=runs/skip_resnet34

Published top-1 (median of 3 runs), by image side in pixels:

    ImageNet   76.75 % at 224, 77.59 % at 256, 77.78 % at 288, 77.82 % at 320
    ImageNet-A  2.59 % at 224,  3.28 % at 256,  4.16 % at 288,  4.48 % at 320
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ResNet recipe for `skip_resnet34`."""
    return recipes.imagenet_resnet("skip_resnet34")
