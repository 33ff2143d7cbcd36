"""A small network on Fashion-MNIST: Skip-ResNet-20, or the network after the colon.

    python -m skipnet_jax.main --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist
    python -m skipnet_jax.main --config=configs/fashion_mnist.py:resnet20 --workdir=runs/fashion_mnist_resnet20

Published test error of ResNet-20 after 300 epochs: 4.39 %, and 4.02 % with random erasing (Zhong et al., AAAI 2020).
"""

import ml_collections

from configs import recipes


def get_config(network: str = "skip_resnet20") -> ml_collections.ConfigDict:
    """The Fashion-MNIST recipe for a network."""
    return recipes.fashion_mnist(network)
