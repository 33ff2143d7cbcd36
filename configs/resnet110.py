"""ResNet-110 on CIFAR-10, or CIFAR-100 with `:cifar100` after the file's name.

    python -m skipnet_jax.main --config=configs/resnet110.py --workdir=runs/resnet110
    python -m skipnet_jax.main --config=configs/resnet110.py:cifar100 --workdir=runs/cifar100

Published top-1 (median of 5 runs): CIFAR-10 96.23 %, CIFAR-100 77.98 %.
"""

import ml_collections

from configs import recipes


def get_config(dataset: str = "cifar10") -> ml_collections.ConfigDict:
    """The CIFAR ResNet recipe for `resnet110`; `dataset` is cifar10 or cifar100."""
    return recipes.cifar_resnet("resnet110", dataset)
