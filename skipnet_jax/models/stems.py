"""The stems: from the image to the first block's input."""

import flax.linen as nn
from jaxtyping import Array, Float

from skipnet_jax.models.layers import Layers
from skipnet_jax.models.ops.max_pool import max_pool


class SmallStem(nn.Module):
    """One 3x3 convolution at full resolution (CIFAR).

    Args:
      features: output channels.
      act: pre-activation networks leave the activation to their first block.
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
        return max_pool(self.layers.norm_act(x, train=train, name="norm"))


class DeepStem(nn.Module):
    """Three 3x3 convolutions in place of the 7x7 one, the first two at half the width (ResNet-D).

    Source: He et al., Bag of Tricks for Image Classification, CVPR 2019.
    """

    features: int
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h4 w4 d"]:
        half = self.features // 2
        for i, (features, stride) in enumerate(((half, 2), (half, 1), (self.features, 1)), start=1):
            x = self.layers.conv(features, 3, stride=stride, name=f"conv{i}")(x)
            x = self.layers.norm_act(x, train=train, name=f"norm{i}")
        return max_pool(x)


class RegNetStem(nn.Module):
    """One 3x3 convolution with stride 2."""

    features: int
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"]:
        x = self.layers.conv(self.features, 3, stride=2, name="conv")(x)
        return self.layers.norm_act(x, train=train, name="norm")


class PatchStem(nn.Module):
    """Patches of 4x4 pixels (ConvNeXt, Swin)."""

    features: int
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h4 w4 d"]:
        x = self.layers.patch_conv(self.features, 4, name="conv")(x)
        return self.layers.norm(name="norm")(x, train=train)
