"""Skip-RegNetY-3.2 on ImageNet.

    python -m skipnet_jax.main --config=configs/skip_regnety_032.py --workdir=runs/skip_regnety_032

Published top-1 (median of 3 runs), by image side in pixels:

    ImageNet   78.84 % at 224, 79.60 % at 256, 79.97 % at 288, 80.00 % at 320
    ImageNet-A  5.99 % at 224,  7.20 % at 256,  7.75 % at 288,  8.21 % at 320
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet RegNet recipe for `skip_regnety_032`."""
    return recipes.imagenet_regnet("skip_regnety_032")
