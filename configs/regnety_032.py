"""RegNetY-3.2 on ImageNet.

    python -m skipnet_jax.main --config=configs/regnety_032.py --workdir=runs/regnety_032

Published top-1 (median of 3 runs), by image side in pixels:

    ImageNet   78.49 % at 224, 79.33 % at 256, 79.74 % at 288, 79.81 % at 320
    ImageNet-A  5.04 % at 224,  6.16 % at 256,  7.09 % at 288,  7.52 % at 320
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet RegNet recipe for `regnety_032`."""
    return recipes.imagenet_regnet("regnety_032")
