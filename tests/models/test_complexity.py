import functools
import json

import jax
import jax.numpy as jnp
import pytest

from skipnet_jax.models import create_model, list_models, model_info
from skipnet_jax.models.complexity import ACTIVATIONS, RULES, count, xla_flops
from skipnet_jax.models.families.resnet import BasicOperation
from skipnet_jax.models.families.swin import AttentionOperation
from skipnet_jax.models.layers import layer_norm_gelu
from skipnet_jax.models.ops import relu
from skipnet_jax.models.shortcuts import AverageLinearShortcut
from tests import golden_rules
from tests.models import traced

TABLE = json.loads((golden_rules.FOLDER / "models_table.json").read_text())  # it counts no FLOPs for Swin
NAMES = {model_info(name).published_name: name for name in list_models()}
FAST = {"ResNet-34", "SE-ResNet-50", "Skip-ResNeXt-50-32x4d", "Dense-WideResNet-28-k10", "Skip-RegNetY-1.6"}
FAST |= {"Dense-ConvNeXt-T", "SwinTinyPatch4-224"}


@pytest.mark.parametrize(
    "entry", [pytest.param(e, id=e["model"], marks=() if e["model"] in FAST else pytest.mark.slow) for e in TABLE]
)
def test_counts_are_the_published_ones(entry):
    info = model_info(NAMES[entry["model"]])
    assert (info.image_size, info.num_classes) == (entry["image_size"], entry["num_classes"])
    counted = traced.count(info.name)
    assert (counted.params, counted.flops) == (info.params, info.flops)  # what `skipnet models` prints
    assert counted.params == entry["params"]
    assert counted.flops == entry["flops"] if "flops" in entry else counted.flops > 0


def test_a_network_counts_at_its_own_size_unless_told_otherwise():
    own, classifier = traced.count("resnet20"), 100 * (64 + 1)
    other = count("resnet20", image_size=64, num_classes=10)
    assert other.params == own.params - 90 * (64 + 1)
    assert other.flops - 10 * (64 + 1) == 4 * (own.flops - classifier)


def test_ablations_follow_from_the_definition_of_their_junctions():
    flops = {name: traced.count(name).flops for name in list_models("*resnet20")}
    # Three sections of three blocks, which see 1, 2 and 2 states of c * size^2 elements.
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
    flops = traced.count("resnet50d").flops
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


@pytest.mark.parametrize(("name", "size"), [("skip_resnet20", 32), ("regnety_008", 100)])
def test_features_have_the_shapes_that_the_network_returns(name, size):
    init = functools.partial(create_model(name).init_with_output, train=False, method="features")
    maps, _ = jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    assert count(name, image_size=size).features == tuple(x.shape[1:] for x in maps)


def test_xla_counts_a_multiply_add_twice():
    ours, theirs = traced.count("resnet20").flops, xla_flops("resnet20")
    assert 1.7 * ours < theirs < 2 * ours  # less than twice, since padding does not count
