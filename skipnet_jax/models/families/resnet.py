"""ResNet and its kin: ResNeXt, SE-ResNet, SE-ResNeXt, ResNet-D, and the CIFAR ResNets.

Sources: He et al., Deep Residual Learning, CVPR 2016; Xie et al., ResNeXt, CVPR 2017; Hu et al.,
Squeeze-and-Excitation, CVPR 2018; He et al., Bag of Tricks (ResNet-D), CVPR 2019.

Deviations from the papers, as in the published SkipResNet tables: the stride of a bottleneck is in its 3x3
convolution (as in torchvision); a CIFAR ResNet's shortcut is a 1x1 convolution where the width changes, not
zero padding; no zero initialisation of the last norm.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

from skipnet_jax.models.block import BlockArchitecture, stage_strides
from skipnet_jax.models.layers import Layers, SqueezeExcite
from skipnet_jax.models.network import Architecture
from skipnet_jax.models.shortcuts import AverageLinearShortcut, LinearShortcut
from skipnet_jax.models.stems import DeepStem, LargeStem, SmallStem


class BasicOperation(nn.Module):
    """Two 3x3 convolutions.

    Args:
      features: output channels.
      squeeze_excite: channels -> hidden width of the squeeze-excite after the last norm; None = without.
    """

    features: int
    stride: int
    layers: Layers
    squeeze_excite: Callable[[int], int] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"]:
        x = self.layers.conv(self.features, 3, stride=self.stride, name="conv1")(x)
        x = self.layers.norm_act(x, train=train, name="norm1")
        x = self.layers.conv(self.features, 3, name="conv2")(x)
        x = self.layers.norm(name="norm2")(x, train=train)
        if self.squeeze_excite is None:
            return x
        return SqueezeExcite(self.squeeze_excite(self.features), self.layers, name="squeeze_excite")(x)


class BottleneckOperation(nn.Module):
    """A 3x3 convolution at a smaller width between two 1x1 ones.

    Args:
      features: output channels.
      inner: channels of the 3x3 convolution.
      groups: of the 3x3 convolution.
      squeeze_excite: channels -> hidden width of the squeeze-excite after the last norm; None = without.
    """

    features: int
    inner: int
    stride: int
    layers: Layers
    groups: int = 1
    squeeze_excite: Callable[[int], int] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"]:
        x = self.layers.conv(self.inner, 1, name="conv1")(x)
        x = self.layers.norm_act(x, train=train, name="norm1")
        x = self.layers.conv(self.inner, 3, stride=self.stride, groups=self.groups, name="conv2")(x)
        x = self.layers.norm_act(x, train=train, name="norm2")
        x = self.layers.conv(self.features, 1, name="conv3")(x)
        x = self.layers.norm(name="norm3")(x, train=train)
        if self.squeeze_excite is None:
            return x
        return SqueezeExcite(self.squeeze_excite(self.features), self.layers, name="squeeze_excite")(x)


def _imagenet_se(channels: int) -> int:
    """Reduction 16, a multiple of 8."""
    return max(round(channels / 16 / 8), 1) * 8


def _cifar_se(channels: int) -> int:
    """Reduction 8."""
    return max(round(channels / 8), 1)


def _basic(
    name: str,
    blocks: tuple[int, ...],
    *,
    width: int = 64,
    small: bool = False,
    squeeze_excite: Callable[[int], int] | None = None,
) -> Architecture:
    """ResNets of two 3x3 convolutions a block; `small` ones are for CIFAR."""
    plans = []
    for stage, stride in stage_strides(blocks):
        features = width * 2**stage
        shortcut = functools.partial(LinearShortcut, features, stride)
        operation = functools.partial(BasicOperation, features, stride, squeeze_excite=squeeze_excite)
        plans.append(BlockArchitecture(stride, shortcut, operation))
    if small:
        stem = functools.partial(SmallStem, width)
        return Architecture(name, 32, 100, stem, tuple(plans), gate_reduction=2)
    return Architecture(name, 224, 1000, functools.partial(LargeStem, width), tuple(plans))


def _bottleneck(
    name: str,
    blocks: tuple[int, ...],
    *,
    groups: int = 1,
    group_width: int = 64,
    squeeze_excite: Callable[[int], int] | None = None,
    variant_d: bool = False,
) -> Architecture:
    """ResNets of a 3x3 between two 1x1 convolutions a block, for ImageNet."""
    make_shortcut = AverageLinearShortcut if variant_d else LinearShortcut
    plans = []
    for stage, stride in stage_strides(blocks):
        features, inner = 256 * 2**stage, groups * group_width * 2**stage
        shortcut = functools.partial(make_shortcut, features, stride)
        operation = functools.partial(
            BottleneckOperation, features, inner, stride, groups=groups, squeeze_excite=squeeze_excite
        )
        plans.append(BlockArchitecture(stride, shortcut, operation))
    return Architecture(name, 224, 1000, functools.partial(DeepStem if variant_d else LargeStem, 64), tuple(plans))


NETWORKS = {
    "resnet18": _basic("ResNet-18", (2, 2, 2, 2)),
    "resnet34": _basic("ResNet-34", (3, 4, 6, 3)),
    "resnet50": _bottleneck("ResNet-50", (3, 4, 6, 3)),
    "resnet101": _bottleneck("ResNet-101", (3, 4, 23, 3)),
    "resnet152": _bottleneck("ResNet-152", (3, 8, 36, 3)),
    "resnet20": _basic("ResNet-20", (3, 3, 3), width=16, small=True),
    "resnet110": _basic("ResNet-110", (18, 18, 18), width=16, small=True),
    "seresnet34": _basic("SE-ResNet-34", (3, 4, 6, 3), squeeze_excite=_imagenet_se),
    "seresnet50": _bottleneck("SE-ResNet-50", (3, 4, 6, 3), squeeze_excite=_imagenet_se),
    "seresnet101": _bottleneck("SE-ResNet-101", (3, 4, 23, 3), squeeze_excite=_imagenet_se),
    "seresnet152": _bottleneck("SE-ResNet-152", (3, 8, 36, 3), squeeze_excite=_imagenet_se),
    "seresnet110": _basic("SE-ResNet-110", (18, 18, 18), width=16, small=True, squeeze_excite=_cifar_se),
    "resnext50_32x4d": _bottleneck("ResNeXt-50-32x4d", (3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x4d": _bottleneck("ResNeXt-101-32x4d", (3, 4, 23, 3), groups=32, group_width=4),
    "resnext101_32x8d": _bottleneck("ResNeXt-101-32x8d", (3, 4, 23, 3), groups=32, group_width=8),
    "seresnext50_32x4d": _bottleneck(
        "SE-ResNeXt-50-32x4d", (3, 4, 6, 3), groups=32, group_width=4, squeeze_excite=_imagenet_se
    ),
    "seresnext101_32x4d": _bottleneck(
        "SE-ResNeXt-101-32x4d", (3, 4, 23, 3), groups=32, group_width=4, squeeze_excite=_imagenet_se
    ),
    "seresnext101_32x8d": _bottleneck(
        "SE-ResNeXt-101-32x8d", (3, 4, 23, 3), groups=32, group_width=8, squeeze_excite=_imagenet_se
    ),
    "resnet50d": _bottleneck("ResNetD-50", (3, 4, 6, 3), variant_d=True),
    "resnet101d": _bottleneck("ResNetD-101", (3, 4, 23, 3), variant_d=True),
    "resnet152d": _bottleneck("ResNetD-152", (3, 8, 36, 3), variant_d=True),
}
