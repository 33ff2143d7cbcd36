"""WideResNet: a shallow, wide CIFAR ResNet with pre-activation.

Source: Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016.

Deviations, as in the published SkipResNet tables: the stem has a norm, a block's shortcut is a 1x1 convolution and norm
of the block's raw input, and there is no dropout between the convolutions.
"""

import functools

import flax.linen as nn
from jaxtyping import Array, Float

from skipnet_jax.models.block import BlockArchitecture, stage_strides
from skipnet_jax.models.layers import Layers
from skipnet_jax.models.network import Architecture
from skipnet_jax.models.shortcuts import LinearShortcut
from skipnet_jax.models.stems import SmallStem


class PreActivationOperation(nn.Module):
    """Two 3x3 convolutions, each preceded by norm and activation.

    Source: He et al., Identity Mappings in Deep Residual Networks, ECCV 2016.
    """

    features: int
    stride: int
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"]:
        x = self.layers.norm_act(x, train=train, name="norm1")
        x = self.layers.conv(self.features, 3, stride=self.stride, name="conv1")(x)
        x = self.layers.norm_act(x, train=train, name="norm2")
        return self.layers.conv(self.features, 3, name="conv2")(x)


def _architecture(name: str, depths: tuple[int, ...], width: int) -> Architecture:
    blocks = []
    for stage, stride in stage_strides(depths):
        features = width * 2**stage
        shortcut = functools.partial(LinearShortcut, features, stride)
        blocks.append(BlockArchitecture(stride, shortcut, functools.partial(PreActivationOperation, features, stride)))
    stem = functools.partial(SmallStem, 16, act=False)
    return Architecture(name, 32, 100, stem, tuple(blocks), head_norm=True, head_act=True, post_activation=False)


NETWORKS = {
    "wide_resnet28_10": _architecture("WideResNet-28-k10", (4, 4, 4), 160),
    "wide_resnet40_4": _architecture("WideResNet-40-k4", (6, 6, 6), 64),
    "wide_resnet40_10": _architecture("WideResNet-40-k10", (6, 6, 6), 160),
}
