"""Names, settings, and the exact number of parameters of every network."""

import collections
import contextlib
import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from skipnet_jax.errors import UserError
from skipnet_jax.models import create_model, list_models, model_info
from skipnet_jax.models.junctions import JUNCTIONS
from skipnet_jax.models.zoo import NETWORKS, require_trainable
from skipnet_jax.specs import ModelSpec
from tests import golden_rules
from tests.models import traced
from tests.tiny_runs import make_spec

# The counts of record: published networks have theirs in a golden file; ResNet-20 is our own.
PARAMS = json.loads((golden_rules.FOLDER / "parameter_counts.json").read_text())["parameters"] | {
    "ResNet-20": 278324,
    "Skip-ResNet-20": 322564,
    "Dense-ResNet-20": 328052,
    "Dynamic-ResNet-20": 322564,
    "Static-ResNet-20": 278884,
    "Mean-ResNet-20": 278324,
    "Sum-ResNet-20": 278324,
}

BLOCKS = {"resnet32": 5, "resnet44": 7, "resnet56": 9}  # per section; without a count of record

REPEATED = {"stem", "shortcut", "operation", "junction"}  # the parts that networks share, by name
FAST = {"resnet20", "resnet50d", "seresnet34", "resnext50_32x4d", "wide_resnet28_10", "regnety_008", "convnext_tiny"}


def size(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def count_params(names):
    """Counts each network's parameters; a part that occurred before, in any of them, is not traced again."""
    known, skipped = {}, 0

    def trace_once(call, args, kwargs, context):
        nonlocal skipped
        module = context.module
        if module.name not in REPEATED:
            return call(*args, **kwargs)
        fields = {f.name: getattr(module, f.name) for f in dataclasses.fields(module)}
        settings = {name: value for name, value in fields.items() if name not in {"parent", "name", "layers"}}
        part = (type(module), str(settings), str(jax.tree.map(jnp.shape, args)))
        if part in known:
            shape, count = known[part]
            skipped += count
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shape)
        out = call(*args, **kwargs)
        known[part] = (jax.eval_shape(lambda: out), size(module.variables.get("params", {})))
        return out

    counts = {}
    for name in names:
        skipped, side = 0, model_info(name).image_size
        images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        with nn.intercept_methods(trace_once):
            init = functools.partial(create_model(name).init, train=False)
            variables = jax.eval_shape(init, jax.random.key(0), images)
        counts[name] = size(variables["params"]) + skipped
    return counts


def test_every_name_has_a_count_of_record_and_every_count_a_name():
    names = [name for name in list_models() if name.rpartition("_")[2] not in BLOCKS]
    published = collections.Counter(model_info(name).published_name for name in names)
    assert set(published) == set(PARAMS)
    assert set(published.values()) == {1}


@pytest.mark.parametrize(
    "network",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in NETWORKS if name not in BLOCKS],
)
def test_number_of_parameters(network):
    names = [network if junction == "add" else f"{junction}_{network}" for junction in JUNCTIONS]
    assert count_params(names) == {name: PARAMS[model_info(name).published_name] for name in names}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_deeper_network_for_small_images_has_more_blocks(name):
    """Two 3x3 convolutions with their norms in each block, of 16, 32 and 64 channels."""
    added = sum(2 * 9 * width**2 + 4 * width for width in (16, 32, 64))
    assert traced.count(name).params == PARAMS["ResNet-20"] + (BLOCKS[name] - 3) * added


@pytest.mark.parametrize("name", ["skip_pyramidnet110_a48", "skip_swin_tiny"])
def test_number_of_parameters_with_the_gate(name):
    """Stands in for the slow test of these families."""
    assert traced.count(name).params == PARAMS[model_info(name).published_name]


def test_counting_parts_once_counts_all_parameters():
    assert count_params(["dense_resnet20"])["dense_resnet20"] == size(traced.shapes("dense_resnet20")["params"])


def test_names_by_pattern():
    assert list_models("*_resnet20") == [f"{junction}_resnet20" for junction in JUNCTIONS if junction != "add"]
    assert list_models("resnet20") == ["resnet20"]
    assert list_models("no_such_*") == []


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("skip_resnet5", "skip_resnet50"), ("resnet_50", "resnet50"), ("add_resnet50", "resnet50"), ("", "resnet")],
)
def test_an_unknown_name_lists_the_nearest(wrong, nearest):
    for look_up in (create_model, model_info):
        with pytest.raises(UserError, match=rf"got {wrong!r}, expected .*Nearest: .*{nearest}"):
            look_up(wrong)


def test_settings_default_to_the_spec_and_the_architecture():
    model = create_model("skip_resnet110")
    assert (model.spec, model.gate_reduction) == (ModelSpec("skip_resnet110", 100), 2)
    model = create_model("skip_resnet50", dtype=jnp.bfloat16)
    assert (model.spec, model.gate_reduction) == (ModelSpec("skip_resnet50", 1000, "bfloat16"), 8)
    model = create_model("skip_resnet50", num_classes=7, gate_reduction=4)
    assert (model.spec, model.gate_reduction) == (ModelSpec("skip_resnet50", 7, gate_reduction=4), 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 2.0}, "model.dropout: got 2.0, expected 0 or more and less than 1"),
        ({"num_classes": 1}, "model.num_classes: got 1, expected at least 2"),
        ({"dtype": "float16"}, "model.dtype: got 'float16', expected one of"),
        ({"gate_redution": 4}, "model.gate_redution: got an unknown setting, expected one such as gate_reduction"),
        ({"dtype": "float64"}, "JAX_ENABLE_X64=1"),
        ({"dtype": "auto"}, "model.dtype: got auto, expected float32, bfloat16 or float64, since only training"),
        ({"dtype": "bf16"}, "model.dtype: got 'bf16', expected one of auto, float32, bfloat16, float64"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        create_model("resnet20", **settings)


@pytest.mark.parametrize("name", ["skip_resnet20", "skip_convnext_tiny"])
def test_only_batch_norm_asks_for_whole_groups(name):
    spec = make_spec(model=ModelSpec(name, 10), batch_size=200)
    has_batch_norm = "batch_stats" in traced.shapes(name)
    with pytest.raises(UserError, match="batch_size: got 200") if has_batch_norm else contextlib.nullcontext():
        require_trainable(spec)
