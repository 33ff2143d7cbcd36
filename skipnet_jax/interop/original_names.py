"""The names of the original (PyTorch) implementation of SkipResNets, which has all networks and all junctions."""

import re
from collections.abc import Sequence

from skipnet_jax.interop.naming import LEAVES, Naming, rename

# Its linear layers; all other linear maps are 1x1 convolutions there.
_LINEAR = r"\.(attn_attn\.(qkv|proj)|mlp_fc\d|downsample\.reduction)\.weight$"

ORIGINAL = Naming(
    "blocks.{index}",
    (
        (r"\.shortcut\.", ".downsample."),
        (r"\.junction\.reduce\.", ".junction.op.conv1."),
        (r"\.junction\.norm\.", ".junction.op.norm1."),
        (r"\.junction\.expand\.", ".junction.op.conv2."),
        (r"\.squeeze_excite\.reduce\.", ".semodule.op.conv1."),
        (r"\.squeeze_excite\.expand\.", ".semodule.op.conv2."),
        (r"\.operation\.layer_scale$", ".operation.gamma"),
        (r"\.operation\.attn_(qkv|proj)\.", r".operation.attn_attn.\1."),
        (r"\.operation\.attn_position_bias$", ".operation.attn_attn.relative_position_bias_table"),
        (r"^head_norm\.", "head.norm."),
        (r"^classifier_norm\.", "classifier.norm."),
        (r"^classifier\.(kernel|bias)$", r"classifier.conv.\1"),
        *LEAVES,
    ),
    convolutions=rf"^(?!.*{_LINEAR}).*",
    junctions=True,
)


def original_name(path: Sequence[str]) -> str:
    """The original's name for one of our parameters or statistics.

    Args:
      path: inside the collection, for example ("blocks_0", "junction", "reduce", "kernel").
    """
    return rename([re.sub(r"^blocks_(\d+)$", r"blocks.\1", part) for part in path], ORIGINAL.renames)
