"""The residual block: a shortcut and an operation, joined by a junction.

Source: He et al., CVPR 2016; Takeda, MIRU2020, for the junction in place of the addition.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import flax.linen as nn

from skipnet_jax.models.junctions import fit_channels
from skipnet_jax.models.layers import FeatureMap, Layers, feature_map
from skipnet_jax.models.noise import BranchNoise, Scalar


@dataclasses.dataclass(frozen=True)
class BlockArchitecture:
    """One block as its family describes it.

    Args:
      stride: 1 or 2; a block with stride 2 starts a section.
      shortcut, operation: module factories that take `layers=` and `name=`.
    """

    stride: int
    shortcut: Callable[..., nn.Module]
    operation: Callable[..., nn.Module]


def stage_strides(depths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields (stage, stride) of each block; the first block of every stage but the first has stride 2.

    Args:
      depths: blocks per stage.
    """
    for stage, depth in enumerate(depths):
        for i in range(depth):
            yield stage, 2 if stage and not i else 1


class Block(nn.Module):
    """One block; returns its output, and the state that later blocks of the section may see.

    Args:
      junction: module factory that takes `name=`.
      noise: on the branch, in training.
      shortcut_first: the operation reads the shortcut's output (ConvNeXt, Swin), not the block's input.
    """

    architecture: BlockArchitecture
    layers: Layers
    junction: Callable[..., nn.Module]
    noise: BranchNoise
    shortcut_first: bool

    @nn.compact
    def __call__(
        self, x: FeatureMap, earlier: Sequence[FeatureMap], *, train: bool, progress: Scalar
    ) -> tuple[FeatureMap, FeatureMap]:
        z = self.architecture.shortcut(layers=self.layers, name="shortcut")(x.value, train=train)
        state = x if z is x.value else feature_map(z)
        # Noise applies to the finished map, so the norm may not leave its multiplication to the junction.
        layers = dataclasses.replace(self.layers, deferred_norm=None) if self.noise.active else self.layers
        operation = self.architecture.operation(layers=layers, name="operation")
        y = operation(state.value if self.shortcut_first else x.value, train=train)
        if self.noise.active:
            y = self.noise.add(y, progress, train=train)
        y = feature_map(y)
        states = [fit_channels(s, y.value.shape[-1]) for s in (state, *earlier)]
        return self.junction(name="junction")(y, states, train=train), state
