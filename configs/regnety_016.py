"""RegNetY-1.6 on ImageNet.

    python -m skipnet_jax.main --config=configs/regnety_016.py --workdir=runs/regnety_016

Published top-1 (median of 3 runs), by image side in pixels:

    ImageNet   77.36 % at 224, 78.41 % at 256, 78.79 % at 288, 79.04 % at 320
    ImageNet-A  3.76 % at 224,  4.93 % at 256,  5.80 % at 288,  6.21 % at 320
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet RegNet recipe for `regnety_016`."""
    return recipes.imagenet_regnet("regnety_016")
