"""ConvNeXt-S on ImageNet.

    python -m skipnet_jax.main --config=configs/convnext_small.py --workdir=runs/convnext_small

Published top-1 (median of 3 runs), by image side in pixels:

    ImageNet   83.14 % at 224, 83.44 % at 256, 83.41 % at 288, 83.07 % at 320
    ImageNet-A 14.55 % at 224, 17.23 % at 256, 18.39 % at 288, 17.80 % at 320

This recipe follows the published code, which does not clip gradients. To follow the published settings:

    --config.optim.clip_norm=1.0 --config.mixing.mixup_prob=0.5 --config.mixing.cutmix_prob=0.5
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ConvNeXt recipe for `convnext_small`."""
    return recipes.imagenet_adamw("convnext_small", drop_path=0.4)
