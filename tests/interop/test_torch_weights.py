import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.errors import UserError
from skipnet_jax.interop.layouts import variable_shapes
from skipnet_jax.interop.original_names import original_name
from skipnet_jax.interop.torch_weights import fill, from_state_dict, to_state_dict
from skipnet_jax.models import list_models, model_info
from tests import golden_rules

CLASSES = 3


@functools.cache
def make_state_dict(name, dtype=np.float32):
    """Random weights under the original's names and in its layout, from the shapes of our parameters."""
    rng = np.random.default_rng(0)
    return {
        original_name(path[1:]): np.asarray(rng.standard_normal(_torch_shape(path, leaf.shape)), dtype)
        for path, leaf in variable_shapes(name, CLASSES).items()
    }


def _torch_shape(path, shape):
    if path[-1] != "kernel":
        return shape
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


@pytest.fixture
def state_dict():
    return dict(make_state_dict("skip_resnet20"))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("stem/conv/kernel", "stem.conv.weight"),
        ("stem/norm/mean", "stem.norm.running_mean"),
        ("blocks_12/shortcut/norm/var", "blocks.12.downsample.norm.running_var"),
        ("blocks_3/operation/conv1/kernel", "blocks.3.operation.conv1.weight"),
        ("blocks_3/operation/norm2/scale", "blocks.3.operation.norm2.weight"),
        ("blocks_3/junction/reduce/kernel", "blocks.3.junction.op.conv1.weight"),
        ("blocks_3/junction/norm/bias", "blocks.3.junction.op.norm1.bias"),
        ("blocks_3/junction/expand/bias", "blocks.3.junction.op.conv2.bias"),
        ("blocks_3/operation/squeeze_excite/expand/bias", "blocks.3.operation.semodule.op.conv2.bias"),
        ("head_norm/scale", "head.norm.weight"),
        ("classifier_norm/bias", "classifier.norm.bias"),
        ("classifier/kernel", "classifier.conv.weight"),
    ],
)
def test_names(ours, theirs):
    assert original_name(ours.split("/")) == theirs


def test_layouts(state_dict):
    buffers = {  # of the original, without weights
        "stem.norm.num_batches_tracked": np.zeros(()),
        "blocks.0.operation.attn_attn.relative_position_index": np.zeros(()),
        "blocks.0.attn_mask": np.zeros(()),
    }
    variables = from_state_dict("skip_resnet20", state_dict | buffers, num_classes=CLASSES)
    assert set(variables) == {"params", "batch_stats"}
    params, stats = variables["params"], variables["batch_stats"]
    kernel = state_dict["blocks.4.operation.conv2.weight"]
    np.testing.assert_array_equal(params["blocks_4"]["operation"]["conv2"]["kernel"], kernel.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(params["classifier"]["kernel"], state_dict["classifier.conv.weight"].T)
    np.testing.assert_array_equal(stats["stem"]["norm"]["var"], state_dict["stem.norm.running_var"])
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_linear_layers_may_be_1x1_convolutions_too(state_dict):
    as_convolutions = {key: value[:, :, None, None] if value.ndim == 2 else value for key, value in state_dict.items()}
    jax.tree.map(
        np.testing.assert_array_equal,
        from_state_dict("skip_resnet20", as_convolutions, num_classes=CLASSES),
        from_state_dict("skip_resnet20", state_dict, num_classes=CLASSES),
    )


def test_one_error_lists_all_keys_that_do_not_fit(state_dict):
    del state_dict["stem.conv.weight"]
    del state_dict["blocks.7.junction.op.norm1.running_var"]
    state_dict["blocks.9.operation.conv1.weight"] = np.zeros((64, 64, 3, 3), np.float32)
    state_dict["classifier.conv.weight"] = np.zeros((10, 64, 1, 1), np.float32)
    state_dict["blocks.0.operation.conv1.weight"] = np.zeros((16, 16, 3), np.float32)
    with pytest.raises(UserError, match="skip_resnet20 with 3 classes, named as in the original: got 5 keys") as error:
        from_state_dict("skip_resnet20", state_dict, num_classes=CLASSES)
    for line in (
        "missing: stem.conv.weight",
        "missing: blocks.7.junction.op.norm1.running_var",
        "not of this network: blocks.9.operation.conv1.weight",
        "shape: classifier.conv.weight is (10, 64, 1, 1), expected one that gives (64, 3)",
        "shape: blocks.0.operation.conv1.weight is (16, 16, 3), expected one that gives (3, 3, 16, 16)",
    ):
        assert line in str(error.value)


def test_float64_is_kept_under_x64(x64):
    given = make_state_dict("skip_resnet20", np.float64)
    variables = from_state_dict("skip_resnet20", given, num_classes=CLASSES)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float64)}
    np.testing.assert_array_equal(variables["params"]["stem"]["norm"]["bias"], given["stem.norm.bias"])
    single = from_state_dict("skip_resnet20", make_state_dict("skip_resnet20"), num_classes=CLASSES)
    assert {leaf.dtype for leaf in jax.tree.leaves(single)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    "stem",
    [
        "convnext-t-64x64",  # has no batch norm, so no statistics
        pytest.param("static-resnet-110-32x32", marks=pytest.mark.slow),
        pytest.param("se-resnet-50-64x64", marks=pytest.mark.slow),
        pytest.param("skip-regnety-1.6-64x64", marks=pytest.mark.slow),
    ],
)
def test_there_and_back_is_the_same_state_dict(stem):
    network = golden_rules.GoldenNetwork.load(stem)
    [name] = [name for name in list_models() if model_info(name).published_name == network.record["model"]]
    variables = from_state_dict(name, network.state_dict, num_classes=network.record["num_classes"])
    assert ("batch_stats" in variables) == (stem != "convnext-t-64x64")
    back = to_state_dict(name, variables)
    assert back.keys() == network.state_dict.keys()
    assert fill(name, back).num_classes == network.record["num_classes"]
    for key, value in network.state_dict.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key, strict=True)


def test_going_back_is_strict(state_dict):
    variables = from_state_dict("skip_resnet20", state_dict, num_classes=CLASSES)
    variables["params"]["trunk"] = variables["params"].pop("stem")
    with pytest.raises(UserError, match=r"missing: params/stem/conv/kernel[\s\S]*not of this network: params/trunk"):
        to_state_dict("skip_resnet20", variables)


def test_weights_without_a_classifier_get_a_new_one_on_request(state_dict):
    headless = {key: value for key, value in state_dict.items() if not key.startswith("classifier")}
    with pytest.raises(
        UserError, match=r"got .* keys without a classifier \('classifier.conv.weight'\).*Give num_classes"
    ):
        fill("skip_resnet20", headless)
    filled = fill("skip_resnet20", headless, num_classes=5)
    assert sorted(filled.fresh) == ["params/classifier/bias", "params/classifier/kernel"]
    assert filled.variables["params"]["classifier"]["kernel"].shape == (64, 5)
    assert fill("skip_resnet20", state_dict, num_classes=5).fresh == filled.fresh
    assert fill("skip_resnet20", state_dict, num_classes=CLASSES).fresh == ()
