import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from skipnet_jax.models import create_model, list_models, model_info
from skipnet_jax.models.complexity import ACTIVATIONS, RULES, count, xla_flops
from skipnet_jax.models.families.resnet import BasicOperation
from skipnet_jax.models.families.swin import AttentionOperation
from skipnet_jax.models.layers import layer_norm_gelu
from skipnet_jax.models.ops.activations import relu
from skipnet_jax.models.shortcuts import AverageLinearShortcut

# Its FLOPs are those of the published implementation, which counts none for Swin.
TABLE = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "models_table.json").read_text())
NAMES = {model_info(name).published_name: name for name in list_models()}


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry["model"])
def test_counts_are_the_published_ones(entry):
    counted = count(NAMES[entry["model"]], image_size=entry["image_size"], num_classes=entry["num_classes"])
    assert counted.params == entry["params"]
    assert counted.flops == entry["flops"] if "flops" in entry else counted.flops > 0


def test_a_network_counts_at_its_own_size_unless_told_otherwise():
    own = count("resnet20")
    assert own == count("resnet20", image_size=32, num_classes=100)
    assert count("resnet20", num_classes=10).params == own.params - 90 * (64 + 1)
    assert count("resnet20", num_classes=10).flops == own.flops - 90 * (64 + 1)
    classifier = 100 * (64 + 1)
    assert count("resnet20", image_size=64).flops - classifier == 4 * (own.flops - classifier)


def test_ablations_follow_from_the_definition_of_their_junctions():
    flops = {name: count(name).flops for name in list_models("*resnet20")}
    # Three sections of three blocks: these see 1, 2, 2 states of c * size^2 elements.
    seen, maps = (1, 2, 2), [(16, 32**2), (32, 16**2), (64, 8**2)]
    elements = sum(c * pixels for c, pixels in maps)
    channels = sum(c for c, _ in maps)
    rest = flops["resnet20"] - len(seen) * elements  # without the junctions
    assert flops["sum_resnet20"] == rest + sum(seen) * elements
    assert flops["mean_resnet20"] == rest + sum(n + 1 for n in seen) * elements
    softmax = sum(3 * n - 1 for n in seen) * channels
    assert flops["static_resnet20"] == rest + softmax + sum(2 * n + 2 for n in seen) * elements
    branch_gate = len(seen) * (4 * channels + elements)  # sigmoid and product
    assert flops["skip_resnet20"] - flops["dynamic_resnet20"] == branch_gate


def test_average_pools_count_the_channels_before_the_width_changes(monkeypatch):
    flops = count("resnet50d").flops
    monkeypatch.setitem(RULES, AverageLinearShortcut, lambda module, out, x: 0)
    pools = sum(2 * 2 * c * pixels for c, pixels in ((256, 28**2), (512, 14**2), (1024, 7**2)))
    assert flops - count("resnet50d").flops == pools


@pytest.mark.parametrize(("size", "windows", "masked"), [(3, 1, False), (4, 1, False), (6, 4, True), (8, 4, True)])
def test_attention_counts_whole_windows(size, windows, masked):
    layers = layer_norm_gelu(1e-5, jnp.float32, 0)
    attention = AttentionOperation(features=6, heads=2, window=4, shifted=True, layers=layers)
    x = jnp.zeros((1, size, size, 6))
    pairs = 16 * 16  # of a window's pixels
    per_head = 2 * pairs * 3 + (2 if masked else 1) * pairs + 16 * (3 * 16 - 1)  # products, sums, softmax
    assert RULES[AttentionOperation](attention, x, x) == windows * (2 * per_head + 16 * 6)


def test_a_module_or_activation_without_a_rule_is_an_error(monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(TypeError, match="BasicOperation"):
        patch.delitem(RULES, BasicOperation)
        count("resnet20")
    with monkeypatch.context() as patch, pytest.raises(TypeError, match="activation"):
        patch.delitem(ACTIVATIONS, relu)
        count("resnet20")


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match="resnet50"):
        count("resnet_50")


@pytest.mark.parametrize(("name", "size"), [("skip_resnet20", 32), ("regnetx_008", 100), ("swin_tiny", 100)])
def test_features_are_those_that_the_network_returns(name, size):
    init = functools.partial(create_model(name).init_with_output, train=False, method="features")
    maps, _ = jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    assert count(name, image_size=size).features == tuple(x.shape[1:] for x in maps)


def test_xla_counts_a_multiply_add_twice():
    ours, theirs = count("resnet20").flops, xla_flops("resnet20")
    assert 1.7 * ours < theirs < 2 * ours  # less than twice: it leaves out the padding
