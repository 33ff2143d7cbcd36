"""Stems: from the image to the first block's input."""

import flax.linen as nn
from jaxtyping import Array, Float

from skipnet_jax.models.layers import Layers


class SmallStem(nn.Module):
    """One 3x3 convolution at full resolution (CIFAR).

    Args:
      act: False for pre-activation networks, whose first block begins with the activation.
    """

    features: int
    layers: Layers
    act: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w d"]:
        x = self.layers.conv(self.features, 3, name="conv")(x)
        if self.act:
            return self.layers.norm_act(x, train=train, name="norm")
        return self.layers.norm(name="norm")(x, train=train)


class LargeStem(nn.Module):
    """7x7 convolution and max pool, each with stride 2 (ImageNet)."""

    features: int
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h4 w4 d"]:
        x = self.layers.conv(self.features, 7, stride=2, name="conv")(x)
        return self.layers.norm_act_pool(x, train=train, name="norm")


class DeepStem(nn.Module):
    """Three 3x3 convolutions instead of one 7x7, the first two at half the width, then max pool (ResNet-D).

    Source: He et al., Bag of Tricks for Image Classification, CVPR 2019.
    """

    features: int
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h4 w4 d"]:
        half = self.features // 2
        for i, (features, stride) in enumerate(((half, 2), (half, 1), (self.features, 1)), start=1):
            x = self.layers.conv(features, 3, stride=stride, name=f"conv{i}")(x)
            norm = self.layers.norm_act if i < 3 else self.layers.norm_act_pool
            x = norm(x, train=train, name=f"norm{i}")
        return x


class RegNetStem(nn.Module):
    """One 3x3 convolution with stride 2."""

    features: int
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"]:
        x = self.layers.conv(self.features, 3, stride=2, name="conv")(x)
        return self.layers.norm_act(x, train=train, name="norm")


class PatchStem(nn.Module):
    """A linear map of each patch of 4x4 pixels, then norm (ConvNeXt, Swin)."""

    features: int
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h4 w4 d"]:
        x = self.layers.patch_conv(self.features, 4, name="conv")(x)
        return self.layers.norm(name="norm")(x, train=train)
