"""RegNetX and RegNetY: stages whose widths follow a quantised line.

Source: Radosavovic et al., Designing Network Design Spaces, CVPR 2020 (section 3.3; the numbers are in its appendix).

Deviations, as in the published SkipResNet tables: the widths are 8 * round(w0 * wm^k / 8), then rounded to a multiple
of the group width; every network is trained with the same recipe.
"""

import functools
import math

import flax.linen as nn
from jaxtyping import Array, Float

from skipnet_jax.models.block import BlockArchitecture
from skipnet_jax.models.layers import FeatureMap, Layers, SqueezeExcite
from skipnet_jax.models.network import Architecture
from skipnet_jax.models.shortcuts import LinearShortcut
from skipnet_jax.models.stems import RegNetStem

STEM_FEATURES = 32
SQUEEZE_REDUCTION = 4  # of the block's input width


class RegNetOperation(nn.Module):
    """A grouped 3x3 convolution between two 1x1 convolutions of the same width.

    Args:
      squeeze_excite: add a squeeze-excite after the second activation (RegNetY).
    """

    features: int
    stride: int
    groups: int
    squeeze_excite: bool
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"] | FeatureMap:
        hidden = round(x.shape[-1] / SQUEEZE_REDUCTION)
        x = self.layers.conv(self.features, 1, name="conv1")(x)
        x = self.layers.norm_act(x, train=train, name="norm1")
        x = self.layers.conv(self.features, 3, stride=self.stride, groups=self.groups, name="conv2")(x)
        x = self.layers.norm_act(x, train=train, name="norm2")
        if self.squeeze_excite:
            x = SqueezeExcite(hidden, self.layers, name="squeeze_excite")(x)
        x = self.layers.conv(self.features, 1, name="conv3")(x)
        return self.layers.last_norm(x, train=train, name="norm3")


def stage_widths(*, depth: int, w0: int, wa: float, wm: float, group_width: int) -> list[tuple[int, int]]:
    """(width, groups) of each block; w0, wa, wm as in the paper."""
    widths = []
    for j in range(depth):
        k = round(math.log((w0 + wa * j) / w0) / math.log(wm))
        width = 8 * round(w0 * wm**k / 8)
        groups = round(width / group_width)
        widths.append((groups * group_width, groups))
    return widths


def _architecture(
    name: str, *, depth: int, w0: int, wa: float, wm: float, group_width: int, squeeze_excite: bool = False
) -> Architecture:
    blocks = []
    previous = STEM_FEATURES
    for features, groups in stage_widths(depth=depth, w0=w0, wa=wa, wm=wm, group_width=group_width):
        stride = 2 if features != previous else 1
        shortcut = functools.partial(LinearShortcut, features, stride)
        operation = functools.partial(RegNetOperation, features, stride, groups, squeeze_excite)
        blocks.append(BlockArchitecture(stride, shortcut, operation))
        previous = features
    return Architecture(name, 224, 1000, functools.partial(RegNetStem, STEM_FEATURES), tuple(blocks))


NETWORKS = {
    "regnetx_008": _architecture("RegNetX-0.8", depth=16, w0=56, wa=35.73, wm=2.28, group_width=16),
    "regnetx_016": _architecture("RegNetX-1.6", depth=18, w0=80, wa=34.01, wm=2.25, group_width=24),
    "regnetx_032": _architecture("RegNetX-3.2", depth=25, w0=88, wa=26.31, wm=2.25, group_width=48),
    "regnety_008": _architecture("RegNetY-0.8", depth=14, w0=56, wa=38.84, wm=2.4, group_width=16, squeeze_excite=True),
    "regnety_016": _architecture(
        "RegNetY-1.6", depth=27, w0=48, wa=20.71, wm=2.65, group_width=24, squeeze_excite=True
    ),
    "regnety_032": _architecture(
        "RegNetY-3.2", depth=21, w0=80, wa=42.63, wm=2.66, group_width=24, squeeze_excite=True
    ),
}
