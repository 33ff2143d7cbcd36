"""Names, and the exact number of parameters of each."""

import collections
import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from skipnet_jax.models import create_model, list_models, model_info
from skipnet_jax.models.junctions import JUNCTIONS
from skipnet_jax.models.zoo import NETWORKS
from tests import golden_rules

# The counts of record of the published networks are a golden file's; ResNet-20 is ours.
OWN_PARAMS = {
    "ResNet-20": 278324,
    "Skip-ResNet-20": 322564,
    "Dense-ResNet-20": 328052,
    "Dynamic-ResNet-20": 322564,
    "Static-ResNet-20": 278884,
    "Mean-ResNet-20": 278324,
    "Sum-ResNet-20": 278324,
}
PUBLISHED_PARAMS = json.loads((golden_rules.FOLDER / "parameter_counts.json").read_text())["parameters"]
PARAMS = PUBLISHED_PARAMS | OWN_PARAMS

# The parts that networks repeat, by their name inside the network or the block.
REPEATED = {"stem", "shortcut", "operation", "junction"}


def size(params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def count_params(names):
    """Parameters of each network; a part that was met before, in any of them, is not traced again.

    Tracing all networks in full would take minutes, and they consist of few different parts.
    """
    met = {}
    skipped = 0

    def meet_once(call, args, kwargs, context):
        nonlocal skipped
        module = context.module
        if module.name not in REPEATED:
            return call(*args, **kwargs)
        fields = {f.name: getattr(module, f.name) for f in dataclasses.fields(module)}
        settings = {name: value for name, value in fields.items() if name not in {"parent", "name", "layers"}}
        part = (type(module), str(settings), str(jax.tree.map(jnp.shape, args)))
        if part in met:
            shape, count = met[part]
            skipped += count
            return jnp.zeros(shape)
        out = call(*args, **kwargs)
        met[part] = (out.shape, size(module.variables.get("params", {})))
        return out

    counts = {}
    for name in names:
        skipped = 0
        side = model_info(name).image_size
        images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        with nn.intercept_methods(meet_once):
            init = functools.partial(create_model(name).init, train=False)
            variables = jax.eval_shape(init, jax.random.key(0), images)
        counts[name] = size(variables["params"]) + skipped
    return counts


def test_every_name_has_a_count_of_record_and_every_count_a_name():
    published = collections.Counter(model_info(name).published_name for name in list_models())
    assert set(published) == set(PARAMS)
    assert set(published.values()) == {1}


@pytest.mark.parametrize("network", NETWORKS)
def test_number_of_parameters(network):
    names = [network, *list_models(f"*_{network}")]
    names = [name for name in names if name == network or name.removesuffix(f"_{network}") in JUNCTIONS]
    assert len(names) == 7
    counts = count_params(names)
    assert counts == {name: PARAMS[model_info(name).published_name] for name in names}


def test_counting_parts_once_counts_all_parameters():
    name = "dense_resnet20"
    init = functools.partial(create_model(name).init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert count_params([name])[name] == size(variables["params"]) == model_info(name).params


@pytest.mark.parametrize(
    "row", json.loads((golden_rules.FOLDER / "models_table.json").read_text()), ids=lambda row: row["model"]
)
def test_networks_of_the_published_tables(row):
    (name,) = [name for name in list_models() if model_info(name).published_name == row["model"]]
    info = model_info(name)
    assert (info.image_size, info.num_classes) == (row["image_size"], row["num_classes"])
    assert PARAMS[row["model"]] == row["params"]


def test_names_by_pattern():
    assert list_models("*_resnet20") == [f"{junction}_resnet20" for junction in JUNCTIONS if junction != "add"]
    assert list_models("resnet20") == ["resnet20"]
    assert list_models("no_such_*") == []


def test_info():
    info = model_info("skip_resnet50")
    assert (info.published_name, info.image_size, info.num_classes) == ("Skip-ResNet-50", 224, 1000)
    assert info.params == 40154856


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("skip_resnet5", "skip_resnet50"), ("resnet_50", "resnet50"), ("add_resnet50", "resnet50"), ("", "resnet")],
)
def test_unknown_name_lists_the_nearest(wrong, nearest):
    for look_up in (create_model, model_info):
        with pytest.raises(ValueError, match=rf"got {wrong!r}, expected .*Nearest: .*{nearest}"):
            look_up(wrong)


def test_settings_of_the_plan_are_the_defaults():
    model = create_model("skip_resnet110")
    assert (model.num_classes, model.gate_reduction) == (100, 2)
    model = create_model("skip_resnet50")
    assert (model.num_classes, model.gate_reduction) == (1000, 8)
    model = create_model("skip_resnet50", num_classes=7, gate_reduction=4)
    assert (model.num_classes, model.gate_reduction) == (7, 4)
