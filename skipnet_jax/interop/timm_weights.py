"""ImageNet weights of timm (PyTorch Image Models) for the networks here.

timm's networks of these families compute the same function as our plain ones, so its weights only change their names.
They fill a plain network completely. In a Skip-, Dense-, ... network they fill all but the junctions, which timm does
not have and which keep their initial values.

Source: the module names of timm 1.0; Wightman, PyTorch Image Models, 2019.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import flax
import jax

from skipnet_jax.errors import UserError
from skipnet_jax.interop import torch_weights
from skipnet_jax.models import create_model, init_variables, model_info
from skipnet_jax.models.junctions import JUNCTIONS
from skipnet_jax.models.network import Architecture
from skipnet_jax.models.zoo import find


@dataclasses.dataclass(frozen=True)
class Naming:
    """timm's names in one family of networks.

    Args:
      block: a block's name, with the numbers `{stage}` and `{block}` (within the stage) counted from 0, or `{stage1}`
        and `{block1}` counted from 1; `{pair}` counts two of our blocks as one.
      renames: ours -> timm's, applied in order to a path whose block has its name already.
    """

    block: str
    renames: tuple[tuple[str, str], ...]


_RESNET_RENAMES = (
    (r"^stem\.conv\.", "conv1."),
    (r"^stem\.norm\.", "bn1."),
    (r"\.operation\.conv(\d)\.", r".conv\1."),
    (r"\.operation\.norm(\d)\.", r".bn\1."),
    (r"\.operation\.squeeze_excite\.reduce\.", ".se.fc1."),
    (r"\.operation\.squeeze_excite\.expand\.", ".se.fc2."),
    (r"^classifier\.", "fc."),
    *torch_weights.LEAVES,
)

RESNET = Naming(
    "layer{stage1}.{block}",
    (
        (r"\.shortcut\.conv\.", ".downsample.0."),
        (r"\.shortcut\.norm\.", ".downsample.1."),
        *_RESNET_RENAMES,
    ),
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
        *_RESNET_RENAMES,
    ),
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
        *torch_weights.LEAVES,
    ),
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
        *torch_weights.LEAVES,
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
        *torch_weights.LEAVES,
    ),
)

# Our plain network -> timm's name of it, and its naming. Most networks have the same name in both.
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


def from_timm(name: str, state_dict: Mapping[str, Any], *, seed: int = 0) -> tuple[dict[str, Any], list[str]]:
    """Fills a network with timm's weights of its plain form, strictly.

    Args:
      name: of the network, with any junction.
      state_dict: timm's names -> arrays; the classifier's width is the number of classes.
      seed: for the initial values of the junctions.

    Returns:
      {"params": ..., "batch_stats": ...} for `model.apply`, and the paths, joined with slashes, of the arrays that
      timm does not have: none in a plain network, otherwise the junctions'.

    Raises:
      UserError: timm has no such network, or keys are missing, left over or of another shape; the message lists them
        all.
    """
    timm_name, naming = _counterpart(name)
    classifier = torch_weights.rename(("classifier", "kernel"), naming.renames)
    num_classes = torch_weights.num_classes_of(state_dict, classifier)
    shapes = torch_weights.variable_shapes(name, num_classes)
    variables, mismatches = torch_weights.translate(state_dict, timm_names(name, shapes), shapes)
    given = f"timm's state dict for {name} with {num_classes} classes"
    torch_weights.require_match(mismatches, given, f"timm's {timm_name}")
    fresh = [path for path in shapes if path not in variables]
    if fresh:
        model = create_model(name, num_classes=num_classes)
        drawn = init_variables(model, jax.random.key(seed), model_info(name).image_size)
        initial = flax.traverse_util.flatten_dict(drawn)
        variables |= {path: initial[path] for path in fresh}
    return flax.traverse_util.unflatten_dict(variables), ["/".join(path) for path in fresh]


def timm_names(name: str, paths: Iterable[torch_weights.Path]) -> dict[str, torch_weights.Path]:
    """Maps timm's name of each array to our path, for the arrays that timm's plain network has too.

    Args:
      name: of the network, with any junction.
      paths: of all its arrays.
    """
    _, naming = _counterpart(name)
    blocks = _block_names(find(name)[0], naming)
    shared = [path for path in paths if "junction" not in path]
    return {torch_weights.rename((blocks.get(path[1], path[1]), *path[2:]), naming.renames): path for path in shared}


def _counterpart(name: str) -> tuple[str, Naming]:
    find(name)  # raises its own error for an unknown name
    prefix, _, plain = name.partition("_")
    network = plain if prefix in JUNCTIONS else name
    if network not in NETWORKS:
        expected = f"a network that timm has too, with any junction: {', '.join(NETWORKS)}"
        raise UserError("model.name", repr(name), expected)
    return NETWORKS[network]


def _block_names(architecture: Architecture, naming: Naming) -> dict[str, str]:
    """Our name of each block -> timm's."""
    names = {}
    stage = block = 0
    for i, each in enumerate(architecture.blocks):
        if i and each.stride != 1:
            stage, block = stage + 1, 0
        numbers = {"stage": stage, "stage1": stage + 1, "block": block, "block1": block + 1, "pair": block // 2}
        names[f"blocks_{i}"] = naming.block.format_map(numbers)
        block += 1
    return names
