"""The names of torchvision, where they differ from timm's: RegNet, ConvNeXt and Swin.

Its ResNets and ResNeXts have timm's names. The values are laid out alike except that a ConvNeXt's layer scale is
[c, 1, 1].

Source: the module names of torchvision 0.28.
"""

from skipnet_jax.interop.naming import LEAVES, Naming

_MERGED = [(2 * stage + 1, 2 * stage) for stage in (1, 2, 3)]  # number of a stage, and of the reduction before it

REGNET = Naming(
    "trunk_output.block{stage1}.block{stage1}-{block}",
    (
        (r"^stem\.conv\.", "stem.0."),
        (r"^stem\.norm\.", "stem.1."),
        (r"\.shortcut\.conv\.", ".proj.0."),
        (r"\.shortcut\.norm\.", ".proj.1."),
        (r"\.operation\.squeeze_excite\.reduce\.", ".f.se.fc1."),
        (r"\.operation\.squeeze_excite\.expand\.", ".f.se.fc2."),
        *((rf"\.operation\.conv{i}\.", f".f.{letter}.0.") for i, letter in enumerate("abc", start=1)),
        *((rf"\.operation\.norm{i}\.", f".f.{letter}.1.") for i, letter in enumerate("abc", start=1)),
        (r"^classifier\.", "fc."),
        *LEAVES,
    ),
    convolutions=r"\.se\.fc\d\.weight$",
)

CONVNEXT = Naming(
    "features.{odd}.{block}",
    (
        (r"^stem\.conv\.", "features.0.0."),
        (r"^stem\.norm\.", "features.0.1."),
        *((rf"^features\.{own}\.0\.shortcut\.norm\.", f"features.{before}.0.") for own, before in _MERGED),
        *((rf"^features\.{own}\.0\.shortcut\.conv\.", f"features.{before}.1.") for own, before in _MERGED),
        (r"\.operation\.dwconv\.", ".block.0."),
        (r"\.operation\.norm\.", ".block.2."),
        (r"\.operation\.pwconv1\.", ".block.3."),
        (r"\.operation\.pwconv2\.", ".block.5."),
        (r"\.operation\.layer_scale$", ".layer_scale"),
        (r"^classifier_norm\.", "classifier.0."),
        (r"^classifier\.(kernel|bias)$", r"classifier.2.\1"),
        *LEAVES,
    ),
    columns=r"\.layer_scale$",
)

SWIN = Naming(
    "features.{odd}.{pair}",
    (
        (r"^stem\.conv\.", "features.0.0."),
        (r"^stem\.norm\.", "features.0.2."),
        *((rf"^features\.{own}\.0\.shortcut\.", f"features.{before}.") for own, before in _MERGED),
        (r"\.operation\.attn_norm\.", ".norm1."),
        (r"\.operation\.attn_(qkv|proj)\.", r".attn.\1."),
        (r"\.operation\.attn_position_bias$", ".attn.relative_position_bias_table"),
        (r"\.operation\.mlp_norm\.", ".norm2."),
        (r"\.operation\.mlp_fc1\.", ".mlp.0."),
        (r"\.operation\.mlp_fc2\.", ".mlp.3."),
        (r"^head_norm\.", "norm."),
        (r"^classifier\.", "head."),
        *LEAVES,
    ),
)

# Our plain network -> torchvision's name for it, and its naming. torchvision's regnet_y_800mf has other widths than the
# paper's RegNetY-0.8.
NETWORKS: dict[str, tuple[str, Naming]] = {
    "regnetx_008": ("regnet_x_800mf", REGNET),
    "regnetx_016": ("regnet_x_1_6gf", REGNET),
    "regnetx_032": ("regnet_x_3_2gf", REGNET),
    "regnety_016": ("regnet_y_1_6gf", REGNET),
    "regnety_032": ("regnet_y_3_2gf", REGNET),
    **{name: (name, CONVNEXT) for name in ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large")},
    "swin_tiny": ("swin_t", SWIN),
    "swin_small": ("swin_s", SWIN),
    "swin_base": ("swin_b", SWIN),
}
# These have timm's names in torchvision too.
SAME_AS_TIMM = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d"),
)
