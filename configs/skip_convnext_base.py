"""Skip-ConvNeXt-B on ImageNet.

    python -m skipnet_jax.main --config=configs/skip_convnext_base.py --workdir=runs/skip_convnext_base

Published top-1 (median of 3 runs), by image side in pixels:

    ImageNet   83.37 % at 224, 83.91 % at 256, 83.99 % at 288, 84.00 % at 320
    ImageNet-A 18.15 % at 224, 20.56 % at 256, 21.57 % at 288, 21.43 % at 320

This recipe follows the published code, which does not clip gradients. To follow the published settings:

    --config.optim.clip_norm=1.0 --config.mixing.mixup_prob=0.5 --config.mixing.cutmix_prob=0.5
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ConvNeXt recipe for `skip_convnext_base`."""
    return recipes.imagenet_adamw("skip_convnext_base", drop_path=0.5)
