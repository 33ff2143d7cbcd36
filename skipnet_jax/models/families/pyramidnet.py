"""PyramidNet: pre-activation ResNets whose width grows a little with every block.

Source: Han et al., Deep Pyramidal Residual Networks, CVPR 2017.

Deviation, as in the published SkipResNet tables: the operation is WideResNet's, without the paper's third norm at the
end of the branch.
"""

import functools

from skipnet_jax.models.block import BlockArchitecture, stage_strides
from skipnet_jax.models.families.wide_resnet import PreActivationOperation
from skipnet_jax.models.network import Architecture
from skipnet_jax.models.shortcuts import AverageShortcut
from skipnet_jax.models.stems import SmallStem


def _architecture(name: str, depths: tuple[int, ...], added: int) -> Architecture:
    blocks = []
    for i, (_, stride) in enumerate(stage_strides(depths), start=1):
        features = round(16 + added * i / sum(depths))
        shortcut = functools.partial(AverageShortcut, features, stride)
        blocks.append(BlockArchitecture(stride, shortcut, functools.partial(PreActivationOperation, features, stride)))
    stem = functools.partial(SmallStem, 16, act=False)
    return Architecture(name, 32, 100, stem, tuple(blocks), head_norm=True, head_act=True, post_activation=False)


NETWORKS = {
    "pyramidnet110_a48": _architecture("PyramidNet-110-a48", (18, 18, 18), 48),
    "pyramidnet110_a270": _architecture("PyramidNet-110-a270", (18, 18, 18), 270),
}
