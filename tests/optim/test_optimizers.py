import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from skipnet_jax.models import abstract_variables, create_model, model_info
from skipnet_jax.optim import optimizers
from skipnet_jax.optim.optimizers import SMALL_ARRAY, global_norm
from skipnet_jax.specs import OPTIMIZERS, OptimSpec

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "optimizers.json").read_text())
GOLDEN_SPECS = {
    "sgd lr=0.1 momentum=0.9 nesterov wd=0.1": OptimSpec(name="sgd", lr=0.1, weight_decay=0.1),
    "adamw lr=0.01 eps=1e-8 wd=0.1": OptimSpec(name="adamw", lr=0.01, weight_decay=0.1),
    "rmsprop lr=0.01 alpha=0.99 momentum=0.9 eps=1e-8 wd=0.1": OptimSpec(name="rmsprop", lr=0.01, weight_decay=0.1),
    "rmsproptf lr=0.01 alpha=0.99 momentum=0.9 eps=1e-3 wd=0.1": OptimSpec(
        name="rmsprop_tf", lr=0.01, weight_decay=0.1, eps=1e-3
    ),
}


def trace(spec, gradients, schedule=None, path=("layer", "kernel")):
    """Applies an optimiser to one parameter with the given gradients; returns its value after each update."""
    outer, inner = path
    optimizer = optimizers.make_optimizer(spec, schedule or optax.constant_schedule(spec.lr))
    params = {outer: {inner: jnp.asarray(GOLDEN["start"])}}
    state = optimizer.init(params)
    values = []
    for gradient in gradients:
        updates, state = optimizer.update({outer: {inner: jnp.asarray(gradient)}}, state, params)
        params = optax.apply_updates(params, updates)
        values.append(np.asarray(params[outer][inner]))
    return np.asarray(values)


def golden_gradients(steps):
    return [np.random.Generator(np.random.PCG64(300 + step)).standard_normal(5) for step in range(steps)]


def test_every_golden_optimizer_is_tested():
    assert GOLDEN_SPECS.keys() == GOLDEN["params_after_step"].keys()
    assert {spec.name for spec in GOLDEN_SPECS.values()} | {"sam"} == set(OPTIMIZERS) == set(optimizers.OPTIMIZERS)


@pytest.mark.parametrize("key", GOLDEN_SPECS)
def test_updates_match_pytorch_and_tensorflow(key, x64):
    expected = GOLDEN["params_after_step"][key]
    values = trace(GOLDEN_SPECS[key], golden_gradients(len(expected)))
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12)


def test_sam_updates_like_sgd(x64):
    gradients = golden_gradients(3)
    np.testing.assert_array_equal(trace(OptimSpec(name="sam"), gradients), trace(OptimSpec(name="sgd"), gradients))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weight_decay_leaves_biases_alone(optimizer):
    gradients, path = golden_gradients(2), ("norm", "bias")
    with_decay = trace(OptimSpec(name=optimizer, weight_decay=0.1), gradients, path=path)
    without = trace(OptimSpec(name=optimizer, weight_decay=0.0), gradients, path=path)
    np.testing.assert_array_equal(with_decay, without)


@pytest.mark.parametrize(("name", "decays"), [("bias", True), ("scale", False), ("kernel", True)])
def test_decay_bias_adds_the_biases(name, decays):
    gradients, path = golden_gradients(2), ("norm", name)
    with_decay_bias = trace(OptimSpec(weight_decay=0.1, decay_bias=True), gradients, path=path)
    kernel = trace(OptimSpec(weight_decay=0.1), gradients)
    without_decay = trace(OptimSpec(weight_decay=0.0), gradients)
    np.testing.assert_array_equal(with_decay_bias, kernel if decays else without_decay)


def test_momentum_without_nesterov():
    spec = OptimSpec(momentum=0.5, nesterov=False, weight_decay=0.0)
    values = trace(spec, [np.ones(5), np.zeros(5)])
    np.testing.assert_allclose(values[0] - GOLDEN["start"], -0.1, atol=1e-6)
    np.testing.assert_allclose(values[1] - values[0], -0.05, atol=1e-6)


@pytest.mark.parametrize(("name", "share"), [("sgd", 0.1), ("rmsprop", 0.1), ("rmsprop_tf", 1.0)])
def test_a_new_rate_scales_the_whole_momentum_except_in_tensorflows_form(name, share):
    """The second gradient is zero, so the second step is pure momentum."""
    spec = OptimSpec(name=name, momentum=0.5, nesterov=False, weight_decay=0.0)
    values = trace(spec, [np.ones(5), np.zeros(5)], lambda step: jnp.where(step == 0, 1.0, 0.1))
    first, second = values[0] - GOLDEN["start"], values[1] - values[0]
    np.testing.assert_allclose(second, 0.5 * share * first, rtol=1e-4)


def test_clipping_by_value(x64):
    gradient = np.array([3.0, -3.0, 0.5, -0.2, 0.0])
    spec = OptimSpec(clip_value=1.0, momentum=0.0, weight_decay=0.0)
    np.testing.assert_allclose(trace(spec, [gradient])[0] - GOLDEN["start"], -0.1 * np.clip(gradient, -1, 1))


@pytest.mark.parametrize("norm", [0.5, 2.0])
def test_clipping_by_norm_uses_pytorchs_epsilon(norm, x64):
    gradient = np.array([3.0, 0.0, -4.0, 0.0, 0.0]) * norm / 5
    spec = OptimSpec(clip_norm=1.0, momentum=0.0, weight_decay=0.0)
    expected = gradient * min(1, 1 / (norm + 1e-6))
    np.testing.assert_allclose(trace(spec, [gradient])[0] - GOLDEN["start"], -0.1 * expected, rtol=1e-9)


def test_the_clipped_norm_is_over_all_parameters(x64):
    gradients = {"a": {"kernel": jnp.array([3.0])}, "b": {"bias": jnp.array([4.0])}}
    clipped, _ = optimizers.clip_by_norm(2.5).update(gradients, optax.EmptyState())
    np.testing.assert_allclose(clipped["a"]["kernel"], 1.5, rtol=1e-6)
    np.testing.assert_allclose(clipped["b"]["bias"], 2.0, rtol=1e-6)


def test_clipping_goes_by_value_then_by_norm_and_spares_weight_decay(x64):
    spec = OptimSpec(clip_value=1.0, clip_norm=1.0, momentum=0.0, weight_decay=0.5)
    values = trace(spec, [np.array([100.0, 0.0, 0.0, 0.0, 1.0])])
    gradient = np.array([1.0, 0.0, 0.0, 0.0, 1.0]) / np.sqrt(2)
    expected = -0.1 * (gradient + 0.5 * np.array(GOLDEN["start"]))
    np.testing.assert_allclose(values[0] - GOLDEN["start"], expected, rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_layer_rates_scale_the_whole_update(name, x64):
    """Including decay and momentum."""
    spec = {"name": name, "weight_decay": 0.1}
    slow = trace(OptimSpec(**spec, layer_lr_ratio=0.1, lr=0.1), golden_gradients(1), path=("stem", "kernel"))
    expected = trace(OptimSpec(**spec, lr=0.01), golden_gradients(1), path=("stem", "kernel"))
    np.testing.assert_allclose(slow, expected, rtol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parts_that_are_switched_off_are_left_out(name):
    params = {"stem": {"kernel": jnp.zeros(1)}}
    off = OptimSpec(name=name, weight_decay=0.0, momentum=0.0)
    on = OptimSpec(name=name, weight_decay=0.1, momentum=0.9, clip_value=1.0, clip_norm=1.0, layer_lr_ratio=0.5)
    lengths = [len(optimizers.make_optimizer(spec, optax.constant_schedule(1.0)).init(params)) for spec in (off, on)]
    momentum = 0 if name == "adamw" else 1  # part of scale_by_adam
    assert lengths[1] - lengths[0] == 4 + momentum
    assert lengths[0] == (1 if name in ("sgd", "sam") else 2)  # the rate, and the scaling


def test_weight_decay_applies_to_kernels_and_the_static_table():
    params = {
        "conv": {"kernel": jnp.zeros((3, 3, 4, 4)), "bias": jnp.zeros(4)},
        "norm": {"scale": jnp.zeros(4), "bias": jnp.zeros(4)},
        "junction": {"logits": jnp.zeros((3, 4))},
        "attention": {"position_bias": jnp.zeros((9, 2)), "layer_scale": jnp.zeros(4)},
    }
    assert optimizers.decay_mask(params) == {
        "conv": {"kernel": True, "bias": False},
        "norm": {"scale": False, "bias": False},
        "junction": {"logits": True},
        "attention": {"position_bias": False, "layer_scale": False},
    }


@pytest.mark.parametrize("name", ["skip_resnet20", "swin_tiny"])
def test_layer_rates_rise_geometrically_from_the_stem_to_the_head(name):
    params = abstract_variables(create_model(name), model_info(name).image_size)["params"]
    rates = {path[0]: rate for path, rate in traverse_util.flatten_dict(optimizers.layer_rates(params, 0.1)).items()}
    blocks = [rates.pop(f"blocks_{i}") for i in range(len(rates)) if f"blocks_{i}" in rates]
    assert rates.pop("stem") == pytest.approx(0.1)
    np.testing.assert_allclose(blocks, np.geomspace(0.1, 1, len(blocks) + 2)[1:-1])
    assert rates and set(rates.values()) == {1}  # the classifier and its norms


@pytest.mark.parametrize("sizes", [[2, 5], [3, SMALL_ARRAY + 1], []], ids=str)
def test_global_norm_of_small_and_large_arrays(sizes):
    arrays = [np.random.default_rng(0).standard_normal(size) for size in sizes]
    expected = np.linalg.norm(np.concatenate([*arrays, [0]]))
    np.testing.assert_allclose(global_norm([jnp.asarray(array, jnp.float32) for array in arrays]), expected, rtol=1e-6)


def test_global_norm_sums_small_arrays_at_once():
    tree = {str(i): np.ones((i + 1, 2), np.float32) for i in range(100)}
    program = jax.jit(global_norm).lower(tree).as_text()
    assert program.count("stablehlo.reduce(") == 1
