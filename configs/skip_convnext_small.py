"""Skip-ConvNeXt-S on ImageNet.

    python -m skipnet_jax.main --config=configs/skip_convnext_small.py --workdir=runs/skip_convnext_small

Published top-1 (median of 3 runs), by image side in pixels:

    ImageNet   83.33 % at 224, 83.67 % at 256, 83.74 % at 288, 83.75 % at 320
    ImageNet-A 16.25 % at 224, 18.39 % at 256, 19.65 % at 288, 19.73 % at 320

This recipe follows the published code, which does not clip gradients. To follow the published settings:

    --config.optim.clip_norm=1.0 --config.mixing.mixup_prob=0.5 --config.mixing.cutmix_prob=0.5
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ConvNeXt recipe for `skip_convnext_small`."""
    return recipes.imagenet_adamw("skip_convnext_small", drop_path=0.4)
