"""Skip-ConvNeXt-T on ImageNet.

    python -m skipnet_jax.main --config=configs/skip_convnext_tiny.py --workdir=runs/skip_convnext_tiny

Published top-1 (median of 3 runs), by image side in pixels:

    ImageNet   81.58 % at 224, 82.05 % at 256, 82.24 % at 288, 82.24 % at 320
    ImageNet-A 12.31 % at 224, 14.32 % at 256, 15.19 % at 288, 14.97 % at 320

This recipe follows the published code, which does not clip gradients. To follow the published settings:

    --config.optim.clip_norm=1.0 --config.mixing.mixup_prob=0.5 --config.mixing.cutmix_prob=0.5
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ConvNeXt recipe for `skip_convnext_tiny`."""
    return recipes.imagenet_adamw("skip_convnext_tiny", drop_path=0.1)
