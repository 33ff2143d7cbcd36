"""timm's weights in our networks, against timm's own logits.

`tests/golden/timm.json` holds what timm says: the arrays of its networks, and the float64 logits of one network of each
naming. Weights and images follow from names and seeds as in `tests.golden_rules`, so most tests need neither torch nor
timm. Where these are installed, the last tests check the file. To measure it anew:

    python -m tests.interop.test_timm_names
"""

import functools
import json
import re
import zlib

import flax
import numpy as np
import pytest

from skipnet_jax.errors import UserError
from skipnet_jax.interop import layouts, timm_names, torch_weights
from skipnet_jax.interop.naming import IGNORED
from skipnet_jax.models import create_model
from skipnet_jax.models.zoo import find
from tests import golden_rules, quick

FILE = golden_rules.FOLDER / "timm.json"
NUM_CLASSES = 10
SLOW = pytest.mark.slow
IMAGE_SIZES = {  # the networks with logits in the file; together they use every line of every table of names
    "resnet18": 64,
    "seresnext50_32x4d": 64,
    "resnet50d": 64,
    "regnety_008": 64,
    "convnext_tiny": 64,
    "swin_tiny": 224,  # timm's Swin takes no other size
}
# Deeper and wider siblings take minutes to trace and follow the same naming; their sizes are tested elsewhere.
NAMED = [name for name in timm_names.NETWORKS if not re.search(r"101|152|small|base|large", name)]
KINDS = (
    (r"running_(mean|var)$", r"running_\1"),
    (r"gamma$", "layer_scale"),
    (r"relative_position_bias_table$", "position_bias"),
)


def weight(name, shape):
    """Follows from timm's name of the array; biases are drawn like those of norms."""
    for pattern, kind in KINDS:
        if match := re.search(pattern, name):
            return golden_rules.weight(name, shape, match.expand(kind))
    if name.endswith(".weight"):
        return golden_rules.weight(name, shape, "kernel" if len(shape) > 1 else "norm_scale")
    return golden_rules.weight(name, shape, "norm_bias")


@functools.cache
def golden():
    return json.loads(FILE.read_text())


@functools.cache
def state_dict(name):
    """timm's names -> arrays, for a network in the file."""
    return {key: weight(key, shape) for key, shape in golden()["networks"][name]["state"]}


def images(name):
    return golden_rules.images(0, 1, IMAGE_SIZES[name], IMAGE_SIZES[name])


def digest(names):
    """The same for two networks whose arrays have the same names."""
    return zlib.crc32("\n".join(sorted(names)).encode())


def test_the_file_covers_every_network_and_every_naming():
    assert golden()["names"].keys() == timm_names.NETWORKS.keys()
    used = {id(timm_names.NETWORKS[name][1]) for name in IMAGE_SIZES}
    assert used == {id(naming) for _, naming in timm_names.NETWORKS.values()}


@pytest.mark.parametrize(
    "name", ["resnet18", *(pytest.param(name, marks=SLOW) for name in NAMED if name != "resnet18")]
)
def test_our_arrays_have_timm_s_names(name):
    theirs = golden()["names"][name]
    shapes = layouts.variable_shapes(name, NUM_CLASSES)
    names = timm_names.NETWORKS[name][1].names(find(name)[0], shapes)
    assert set(names.values()) == shapes.keys()
    assert (len(names), digest(names)) == (theirs["count"], theirs["digest"])
    assert sum(leaf.size for leaf in shapes.values()) == theirs["size"]


@pytest.mark.parametrize(
    "name", ["resnet18", *(pytest.param(name, marks=SLOW) for name in IMAGE_SIZES if name != "resnet18")]
)
def test_logits_are_timm_s(name):
    variables = torch_weights.from_state_dict(name, state_dict(name))
    model = create_model(name, num_classes=NUM_CLASSES)
    logits = quick.jit(lambda variables, images: model.apply(variables, images, train=False))(variables, images(name))
    expected = np.asarray(golden()["networks"][name]["logits"])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_only_the_gates_of_a_gated_network_keep_their_initial_values():
    plain = torch_weights.from_state_dict("resnet18", state_dict("resnet18"))
    gated, classes, naming, fresh = torch_weights.fill("skip_resnet18", state_dict("resnet18"))
    assert (classes, naming) == (NUM_CLASSES, "timm")
    other = torch_weights.fill("skip_resnet18", state_dict("resnet18"), seed=1).variables
    plain, gated, other = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (plain, gated, other))
    shapes = layouts.variable_shapes("skip_resnet18", NUM_CLASSES)
    assert {path: leaf.shape for path, leaf in gated.items()} == {"/".join(p): s.shape for p, s in shapes.items()}
    assert set(fresh) == gated.keys() - plain.keys()
    assert {path.split("/")[2] for path in fresh} == {"junction"}
    for path, array in plain.items():
        np.testing.assert_array_equal(gated[path], array, strict=True)
    kernels = [path for path in fresh if path.endswith("kernel")]
    assert all(np.std(gated[path]) > 0 and np.any(gated[path] != other[path]) for path in kernels)


def test_junctions_without_parameters_leave_nothing_open():
    assert torch_weights.fill("mean_resnet18", state_dict("resnet18")).fresh == ()


def test_one_error_lists_all_keys_that_do_not_fit():
    damaged = dict(state_dict("resnet18"))
    del damaged["layer2.0.downsample.0.weight"]
    damaged["layer2.0.downsample.2.weight"] = np.zeros(3)
    damaged["conv1.weight"] = np.zeros((64, 3, 3, 3))
    with pytest.raises(UserError) as error:
        torch_weights.fill("skip_resnet18", damaged)
    message = str(error.value)
    assert "for skip_resnet18 with 10 classes, named as in timm and torchvision: got 3 keys" in message
    assert "missing: layer2.0.downsample.0.weight" in message
    assert "not of this network: layer2.0.downsample.2.weight" in message
    assert "shape: conv1.weight is (64, 3, 3, 3), expected one that gives (7, 7, 3, 64)" in message


@pytest.mark.parametrize("name", ["skip_seresnet110", "wide_resnet28_10", "skip_wide_resnet28_10"])
def test_a_network_that_timm_does_not_have_is_refused(name):
    with pytest.raises(UserError, match=f"state dict for {name}: got .* of none of the namings.*as in the original"):
        torch_weights.from_state_dict(name, state_dict("resnet18"))


def import_torchvision():
    """Imports torch and torchvision, whose networks work but not its compiled operators.

    Without CUDA's libraries these operators are missing, and declaring them lets the rest of torchvision be imported.
    """
    torch = pytest.importorskip("torch")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return torch, pytest.importorskip("torchvision")


def import_timm():
    """Imports torch and timm, which imports torchvision."""
    torch, _ = import_torchvision()
    return torch, pytest.importorskip("timm")


def peer_state(peer):
    """Names and shapes of a torch module's weights."""
    state = peer.state_dict().items()
    return [[key, list(tensor.shape)] for key, tensor in state if not IGNORED.search(key)]


def measure_names(name):
    torch, timm = import_timm()
    with torch.device("meta"):
        state = peer_state(timm.create_model(timm_names.NETWORKS[name][0], num_classes=NUM_CLASSES))
    size = sum(int(np.prod(shape)) for _, shape in state)
    return {"count": len(state), "digest": digest(key for key, _ in state), "size": size}


def measure_network(name):
    torch, timm = import_timm()
    peer = timm.create_model(timm_names.NETWORKS[name][0], num_classes=NUM_CLASSES).eval()
    state = peer_state(peer)
    peer.load_state_dict({key: torch.tensor(weight(key, shape)) for key, shape in state}, strict=False)
    with torch.no_grad():
        logits = peer.double()(torch.tensor(images(name).transpose(0, 3, 1, 2)).double())
    return {"state": state, "logits": logits.tolist()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", timm_names.NETWORKS)
def test_the_installed_timm_has_the_names_of_the_file(name):
    assert measure_names(name) == golden()["names"][name]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", IMAGE_SIZES)
def test_the_installed_timm_has_the_logits_of_the_file(name):
    measured, expected = measure_network(name), golden()["networks"][name]
    assert measured["state"] == expected["state"]
    np.testing.assert_allclose(measured["logits"], expected["logits"], rtol=1e-10, atol=1e-10)


if __name__ == "__main__":
    torch, timm = import_timm()
    content = {
        "timm": timm.__version__,
        "names": {name: measure_names(name) for name in timm_names.NETWORKS},
        "networks": {name: measure_network(name) for name in IMAGE_SIZES},
    }
    FILE.write_text(json.dumps(content, separators=(",", ":")) + "\n")
