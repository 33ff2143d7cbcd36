"""Skip-RegNetY-1.6 on ImageNet.

    python -m skipnet_jax.main --config=configs/skip_regnety_016.py --workdir=runs/skip_regnety_016

Published top-1 (median of 3 runs), by image side in pixels:

    ImageNet   77.94 % at 224, 78.87 % at 256, 79.36 % at 288, 79.46 % at 320
    ImageNet-A  5.20 % at 224,  6.49 % at 256,  7.48 % at 288,  7.79 % at 320
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet RegNet recipe for `skip_regnety_016`."""
    return recipes.imagenet_regnet("skip_regnety_016")
