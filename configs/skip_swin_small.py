"""Skip-SwinSmallPatch4-224 on ImageNet.

    python -m skipnet_jax.main --config=configs/skip_swin_small.py --workdir=runs/skip_swin_small

Published top-1 (median of 3 runs), by image side in pixels:

    ImageNet   82.73 % at 224
    ImageNet-A 15.31 % at 224

This recipe follows the published code, which does not clip gradients. To follow the published settings:

    --config.optim.clip_norm=1.0 --config.mixing.mixup_prob=0.5 --config.mixing.cutmix_prob=0.5
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet Swin recipe for `skip_swin_small`."""
    return recipes.imagenet_adamw("skip_swin_small", drop_path=0.3)
