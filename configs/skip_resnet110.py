"""Skip-ResNet-110 on CIFAR-10, or CIFAR-100 with `:cifar100` after the file's name.

    python -m skipnet_jax.main --config=configs/skip_resnet110.py --workdir=runs/skip_resnet110
    python -m skipnet_jax.main --config=configs/skip_resnet110.py:cifar100 --workdir=runs/cifar100

Published top-1 (median of 5 runs): CIFAR-10 96.60 %, CIFAR-100 79.88 %.
"""

import ml_collections

from configs import recipes


def get_config(dataset: str = "cifar10") -> ml_collections.ConfigDict:
    """The CIFAR ResNet recipe for `skip_resnet110`; `dataset` is cifar10 or cifar100."""
    return recipes.cifar_resnet("skip_resnet110", dataset)
