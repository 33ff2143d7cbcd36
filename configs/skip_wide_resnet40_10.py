"""Skip-WideResNet-40-k10 on CIFAR-10, or CIFAR-100 with `:cifar100` after the file's name.

    python -m skipnet_jax.main --config=configs/skip_wide_resnet40_10.py --workdir=runs/skip_wide_resnet40_10
    python -m skipnet_jax.main --config=configs/skip_wide_resnet40_10.py:cifar100 --workdir=runs/cifar100

Published top-1 (median of 5 runs): CIFAR-10 97.92 %, CIFAR-100 84.98 %.
"""

import ml_collections

from configs import recipes


def get_config(dataset: str = "cifar10") -> ml_collections.ConfigDict:
    """The CIFAR WideResNet recipe for `skip_wide_resnet40_10`; `dataset` is cifar10 or cifar100."""
    return recipes.cifar_wide("skip_wide_resnet40_10", dataset)
