"""ConvNeXt: depthwise 7x7 convolutions with a transformer's proportions.

Source: Liu et al., A ConvNet for the 2020s, CVPR 2022.

Deviations, as in the published SkipResNet tables: the downsampling between stages is the shortcut of the next stage's
first block, so gates see its output as a state; convolutions and linear layers start from torch's default, not from a
truncated normal.
"""

import functools

import flax.linen as nn
from jaxtyping import Array, Float

from skipnet_jax.models.block import BlockArchitecture, stage_strides
from skipnet_jax.models.layers import Layers, layer_norm_gelu, param_dtype, per_channel
from skipnet_jax.models.network import Architecture
from skipnet_jax.models.stems import PatchStem

LAYER_NORM_EPSILON = 1e-6
LAYER_SCALE_INIT = 1e-6


class ConvNeXtOperation(nn.Module):
    """Depthwise 7x7 convolution, norm, then for each pixel a two-layer perceptron of four times the width."""

    features: int
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        x = self.layers.conv(self.features, 7, groups=self.features, use_bias=True, name="dwconv")(x)
        x = self.layers.norm(name="norm")(x, train=train)
        x = self.layers.act(self.layers.dense(4 * self.features, name="pwconv1")(x))
        x = self.layers.dense(self.features, name="pwconv2")(x)
        init = nn.initializers.constant(LAYER_SCALE_INIT)
        scale = self.param("layer_scale", init, (self.features,), param_dtype(self.layers.dtype))
        return x * per_channel(scale, x)


class ConvNeXtShortcut(nn.Module):
    """Norm and a 2x2 convolution with stride 2 if the width changes, else the identity."""

    features: int
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"]:
        if x.shape[-1] == self.features:
            return x
        x = self.layers.norm(name="norm")(x, train=train)
        return self.layers.patch_conv(self.features, 2, name="conv")(x)


def _architecture(name: str, depths: tuple[int, ...], width: int) -> Architecture:
    blocks = []
    for stage, stride in stage_strides(depths):
        features = width * 2**stage
        shortcut = functools.partial(ConvNeXtShortcut, features)
        blocks.append(BlockArchitecture(stride, shortcut, functools.partial(ConvNeXtOperation, features)))
    return Architecture(
        name,
        224,
        1000,
        functools.partial(PatchStem, width),
        tuple(blocks),
        layers=functools.partial(layer_norm_gelu, LAYER_NORM_EPSILON),
        classifier_norm=True,
        shortcut_first=True,
        post_activation=False,
    )


NETWORKS = {
    "convnext_tiny": _architecture("ConvNeXt-T", (3, 3, 9, 3), 96),
    "convnext_small": _architecture("ConvNeXt-S", (3, 3, 27, 3), 96),
    "convnext_base": _architecture("ConvNeXt-B", (3, 3, 27, 3), 128),
    "convnext_large": _architecture("ConvNeXt-L", (3, 3, 27, 3), 192),
}
