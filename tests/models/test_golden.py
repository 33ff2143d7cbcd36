"""Every network of the golden files against the published implementation, which was measured in float64."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from skipnet_jax.interop.original_names import original_name
from skipnet_jax.interop.torch_weights import from_state_dict
from skipnet_jax.models import create_model, list_models, model_info, ops
from skipnet_jax.models.block import Block
from skipnet_jax.optim.optimizers import decay_mask
from tests import golden_rules, quick
from tests.models import traced

NAMES = {model_info(name).published_name: name for name in list_models()}

# The tests at every commit see these networks whole, and the first blocks of one network of every other kind: enough of
# them to reach the second stage.
FAST = {
    "skip-resnet-34-64x64",
    "skip-wideresnet-28-k10-32x32",
    "skip-convnext-t-64x64",
}
FIRST_BLOCKS = {
    "se-resnet-50-64x64": 4,
    "skip-resnetd-50-64x64": 4,
    "skip-resnext-50-32x4d-64x64": 4,
    "skip-regnety-1.6-64x64": 4,
    "skip-pyramidnet-110-a48-32x32": 20,
    "skip-swintinypatch4-224-224x224": 6,  # torchvision judges the whole of it: see test_swin
}
FLOAT32 = FAST | FIRST_BLOCKS.keys()
TRAINED = {
    *("resnet-110-32x32", "skip-resnet-110-32x32", "static-resnet-110-32x32", "dense-resnet-50-64x64"),
    *("skip-resnet-34-64x64", "se-resnet-50-64x64", "skip-resnetd-50-64x64", "skip-wideresnet-28-k10-32x32"),
    *("skip-regnety-1.6-64x64", "skip-convnext-t-64x64", "skip-swintinypatch4-224-224x224"),
}


def slow_unless(fast, stems):
    return [pytest.param(stem, marks=() if stem in fast else pytest.mark.slow) for stem in sorted(stems)]


@functools.cache
def golden_network(stem):
    return golden_rules.GoldenNetwork.load(stem)


def load(network, dtype):
    """The network, its variables and its images, in one precision."""
    name, classes = NAMES[network.record["model"]], network.record["num_classes"]
    model = create_model(name, num_classes=classes, dtype=dtype, bn_group_size=0)
    state_dict = {key: value.astype(dtype) for key, value in network.state_dict.items()}
    return model, from_state_dict(name, state_dict, num_classes=classes), jnp.asarray(network.images, dtype)


def compiled(function, network):
    """Compiles a function of a golden network."""
    repeats = network.record["image_size"] == [32, 32] and "pyramid" not in network.record["model"]
    return quick.jit(function, level=1 if repeats else 0)


def evaluate(network, model, variables, images):
    """The logits, each block's output, and the numbers of the blocks whose states each block sees."""
    outputs, states, wiring = [], [], []

    def record(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if isinstance(context.module, Block):
            _, earlier = args
            seen = [next(j for j, state in enumerate(states) if state is one) for one in earlier]
            wiring.append([len(states), *seen])
            outputs.append(result[0].value)
            states.append(result[1])
        return result

    whole = len(model.architecture.blocks) == len(network.record["block_outputs"])

    def run(variables, images):
        with nn.intercept_methods(record):
            result = model.apply(variables, images, train=False, method=None if whole else "features")
        return result, outputs

    return *compiled(run, network)(variables, images), wiring


def require_golden_blocks(network, outputs, wiring):
    """Compares blocks with the golden ones, from the first on."""
    for i, (ours, golden) in enumerate(zip(outputs, network.record["block_outputs"], strict=False)):
        channels, height, width = golden["shape_chw"]
        assert ours.shape[1:] == (height, width, channels), f"block {i} is the first that departs"
        measured, expected = [float(ours.mean()), float(ours.std())], [golden["mean"], golden["std"]]
        np.testing.assert_allclose(measured, expected, rtol=1e-10, err_msg=f"block {i} is the first that departs")
    golden_wiring = network.record["inbounds"]
    plain = not any(golden_wiring)
    assert wiring == ([[i] for i in range(len(outputs))] if plain else golden_wiring[: len(wiring)])


def relative_error(ours, golden):
    return float(np.abs(np.asarray(ours) - golden).max() / np.abs(golden).max())


def test_every_golden_network_is_tested():
    assert len(golden_rules.NETWORKS) == 24
    assert set(golden_rules.NETWORKS) >= TRAINED | FLOAT32


@pytest.mark.parametrize("stem", slow_unless(FAST, golden_rules.NETWORKS))
def test_evaluation_in_float64(stem, x64):
    network = golden_network(stem)
    logits, outputs, wiring = evaluate(network, *load(network, jnp.float64))
    assert len(outputs) == len(network.record["block_outputs"])
    require_golden_blocks(network, outputs, wiring)
    assert logits.dtype == jnp.float64
    assert relative_error(logits, network.logits) < 1e-12


@pytest.mark.parametrize("stem", FIRST_BLOCKS)
def test_first_blocks_in_float64(stem, x64):
    network = golden_network(stem)
    model, variables, images = load(network, jnp.float64)
    blocks = model.architecture.blocks[: FIRST_BLOCKS[stem]]
    model = model.clone(architecture=dataclasses.replace(model.architecture, blocks=blocks))
    _, outputs, wiring = evaluate(network, model, variables, images)
    assert len(outputs) == FIRST_BLOCKS[stem]
    require_golden_blocks(network, outputs, wiring)


@pytest.mark.parametrize("stem", slow_unless({"skip-resnet-34-64x64"}, FLOAT32))
def test_evaluation_in_float32(stem):
    network = golden_network(stem)
    logits, _, _ = evaluate(network, *load(network, jnp.float32))
    assert logits.dtype == jnp.float32
    assert relative_error(logits, network.logits) < 5e-6


@pytest.mark.parametrize("stem", slow_unless(FAST, golden_rules.NETWORKS))
def test_parameters_decay_as_published(stem):
    record = golden_network(stem).record
    ours = traverse_util.flatten_dict(decay_mask(traced.shapes(NAMES[record["model"]])["params"]))
    published = {entry["name"]: entry["decay"] for entry in record["state"] if "decay" in entry}
    assert {original_name(path): decays for path, decays in ours.items()} == published


@pytest.mark.parametrize("stem", slow_unless({"skip-resnet-34-64x64"}, TRAINED))
def test_training_in_float64(stem, x64):
    require_golden_training(stem, jnp.float64, exact=1e-9, gradients=1e-8, noise=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("stem", ["skip-resnet-34-64x64", "skip-regnety-1.6-64x64"])
def test_training_in_float64_with_the_operations_of_a_tpu(stem, x64, tpu_operations):
    # A variance from one pass has fewer exact digits than one from two.
    require_golden_training(stem, jnp.float64, exact=1e-9, gradients=1e-6, noise=1e-12)


def test_training_in_float32_with_the_operations_of_a_tpu(tpu_operations):
    # Rounding grows towards the stem: up to a fifth of a gradient there, and another fifth with another XLA.
    require_golden_training("skip-resnet-34-64x64", jnp.float32, exact=1e-3, gradients=0.3, noise=3e-4)


@pytest.fixture
def tpu_operations(monkeypatch):
    """The networks compute by what a TPU gets, on this CPU."""
    for operation, ways in ops.TABLE.items():
        if "tpu" in ways:
            monkeypatch.setattr(ops, operation.__name__, ways["tpu"])


def require_golden_training(stem, dtype, *, exact, gradients, noise):
    """Compares a training step; the tolerances are relative, `noise` to the norm of all gradients together."""
    trained = golden_network(stem)
    record = trained.record
    model, variables, images = load(trained, dtype)

    def loss_of(params):
        logits, updates = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(record["labels"]))
        return losses.mean(), (logits, updates)

    step = compiled(jax.value_and_grad(loss_of, has_aux=True), trained)
    (loss, (logits, updates)), grads = step(variables["params"])
    assert relative_error(logits, trained.train_logits) < exact
    np.testing.assert_allclose(loss, record["train_loss"], rtol=exact)

    flat = traverse_util.flatten_dict(grads)
    norms = {original_name(path): float(np.linalg.norm(np.asarray(grad))) for path, grad in flat.items()}
    assert norms.keys() == record["grad_norms"].keys()
    # Some gradients are zero in exact arithmetic and hold rounding noise, hence the share of the global norm.
    noise *= np.linalg.norm(list(record["grad_norms"].values()))
    for name, expected in record["grad_norms"].items():
        assert abs(norms[name] - expected) <= gradients * expected + noise, f"gradient of {name}"

    stats = traverse_util.flatten_dict(updates.get("batch_stats", {}))
    measured = {original_name(path): [float(value.mean()), float(value.std())] for path, value in stats.items()}
    expected = record.get("running_stats_after") or {}
    assert measured.keys() == expected.keys()
    for name, moments in expected.items():
        np.testing.assert_allclose(measured[name], moments, rtol=exact, atol=exact / 1000, err_msg=name)
