"""ConvNeXt-T on ImageNet.

    python -m skipnet_jax.main --config=configs/convnext_tiny.py --workdir=runs/convnext_tiny

Published top-1 (median of 3 runs), by image side in pixels:

    ImageNet   81.57 % at 224, 81.71 % at 256, 81.57 % at 288, 80.94 % at 320
    ImageNet-A 10.32 % at 224, 12.77 % at 256, 13.83 % at 288, 13.00 % at 320

This recipe follows the published code, which does not clip gradients. To follow the published settings:

    --config.optim.clip_norm=1.0 --config.mixing.mixup_prob=0.5 --config.mixing.cutmix_prob=0.5
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ConvNeXt recipe for `convnext_tiny`."""
    return recipes.imagenet_adamw("convnext_tiny", drop_path=0.1)
