"""The names in the author's own SkipResNets for timm (skipresnet50, ...), and in the weights that he published.

Source: the parameter names of github.com/takedarts/skipresnet-reference, as recorded in tests/golden/author_timm.
"""

from skipnet_jax.interop import timm_names
from skipnet_jax.interop.naming import Naming

_GATE = (
    (r"\.junction\.reduce\.", ".gate.conv1."),
    (r"\.junction\.norm\.", ".gate.bn."),
    (r"\.junction\.expand\.", ".gate.conv2."),
)
_CONVOLUTIONS = r"\.gate\.conv\d\.weight$"

RESNET = Naming(
    "layer{stage1}.blocks.{block}",
    (
        (r"\.blocks\.0\.shortcut\.conv\.", ".downsample.0."),
        (r"\.blocks\.0\.shortcut\.norm\.", ".downsample.1."),
        *_GATE,
        *timm_names.RESNET_RENAMES,
    ),
    convolutions=_CONVOLUTIONS,
    junctions=True,
)

CONVNEXT = Naming(
    timm_names.CONVNEXT.block,
    (*_GATE, *timm_names.CONVNEXT.renames),
    convolutions=_CONVOLUTIONS,
    junctions=True,
)

# Our network -> the author's name for it, and its naming.
NETWORKS: dict[str, tuple[str, Naming]] = {
    **{f"skip_{name}": (f"skip{name}", RESNET) for name in ("resnet18", "resnet34", "resnet50", "resnet101")},
    **{f"skip_{name}": (f"skip{name}", RESNET) for name in ("resnet152", "resnext50_32x4d")},
    **{f"skip_{name}": (f"skip{name}", RESNET) for name in ("resnext101_32x4d", "resnext101_32x8d")},
    **{f"skip_{name}": (f"skip{name}", CONVNEXT) for name in ("convnext_tiny", "convnext_small")},
    **{f"skip_{name}": (f"skip{name}", CONVNEXT) for name in ("convnext_base", "convnext_large")},
}
