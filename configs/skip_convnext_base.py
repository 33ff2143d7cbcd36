"""Skip-ConvNeXt-B on ImageNet.

    python -m skipnet_jax.main --config=configs/skip_convnext_base.py --workdir=runs/skip_convnext_base

The published tables have no figure for it.

As the code behind the tables, and unlike its settings, this does not clip gradients. To follow the settings:

    --config.optim.clip_norm=1.0 --config.mixing.mixup_prob=0.5 --config.mixing.cutmix_prob=0.5
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ConvNeXt recipe for `skip_convnext_base`."""
    return recipes.imagenet_adamw("skip_convnext_base", drop_path=0.5)
