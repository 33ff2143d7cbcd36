"""The names of timm (PyTorch Image Models), and of torchvision where they are the same.

timm's networks of these families compute the same function as our plain ones, so its weights only need new names.
They fill a plain network completely. In a Skip-, Dense-, ... network they fill all but the junctions, which timm does
not have.

Source: the module names of timm 1.0; Wightman, PyTorch Image Models, 2019.
"""

from skipnet_jax.interop.naming import LEAVES, Naming

SQUEEZE_EXCITE = r"\.se\.fc\d\.weight$"

RESNET_RENAMES = (
    (r"^stem\.conv\.", "conv1."),
    (r"^stem\.norm\.", "bn1."),
    (r"\.operation\.conv(\d)\.", r".conv\1."),
    (r"\.operation\.norm(\d)\.", r".bn\1."),
    (r"\.operation\.squeeze_excite\.reduce\.", ".se.fc1."),
    (r"\.operation\.squeeze_excite\.expand\.", ".se.fc2."),
    (r"^classifier\.", "fc."),
    *LEAVES,
)

RESNET = Naming(
    "layer{stage1}.{block}",
    (
        (r"\.shortcut\.conv\.", ".downsample.0."),
        (r"\.shortcut\.norm\.", ".downsample.1."),
        *RESNET_RENAMES,
    ),
    convolutions=SQUEEZE_EXCITE,
)

RESNET_D = Naming(
    "layer{stage1}.{block}",
    (
        (r"^stem\.conv1\.", "conv1.0."),
        (r"^stem\.norm1\.", "conv1.1."),
        (r"^stem\.conv2\.", "conv1.3."),
        (r"^stem\.norm2\.", "conv1.4."),
        (r"^stem\.conv3\.", "conv1.6."),
        (r"^stem\.norm3\.", "bn1."),
        (r"\.shortcut\.conv\.", ".downsample.1."),  # 0 is the average pool
        (r"\.shortcut\.norm\.", ".downsample.2."),
        *RESNET_RENAMES,
    ),
    convolutions=SQUEEZE_EXCITE,
)

REGNET = Naming(
    "s{stage1}.b{block1}",
    (
        (r"^stem\.norm\.", "stem.bn."),
        (r"\.shortcut\.conv\.", ".downsample.conv."),
        (r"\.shortcut\.norm\.", ".downsample.bn."),
        (r"\.operation\.conv(\d)\.", r".conv\1.conv."),
        (r"\.operation\.norm(\d)\.", r".conv\1.bn."),
        (r"\.operation\.squeeze_excite\.reduce\.", ".se.fc1."),
        (r"\.operation\.squeeze_excite\.expand\.", ".se.fc2."),
        (r"^classifier\.", "head.fc."),
        *LEAVES,
    ),
    convolutions=SQUEEZE_EXCITE,
)

CONVNEXT = Naming(
    "stages.{stage}.blocks.{block}",
    (
        (r"^stem\.conv\.", "stem.0."),
        (r"^stem\.norm\.", "stem.1."),
        (r"\.blocks\.0\.shortcut\.norm\.", ".downsample.0."),
        (r"\.blocks\.0\.shortcut\.conv\.", ".downsample.1."),
        (r"\.operation\.dwconv\.", ".conv_dw."),
        (r"\.operation\.norm\.", ".norm."),
        (r"\.operation\.pwconv(\d)\.", r".mlp.fc\1."),
        (r"\.operation\.layer_scale$", ".gamma"),
        (r"^classifier_norm\.", "head.norm."),
        (r"^classifier\.", "head.fc."),
        *LEAVES,
    ),
)

SWIN = Naming(
    "layers.{stage}.blocks.{pair}",  # one block of timm has both attention and MLP
    (
        (r"^stem\.conv\.", "patch_embed.proj."),
        (r"^stem\.norm\.", "patch_embed.norm."),
        (r"\.blocks\.0\.shortcut\.", ".downsample."),
        (r"\.operation\.attn_norm\.", ".norm1."),
        (r"\.operation\.attn_(qkv|proj)\.", r".attn.\1."),
        (r"\.operation\.attn_position_bias$", ".attn.relative_position_bias_table"),
        (r"\.operation\.mlp_norm\.", ".norm2."),
        (r"\.operation\.mlp_fc(\d)\.", r".mlp.fc\1."),
        (r"^head_norm\.", "norm."),
        (r"^classifier\.", "head.fc."),
        *LEAVES,
    ),
)

# Our plain network -> timm's name for it, and its naming. Most networks have the same name in both.
NETWORKS: dict[str, tuple[str, Naming]] = {
    **{name: (name, RESNET) for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")},
    **{name: (name, RESNET) for name in ("seresnet34", "seresnet50", "seresnet101", "seresnet152")},
    **{name: (name, RESNET) for name in ("resnext50_32x4d", "resnext101_32x4d", "resnext101_32x8d")},
    **{name: (name, RESNET) for name in ("seresnext50_32x4d", "seresnext101_32x4d", "seresnext101_32x8d")},
    **{name: (name, RESNET_D) for name in ("resnet50d", "resnet101d", "resnet152d")},
    **{name: (name, REGNET) for name in ("regnetx_008", "regnetx_016", "regnetx_032")},
    **{name: (name, REGNET) for name in ("regnety_008", "regnety_016", "regnety_032")},
    **{name: (name, CONVNEXT) for name in ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large")},
    "swin_tiny": ("swin_tiny_patch4_window7_224", SWIN),
    "swin_small": ("swin_small_patch4_window7_224", SWIN),
    "swin_base": ("swin_base_patch4_window7_224", SWIN),
    "swin_base_384": ("swin_base_patch4_window12_384", SWIN),
}
