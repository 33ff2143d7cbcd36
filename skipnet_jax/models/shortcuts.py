"""Shortcuts: the identity, unless the stride or the width changes."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from skipnet_jax.models.layers import FeatureMap, Layers


def average_pool(x: Float[Array, "b h w c"], stride: int) -> Float[Array, "b h2 w2 c"]:
    """Means over windows of stride x stride pixels; a partial window at the edge averages the pixels it has."""
    if stride == 1:
        return x
    pad = ((0, -x.shape[1] % stride), (0, -x.shape[2] % stride))
    pooled = nn.avg_pool(x, (stride, stride), (stride, stride), padding=pad, count_include_pad=False)
    return pooled.astype(x.dtype)  # flax divides by float32 counts


class LinearShortcut(nn.Module):
    """1x1 convolution with the block's stride, then norm."""

    features: int
    stride: int
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"] | FeatureMap:
        if self.stride == 1 and x.shape[-1] == self.features:
            return x
        x = self.layers.conv(self.features, 1, stride=self.stride, name="conv")(x)
        return self.layers.norm_and_mean(x, train=train, name="norm")


class AverageLinearShortcut(nn.Module):
    """Average pool, then a 1x1 convolution and norm if the width changes (ResNet-D).

    Source: He et al., Bag of Tricks for Image Classification, CVPR 2019.
    """

    features: int
    stride: int
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"] | FeatureMap:
        x = average_pool(x, self.stride)
        if x.shape[-1] == self.features:
            return x
        x = self.layers.conv(self.features, 1, name="conv")(x)
        return self.layers.norm_and_mean(x, train=train, name="norm")


class AverageShortcut(nn.Module):
    """Average pool, then zeros for the missing channels: no parameters (PyramidNet).

    Source: Han et al., Deep Pyramidal Residual Networks, CVPR 2017.
    """

    features: int
    stride: int
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"]:
        del train
        missing = self.features - x.shape[-1]
        return jnp.pad(average_pool(x, self.stride), ((0, 0), (0, 0), (0, 0), (0, missing)))
