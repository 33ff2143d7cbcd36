"""Dense-ResNet-110 on CIFAR-10, or CIFAR-100 with `:cifar100` after the file's name.

    python -m skipnet_jax.main --config=configs/dense_resnet110.py --workdir=runs/dense_resnet110
    python -m skipnet_jax.main --config=configs/dense_resnet110.py:cifar100 --workdir=runs/cifar100

The published tables have no figure for this network.
"""

import ml_collections

from configs import recipes


def get_config(dataset: str = "cifar10") -> ml_collections.ConfigDict:
    """The CIFAR ResNet recipe for `dense_resnet110`; `dataset` is cifar10 or cifar100."""
    return recipes.cifar_resnet("dense_resnet110", dataset)
