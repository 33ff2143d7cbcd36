"""ConvNeXt-B on ImageNet.

    python -m skipnet_jax.main --config=configs/convnext_base.py --workdir=runs/convnext_base

The published tables have no figure for this network.

This recipe does what the published code did, which does not clip gradients. To follow the published settings:

    --config.optim.clip_norm=1.0 --config.mixing.mixup_prob=0.5 --config.mixing.cutmix_prob=0.5
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The ImageNet ConvNeXt recipe for `convnext_base`."""
    return recipes.imagenet_adamw("convnext_base", drop_path=0.5)
