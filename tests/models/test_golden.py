"""Every network of the golden files against the published implementation, measured in float64.

Compiling is nearly all of the time here, so evaluation is compiled without optimisation, and the ResNet-110s not as a
whole: they consist of a few operations, repeated, which eager JAX compiles once for all of them together.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from skipnet_jax.interop.torch_weights import from_state_dict, original_name
from skipnet_jax.models import create_model, list_models, model_info
from skipnet_jax.models.block import Block
from skipnet_jax.optim.optimizers import decay_mask
from tests import golden_rules

NAMES = {model_info(name).published_name: name for name in list_models()}

TRAINED = (
    "resnet-110-32x32",
    "skip-resnet-110-32x32",
    "dense-resnet-50-64x64",
    "skip-wideresnet-28-k10-32x32",
    "skip-convnext-t-64x64",
    "skip-regnety-1.6-64x64",
    *(
        pytest.param(stem, marks=pytest.mark.slow)
        for stem in (
            "static-resnet-110-32x32",
            "skip-resnet-34-64x64",
            "se-resnet-50-64x64",
            "skip-resnetd-50-64x64",
            "skip-swintinypatch4-224-224x224",
        )
    ),
)


@pytest.fixture(scope="module", params=golden_rules.NETWORKS)
def network(request):
    return golden_rules.GoldenNetwork.load(request.param)


@pytest.fixture(scope="module", params=TRAINED)
def trained(request):
    return golden_rules.GoldenNetwork.load(request.param)


def load(network, dtype):
    """The network, its variables and its images, in one precision."""
    published, classes = network.record["model"], network.record["num_classes"]
    assert published in NAMES, f"{published} is missing in the zoo"
    name = NAMES[published]
    model = create_model(name, num_classes=classes, dtype=dtype, bn_group_size=0)
    state_dict = {key: value.astype(dtype) for key, value in network.state_dict.items()}
    return model, from_state_dict(name, state_dict, num_classes=classes), jnp.asarray(network.images, dtype)


def compiled(network, function, optimisation):
    """Jits the function, at a level of optimisation from 0 to 3."""
    if network.record["model"].endswith("ResNet-110"):
        return function
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": optimisation})


@pytest.fixture(scope="module")
def in_float32(network):
    return load(network, jnp.float32)


def evaluate(network, model, variables, images):
    """Logits, each block's output, and each block's wiring: the numbers of the blocks whose states it sees."""
    outputs, states, wiring = [], [], []

    def record(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if isinstance(context.module, Block):
            _, earlier = args
            seen = [next(j for j, state in enumerate(states) if state is one) for one in earlier]
            wiring.append([len(states), *seen])
            outputs.append(result[0])
            states.append(result[1])
        return result

    def run(variables, images):
        with nn.intercept_methods(record):
            logits = model.apply(variables, images, train=False)
        return logits, outputs

    return *compiled(network, run, 0)(variables, images), wiring


def relative_error(ours, golden):
    return float(np.abs(np.asarray(ours) - golden).max() / np.abs(golden).max())


def test_every_golden_network_is_tested():
    assert len(golden_rules.NETWORKS) == 24


def test_evaluation_in_float64(network, x64):
    logits, outputs, wiring = evaluate(network, *load(network, jnp.float64))
    for i, (ours, golden) in enumerate(zip(outputs, network.record["block_outputs"], strict=True)):
        channels, height, width = golden["shape_chw"]
        assert ours.shape[1:] == (height, width, channels), f"block {i} is the first that departs"
        measured, expected = [float(ours.mean()), float(ours.std())], [golden["mean"], golden["std"]]
        np.testing.assert_allclose(measured, expected, rtol=1e-10, err_msg=f"block {i} is the first that departs")
    golden_wiring = network.record["inbounds"]
    plain = not any(golden_wiring)
    assert wiring == ([[i] for i in range(len(outputs))] if plain else golden_wiring)
    assert logits.dtype == jnp.float64
    assert relative_error(logits, network.logits) < 1e-12


def test_evaluation_in_float32(network, in_float32):
    logits, _, _ = evaluate(network, *in_float32)
    assert logits.dtype == jnp.float32
    assert relative_error(logits, network.logits) < 5e-6


def test_parameters_decay_as_published(network, in_float32):
    _, variables, _ = in_float32
    ours = traverse_util.flatten_dict(decay_mask(variables["params"]))
    published = {entry["name"]: entry["decay"] for entry in network.record["state"] if "decay" in entry}
    assert {original_name(path): decays for path, decays in ours.items()} == published


def test_training_in_float64(trained, x64):
    record = trained.record
    model, variables, images = load(trained, jnp.float64)

    def loss_of(params):
        logits, updates = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(record["labels"]))
        return losses.mean(), (logits, updates)

    step = compiled(trained, jax.value_and_grad(loss_of, has_aux=True), 3)
    (loss, (logits, updates)), grads = step(variables["params"])
    assert relative_error(logits, trained.train_logits) < 1e-9
    np.testing.assert_allclose(loss, record["train_loss"], rtol=1e-9)

    flat = traverse_util.flatten_dict(grads)
    norms = {original_name(path): float(np.linalg.norm(np.asarray(grad))) for path, grad in flat.items()}
    assert norms.keys() == record["grad_norms"].keys()
    # some gradients are zero in exact arithmetic and hold rounding noise, hence the share of the global norm
    noise = 1e-12 * np.linalg.norm(list(record["grad_norms"].values()))
    for name, expected in record["grad_norms"].items():
        assert abs(norms[name] - expected) <= 1e-8 * expected + noise, f"gradient of {name}"

    stats = traverse_util.flatten_dict(updates.get("batch_stats", {}))
    measured = {original_name(path): [float(value.mean()), float(value.std())] for path, value in stats.items()}
    expected = record.get("running_stats_after") or {}
    assert measured.keys() == expected.keys()
    for name, moments in expected.items():
        np.testing.assert_allclose(measured[name], moments, rtol=1e-9, atol=1e-12, err_msg=name)
