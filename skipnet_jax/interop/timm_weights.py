"""Weights of timm (PyTorch Image Models): how ImageNet weights of the plain networks come in.

timm's networks of these families compute the same function as ours, so its weights only change their names.
They fill a plain network completely. In a Skip-, Dense-, ... network they fill everything but the junctions,
which timm does not have and which stay fresh.

Source: the module names of timm 1.0; Wightman, PyTorch Image Models, 2019.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import flax
import jax

from skipnet_jax.interop.torch_weights import (
    LEAVES,
    Path,
    num_classes_of,
    rename,
    require_none,
    translate,
    variable_shapes,
)
from skipnet_jax.models import create_model, init_variables, model_info
from skipnet_jax.models.junctions import JUNCTIONS
from skipnet_jax.models.network import Architecture
from skipnet_jax.models.zoo import find


@dataclasses.dataclass(frozen=True)
class Naming:
    """timm's names of one family.

    Args:
      block: of a block, from `stage` and `block` (in its stage), both counted from 0, or from 1 as `stage1` and
        `block1`; `pair` counts two of our blocks as one.
      renames: ours -> timm's, on the path with the block's name put in.
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
    *LEAVES,
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
        *LEAVES,
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
        *LEAVES,
    ),
)

SWIN = Naming(
    "layers.{stage}.blocks.{pair}",  # attention and perceptron are one block there
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

# Our plain network -> timm's name of it, and its naming.
NETWORKS = {
    "resnet18": ("resnet18", RESNET),
    "resnet34": ("resnet34", RESNET),
    "resnet50": ("resnet50", RESNET),
    "resnet101": ("resnet101", RESNET),
    "resnet152": ("resnet152", RESNET),
    "seresnet34": ("seresnet34", RESNET),
    "seresnet50": ("seresnet50", RESNET),
    "seresnet101": ("seresnet101", RESNET),
    "seresnet152": ("seresnet152", RESNET),
    "resnext50_32x4d": ("resnext50_32x4d", RESNET),
    "resnext101_32x4d": ("resnext101_32x4d", RESNET),
    "resnext101_32x8d": ("resnext101_32x8d", RESNET),
    "seresnext50_32x4d": ("seresnext50_32x4d", RESNET),
    "seresnext101_32x4d": ("seresnext101_32x4d", RESNET),
    "seresnext101_32x8d": ("seresnext101_32x8d", RESNET),
    "resnet50d": ("resnet50d", RESNET_D),
    "resnet101d": ("resnet101d", RESNET_D),
    "resnet152d": ("resnet152d", RESNET_D),
    "regnetx_008": ("regnetx_008", REGNET),
    "regnetx_016": ("regnetx_016", REGNET),
    "regnetx_032": ("regnetx_032", REGNET),
    "regnety_008": ("regnety_008", REGNET),
    "regnety_016": ("regnety_016", REGNET),
    "regnety_032": ("regnety_032", REGNET),
    "convnext_tiny": ("convnext_tiny", CONVNEXT),
    "convnext_small": ("convnext_small", CONVNEXT),
    "convnext_base": ("convnext_base", CONVNEXT),
    "convnext_large": ("convnext_large", CONVNEXT),
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
      seed: of what stays fresh.

    Returns:
      {"params": ..., "batch_stats": ...} for `model.apply`, and the arrays that timm's weights do not cover, joined
      with slashes: none in a plain network, the junctions' in the others.

    Raises:
      ValueError: timm has no such network, or keys are missing, left over or of another shape; all are listed.
    """
    timm_name, naming = _peer(name)
    num_classes = num_classes_of(state_dict, rename(("classifier", "kernel"), naming.renames))
    shapes = variable_shapes(name, num_classes)
    paths = timm_names(name, shapes)
    variables, problems = translate(state_dict, paths, shapes)
    require_none(problems, f"timm's state dict for {name} with {num_classes} classes", f"timm's {timm_name}")
    fresh = [path for path in shapes if path not in variables]
    if fresh:
        initial = _initial(name, num_classes, seed)
        variables |= {path: initial[path] for path in fresh}
    return flax.traverse_util.unflatten_dict(variables), ["/".join(path) for path in fresh]


def timm_names(name: str, paths: Iterable[Path]) -> dict[str, Path]:
    """Every array that timm's plain network has too, by timm's name.

    Args:
      name: of the network, with any junction.
      paths: of all its arrays.

    Returns:
      timm's name -> our path.
    """
    naming = _peer(name)[1]
    blocks = _block_names(find(name)[0], naming)
    covered = [path for path in paths if "junction" not in path]
    return {rename((blocks.get(path[1], path[1]), *path[2:]), naming.renames): path for path in covered}


def _peer(name: str) -> tuple[str, Naming]:
    find(name)  # an unknown name gets its own error
    prefix, _, plain = name.partition("_")
    network = plain if prefix in JUNCTIONS else name
    if network not in NETWORKS:
        raise ValueError(
            f"--model: got {name!r}, expected a network that timm has too, with any junction: {', '.join(NETWORKS)}."
        )
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


def _initial(name: str, num_classes: int, seed: int) -> dict[Path, jax.Array]:
    """What a new network starts from."""
    model = create_model(name, num_classes=num_classes)
    variables = init_variables(model, jax.random.key(seed), model_info(name).image_size)
    return flax.traverse_util.flatten_dict(variables)
