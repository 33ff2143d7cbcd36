"""ResNet and its variants: ResNeXt, SE-ResNet, SE-ResNeXt, ResNet-D, and the CIFAR ResNets.

Sources: He et al., Deep Residual Learning, CVPR 2016; Xie et al., ResNeXt, CVPR 2017; Hu et al.,
Squeeze-and-Excitation, CVPR 2018; He et al., Bag of Tricks (ResNet-D), CVPR 2019.

Deviations, as in the published SkipResNet tables: a bottleneck has its stride in the 3x3 convolution (as in
torchvision); a CIFAR ResNet's shortcut is a 1x1 convolution where the width changes, not zero padding; the last norm of
a block does not start at zero.
"""

import functools

import flax.linen as nn
from jaxtyping import Array, Float

from skipnet_jax.models.block import BlockArchitecture, stage_strides
from skipnet_jax.models.layers import FeatureMap, Layers, SqueezeExcite
from skipnet_jax.models.network import Architecture
from skipnet_jax.models.shortcuts import AverageLinearShortcut, LinearShortcut
from skipnet_jax.models.stems import DeepStem, LargeStem, SmallStem


class BasicOperation(nn.Module):
    """Two 3x3 convolutions.

    Args:
      squeeze_excite: hidden width of the squeeze-excite after the last norm; 0 = none.
    """

    features: int
    stride: int
    layers: Layers
    squeeze_excite: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"] | FeatureMap:
        x = self.layers.conv(self.features, 3, stride=self.stride, name="conv1")(x)
        x = self.layers.norm_act(x, train=train, name="norm1")
        x = self.layers.conv(self.features, 3, name="conv2")(x)
        if not self.squeeze_excite:
            return self.layers.last_norm(x, train=train, name="norm2")
        x = self.layers.norm(name="norm2")(x, train=train)
        return SqueezeExcite(self.squeeze_excite, self.layers, name="squeeze_excite")(x)


class BottleneckOperation(nn.Module):
    """A 3x3 convolution at a smaller width between two 1x1 convolutions.

    Args:
      inner: channels of the 3x3 convolution.
      groups: of the 3x3 convolution.
      squeeze_excite: hidden width of the squeeze-excite after the last norm; 0 = none.
    """

    features: int
    inner: int
    stride: int
    layers: Layers
    groups: int = 1
    squeeze_excite: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"] | FeatureMap:
        x = self.layers.conv(self.inner, 1, name="conv1")(x)
        x = self.layers.norm_act(x, train=train, name="norm1")
        x = self.layers.conv(self.inner, 3, stride=self.stride, groups=self.groups, name="conv2")(x)
        x = self.layers.norm_act(x, train=train, name="norm2")
        x = self.layers.conv(self.features, 1, name="conv3")(x)
        if not self.squeeze_excite:
            return self.layers.last_norm(x, train=train, name="norm3")
        x = self.layers.norm(name="norm3")(x, train=train)
        return SqueezeExcite(self.squeeze_excite, self.layers, name="squeeze_excite")(x)


def _squeeze_width(channels: int, *, small: bool = False) -> int:
    """A sixteenth of the channels, rounded to a multiple of 8; an eighth for `small` networks."""
    return max(round(channels / 8), 1) if small else max(round(channels / 16 / 8), 1) * 8


def _basic(
    name: str, depths: tuple[int, ...], *, width: int = 64, small: bool = False, squeeze_excite: bool = False
) -> Architecture:
    """ResNets with two 3x3 convolutions in a block; `small` ones are for CIFAR."""
    blocks = []
    for stage, stride in stage_strides(depths):
        features = width * 2**stage
        shortcut = functools.partial(LinearShortcut, features, stride)
        hidden = _squeeze_width(features, small=small) if squeeze_excite else 0
        operation = functools.partial(BasicOperation, features, stride, squeeze_excite=hidden)
        blocks.append(BlockArchitecture(stride, shortcut, operation))
    if small:
        stem = functools.partial(SmallStem, width)
        return Architecture(name, 32, 100, stem, tuple(blocks), gate_reduction=2)
    return Architecture(name, 224, 1000, functools.partial(LargeStem, width), tuple(blocks))


def _bottleneck(
    name: str,
    depths: tuple[int, ...],
    *,
    groups: int = 1,
    group_width: int = 64,
    squeeze_excite: bool = False,
    variant_d: bool = False,
) -> Architecture:
    """ResNets with a 3x3 convolution between two 1x1 convolutions in a block, for ImageNet."""
    make_shortcut = AverageLinearShortcut if variant_d else LinearShortcut
    blocks = []
    for stage, stride in stage_strides(depths):
        features, inner = 256 * 2**stage, groups * group_width * 2**stage
        shortcut = functools.partial(make_shortcut, features, stride)
        hidden = _squeeze_width(features) if squeeze_excite else 0
        operation = functools.partial(
            BottleneckOperation, features, inner, stride, groups=groups, squeeze_excite=hidden
        )
        blocks.append(BlockArchitecture(stride, shortcut, operation))
    return Architecture(name, 224, 1000, functools.partial(DeepStem if variant_d else LargeStem, 64), tuple(blocks))


NETWORKS = {
    "resnet18": _basic("ResNet-18", (2, 2, 2, 2)),
    "resnet34": _basic("ResNet-34", (3, 4, 6, 3)),
    "resnet50": _bottleneck("ResNet-50", (3, 4, 6, 3)),
    "resnet101": _bottleneck("ResNet-101", (3, 4, 23, 3)),
    "resnet152": _bottleneck("ResNet-152", (3, 8, 36, 3)),
    "resnet20": _basic("ResNet-20", (3, 3, 3), width=16, small=True),
    "resnet32": _basic("ResNet-32", (5, 5, 5), width=16, small=True),
    "resnet44": _basic("ResNet-44", (7, 7, 7), width=16, small=True),
    "resnet56": _basic("ResNet-56", (9, 9, 9), width=16, small=True),
    "resnet110": _basic("ResNet-110", (18, 18, 18), width=16, small=True),
    "seresnet34": _basic("SE-ResNet-34", (3, 4, 6, 3), squeeze_excite=True),
    "seresnet50": _bottleneck("SE-ResNet-50", (3, 4, 6, 3), squeeze_excite=True),
    "seresnet101": _bottleneck("SE-ResNet-101", (3, 4, 23, 3), squeeze_excite=True),
    "seresnet152": _bottleneck("SE-ResNet-152", (3, 8, 36, 3), squeeze_excite=True),
    "seresnet110": _basic("SE-ResNet-110", (18, 18, 18), width=16, small=True, squeeze_excite=True),
    "resnext50_32x4d": _bottleneck("ResNeXt-50-32x4d", (3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x4d": _bottleneck("ResNeXt-101-32x4d", (3, 4, 23, 3), groups=32, group_width=4),
    "resnext101_32x8d": _bottleneck("ResNeXt-101-32x8d", (3, 4, 23, 3), groups=32, group_width=8),
    "seresnext50_32x4d": _bottleneck(
        "SE-ResNeXt-50-32x4d", (3, 4, 6, 3), groups=32, group_width=4, squeeze_excite=True
    ),
    "seresnext101_32x4d": _bottleneck(
        "SE-ResNeXt-101-32x4d", (3, 4, 23, 3), groups=32, group_width=4, squeeze_excite=True
    ),
    "seresnext101_32x8d": _bottleneck(
        "SE-ResNeXt-101-32x8d", (3, 4, 23, 3), groups=32, group_width=8, squeeze_excite=True
    ),
    "resnet50d": _bottleneck("ResNetD-50", (3, 4, 6, 3), variant_d=True),
    "resnet101d": _bottleneck("ResNetD-101", (3, 4, 23, 3), variant_d=True),
    "resnet152d": _bottleneck("ResNetD-152", (3, 8, 36, 3), variant_d=True),
}
