"""ConvNeXt-B on ImageNet.

    python -m skipnet_jax.main --config=configs/convnext_base.py --workdir=runs/convnext_base

Published top-1 (median of 3 runs), by image side in pixels:

    ImageNet   83.55 % at 224, 83.76 % at 256, 83.72 % at 288, 83.50 % at 320
    ImageNet-A 16.53 % at 224, 19.73 % at 256, 20.16 % at 288, 19.49 % at 320

This recipe follows the published code, which does not clip gradients. To follow the published settings:

    --config.optim.clip_norm=1.0 --config.mixing.mixup_prob=0.5 --config.mixing.cutmix_prob=0.5
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ConvNeXt recipe for `convnext_base`."""
    return recipes.imagenet_adamw("convnext_base", drop_path=0.5)
