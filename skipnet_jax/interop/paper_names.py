"""The names of the papers' own code for ConvNeXt and Swin, which early versions of timm had for Swin too.

Source: the module names of github.com/facebookresearch/ConvNeXt and github.com/microsoft/Swin-Transformer.
"""

from skipnet_jax.interop import timm_names
from skipnet_jax.interop.naming import LEAVES, Naming

CONVNEXT = Naming(
    "stages.{stage}.{block}",
    (
        (r"^stem\.conv\.", "downsample_layers.0.0."),
        (r"^stem\.norm\.", "downsample_layers.0.1."),
        (r"^stages\.(\d)\.0\.shortcut\.norm\.", r"downsample_layers.\1.0."),
        (r"^stages\.(\d)\.0\.shortcut\.conv\.", r"downsample_layers.\1.1."),
        (r"\.operation\.layer_scale$", ".gamma"),
        (r"\.operation\.", "."),
        (r"^classifier_norm\.", "norm."),
        (r"^classifier\.", "head."),
        *LEAVES,
    ),
)

SWIN = Naming(
    timm_names.SWIN.block,
    (
        *((rf"^layers\.{stage}\.blocks\.0\.shortcut\.", f"layers.{stage - 1}.downsample.") for stage in (1, 2, 3)),
        (r"^classifier\.", "head."),
        *timm_names.SWIN.renames,
    ),
)

NAMINGS = {"convnext": CONVNEXT, "swin": SWIN}  # by the family's name
