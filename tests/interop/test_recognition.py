"""Whose names a state dict has, and which network it is of."""

import functools
import json

import flax
import jax
import numpy as np
import pytest

from skipnet_jax.errors import UserError
from skipnet_jax.interop import layouts, recognition, torch_weights
from skipnet_jax.models import create_model
from tests import golden_rules, quick
from tests.interop.test_timm_names import import_torchvision

FOLDER = golden_rules.FOLDER / "author_timm"
OURS = {
    "skipresnet34": "skip_resnet34",
    "skipresnet50": "skip_resnet50",
    "skipresnext50_32x4d": "skip_resnext50_32x4d",
    "skipconvnext_tiny": "skip_convnext_tiny",
}
SLOW = pytest.mark.slow


@functools.cache
def author_record(theirs):
    return json.loads((FOLDER / f"{theirs}-64x64.json").read_text())


def author_state_dict(theirs):
    return {
        entry["name"]: golden_rules.weight(entry["name"], entry["shape"], entry["kind"])
        for entry in author_record(theirs)["state"]
    }


@functools.cache
def random_variables(name, classes=3):
    rng = np.random.default_rng(0)
    shapes = layouts.variable_shapes(name, classes)
    arrays = {path: rng.standard_normal(leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    return flax.traverse_util.unflatten_dict(arrays)


@pytest.mark.parametrize("theirs", ["skipresnet34", *(pytest.param(name, marks=SLOW) for name in list(OURS)[1:])])
def test_the_author_s_networks_have_the_author_s_logits(theirs, x64):
    name, record = OURS[theirs], author_record(theirs)
    state_dict = {key: array.astype(np.float64) for key, array in author_state_dict(theirs).items()}
    assert recognition.find_network(state_dict) == name
    variables = torch_weights.from_state_dict(name, state_dict)
    model = create_model(name, dtype="float64")
    images = golden_rules.images(record["input_seed"], record["batch"], *record["image_size"]).astype(np.float64)
    logits = quick.jit(functools.partial(model.apply, train=False))(variables, images)
    expected = np.load(FOLDER / f"{theirs}-64x64.npz")["logits"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-13 * np.abs(expected).max())
    back = torch_weights.to_state_dict(name, variables, "author")
    assert back.keys() == state_dict.keys()
    for key, array in state_dict.items():
        np.testing.assert_array_equal(back[key], array, strict=True)


@pytest.mark.parametrize(
    ("name", "naming"),
    [
        ("skip_resnet20", "original"),
        ("resnet18", "timm"),
        ("skip_resnet18", "author"),
        ("regnetx_008", "torchvision"),
        ("convnext_tiny", "torchvision"),
        ("convnext_tiny", "paper"),
        ("swin_tiny", "timm"),
        ("swin_tiny", "torchvision"),
        ("swin_tiny", "paper"),
    ],
)
def test_names_go_out_and_are_recognised_coming_in(name, naming, caplog):
    variables = random_variables(name)
    state_dict = torch_weights.to_state_dict(name, variables, naming)
    with caplog.at_level("INFO", logger="skipnet_jax"):
        back = torch_weights.from_state_dict(name, state_dict)
    assert recognition.title(naming, name) in caplog.text
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_plain_weights_are_not_a_whole_gated_network():
    state_dict = torch_weights.to_state_dict("resnet18", random_variables("resnet18"), "timm")
    with pytest.raises(UserError, match="missing: params/blocks_0/junction/expand/bias, which timm does not have"):
        torch_weights.from_state_dict("skip_resnet18", state_dict)


@pytest.mark.parametrize(
    ("name", "naming"),
    [
        ("resnet18", "timm"),
        ("static_resnet20", "original"),
        pytest.param("dense_resnet20", "original", marks=SLOW),
        pytest.param("resnext50_32x4d", "timm", marks=SLOW),
    ],
)
def test_a_network_is_found_by_names_and_shapes(name, naming):
    state_dict = torch_weights.to_state_dict(name, random_variables(name), naming)
    assert recognition.find_network(state_dict) == name
    without_head = {key: value for key, value in state_dict.items() if "classifier" not in key and "fc." not in key}
    assert recognition.find_network(without_head) == name


def test_networks_with_the_same_arrays_need_a_word(x64):
    state_dict = torch_weights.to_state_dict("skip_resnet20", random_variables("skip_resnet20"))
    with pytest.raises(UserError, match="fit 2 networks, expected one of skip_resnet20, dynamic_resnet20"):
        recognition.find_network(state_dict)
    assert recognition.find_network(state_dict, recorded="dynamic_resnet20") == "dynamic_resnet20"


def test_keys_of_two_namings_and_of_none_are_refused():
    timm = torch_weights.to_state_dict("convnext_tiny", random_variables("convnext_tiny"), "timm")
    torchvision = torch_weights.to_state_dict("convnext_tiny", random_variables("convnext_tiny"), "torchvision")
    half = {key: timm[key] for key in list(timm)[:60]} | {key: torchvision[key] for key in list(torchvision)[60:]}
    with pytest.raises(UserError, match=r"several namings, \d+ only in torchvision \(.*\) and 60 only in timm"):
        torch_weights.from_state_dict("convnext_tiny", half)
    nobody = {f"trunk.{key}.x": value for key, value in timm.items()}
    with pytest.raises(UserError, match=r"of none of the namings known for it.*The nearest is"):
        torch_weights.from_state_dict("convnext_tiny", nobody)
    with pytest.raises(UserError, match="keys of no known network"):
        recognition.find_network({"a.b": np.zeros(2)})


def test_images_of_one_channel_are_named_with_the_way_on():
    state_dict = torch_weights.to_state_dict("resnet18", random_variables("resnet18"), "timm")
    grey = state_dict | {"conv1.weight": state_dict["conv1.weight"][:, :1]}
    assert recognition.find_network(grey) == "resnet18"
    with pytest.raises(UserError, match=r"weights for images of 1 channel .*repeat\(1, 3, 1, 1\) / 3"):
        torch_weights.from_state_dict("resnet18", grey)


def test_names_of_networks_elsewhere():
    known = {
        "resnet18.a1_in1k": "resnet18",
        "Skip-ResNet-50": "skip_resnet50",
        "skipresnext101_32x4d": "skip_resnext101_32x4d",
        "swin_tiny_patch4_window7_224.ms_in1k": "swin_tiny",
        "regnet_y_1_6gf": "regnety_016",
        "Skip-RegNetY-1.6": "skip_regnety_016",
        "vit_b_16": None,
    }
    assert {text: recognition.from_recorded(text) for text in known} == known


def test_a_naming_without_the_network_is_refused_on_the_way_out():
    with pytest.raises(UserError, match="got 'timm' for skip_resnet20, expected one that has this network: original"):
        torch_weights.to_state_dict("skip_resnet20", {}, "timm")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("theirs", "name", "size"),
    [
        ("resnet18", "resnet18", 64),
        ("regnet_y_1_6gf", "regnety_016", 64),
        ("convnext_tiny", "convnext_tiny", 64),
        ("swin_t", "swin_tiny", 224),
    ],
)
def test_logits_are_torchvision_s(theirs, name, size):
    torch, torchvision = import_torchvision()
    torch.manual_seed(0)
    peer = torchvision.models.get_model(theirs, num_classes=10).eval()
    for key, parameter in peer.named_parameters():
        if key.endswith(("bias_table", "layer_scale")):  # they start near zero
            torch.nn.init.normal_(parameter, std=0.5)
    state_dict = {key: value.numpy() for key, value in peer.state_dict().items()}
    assert recognition.find_network(state_dict) == name
    variables = torch_weights.from_state_dict(name, state_dict)
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected = peer(images).numpy()
    apply = quick.jit(functools.partial(create_model(name, num_classes=10).apply, train=False))
    logits = apply(variables, images.numpy().transpose(0, 2, 3, 1))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
