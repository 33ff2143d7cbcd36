"""The PyTorch networks of the benchmarks are ours: they have as many parameters and give the same logits."""

import json
import re

import flax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.interop import layouts, timm_names
from skipnet_jax.interop.naming import IGNORED, LEAVES, rename
from skipnet_jax.models import create_model, model_info
from skipnet_jax.models.zoo import find
from tests import golden_rules, quick
from tests.interop.test_timm_names import weight

CIFAR = ["resnet20", "resnet110"]
PLAIN = [*CIFAR, *timm_names.NETWORKS]
NAMES = [*PLAIN, *(f"skip_{name}" for name in PLAIN if "swin" not in name)]
# The networks whose logits are compared contain a block of each kind.
IMAGE_SIZES = {"skip_resnet20": 16, "skip_seresnet50": 32, "skip_regnety_008": 32, "skip_convnext_tiny": 32}
STAGES = {"resnet": "layer{stage1}", "seresnet": "layer{stage1}", "regnet": "s{stage1}", "convnext": "stages.{stage}"}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # PyTorch warns


@pytest.fixture(scope="module")
def peer_networks():
    pytest.importorskip("torch")
    pytest.importorskip("scripts.benchmarks.torchvision_operators")
    pytest.importorskip("timm")
    from scripts.benchmarks import peer_networks

    return peer_networks


def test_names(peer_networks):
    assert set(peer_networks.names()) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_number_of_parameters(peer_networks, golden, name):
    import torch

    with torch.device("meta"):
        found = peer_networks.count_params(peer_networks._build(name, model_info(name).image_size))
    measured = json.loads((golden / "parameter_counts.json").read_text())["parameters"]
    published = model_info(name).published_name
    assert found == (measured[published] if published in measured else model_info(name).params)


def peer_names(name, paths):
    """PyTorch's names -> our paths."""
    plain = name.removeprefix("skip_")
    naming = timm_names.NETWORKS[plain][1] if plain in timm_names.NETWORKS else timm_names.RESNET
    stage_of = next(form for start, form in STAGES.items() if re.match(start, plain))
    blocks, stage, number = {}, 0, 0
    for i, block in enumerate(find(name)[0].blocks):
        if i and block.stride != 1:
            stage, number = stage + 1, 0
        blocks[f"blocks_{i}"] = (stage_of.format(stage=stage, stage1=stage + 1), number)
        number += 1
    names = {}
    for path in paths:
        if path[1] not in blocks:
            names[rename(path[1:], naming.renames)] = path
            continue
        where, number = blocks[path[1]]
        if "junction" in path:
            key = rename((f"{where}.gates.{number}", *path[3:]), LEAVES)
        else:
            key = rename((f"{where}.blocks.{number}", *path[2:]), naming.renames)
        names[key] = path
    return names


@pytest.mark.parametrize("name", IMAGE_SIZES)
def test_logits(peer_networks, name):
    """In evaluation, with the same weights and statistics, which are drawn by name."""
    import torch

    size = IMAGE_SIZES[name]
    peer = peer_networks.create(name, size).eval()
    state = {
        key: weight(key, list(tensor.shape)) for key, tensor in peer.state_dict().items() if not IGNORED.search(key)
    }
    peer.load_state_dict({key: torch.tensor(array) for key, array in state.items()}, strict=False)
    shapes = layouts.variable_shapes(name, model_info(name).num_classes)
    variables, problems = layouts.translate(state, peer_names(name, shapes), shapes)
    assert problems == []
    images = golden_rules.images(0, 2, size, size)
    with torch.no_grad():
        expected = peer.double()(torch.tensor(images.transpose(0, 3, 1, 2)).double()).numpy()
    apply = quick.jit(lambda variables, images: create_model(name).apply(variables, images, train=False))
    logits = apply(flax.traverse_util.unflatten_dict(variables), jnp.asarray(images))
    assert np.abs(expected[0] - expected[1]).max() > 1e-3 * np.abs(expected).max()  # they depend on the image
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_networks_without_a_peer(peer_networks, monkeypatch):
    for name in ("skip_swin_tiny", "dense_resnet20", "wide_resnet28_10"):
        with pytest.raises(ValueError, match=f"--peer: got {name}, expected a network that exists in PyTorch"):
            peer_networks.create(name, 32)
    monkeypatch.setattr(peer_networks, "CIFAR_REDUCTION", 8)
    with pytest.raises(ValueError, match=r"parameters in PyTorch's skip_resnet20 at 32 px, expected 322,564, as here"):
        peer_networks.create("skip_resnet20", 32)
