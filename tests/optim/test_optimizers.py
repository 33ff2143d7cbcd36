import json
import pathlib

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from skipnet_jax.optim import optimizers
from skipnet_jax.specs import OptimSpec

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "optimizers.json").read_text())
SGD = OptimSpec(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1)


def trace(spec, schedule, gradients, name="kernel"):
    """The values of one parameter after each update under given gradients."""
    optimizer = optimizers.make_optimizer(spec, schedule, optimizers.decay_mask)
    params = {"layer": {name: jnp.asarray(GOLDEN["start"])}}
    state = optimizer.init(params)
    values = []
    for gradient in gradients:
        updates, state = optimizer.update({"layer": {name: jnp.asarray(gradient)}}, state, params)
        params = optax.apply_updates(params, updates)
        values.append(np.asarray(params["layer"][name]))
    return values


def golden_gradients(steps):
    return [np.random.Generator(np.random.PCG64(300 + step)).standard_normal(5) for step in range(steps)]


def test_golden_sgd(x64):
    expected = GOLDEN["params_after_step"]["sgd lr=0.1 momentum=0.9 nesterov wd=0.1"]
    values = trace(SGD, optax.constant_schedule(0.1), golden_gradients(len(expected)))
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["bias", "scale"])
def test_what_does_not_decay_moves_as_without_decay(name):
    gradients = golden_gradients(3)
    with_decay = trace(SGD, optax.constant_schedule(0.1), gradients, name)
    without = trace(OptimSpec(lr=0.1, weight_decay=0.0), optax.constant_schedule(0.1), gradients, name)
    np.testing.assert_array_equal(with_decay, without)


def test_plain_momentum():
    spec = OptimSpec(momentum=0.5, nesterov=False, weight_decay=0.0)
    values = trace(spec, optax.constant_schedule(0.1), [np.ones(5), np.zeros(5)])
    np.testing.assert_allclose(values[0] - GOLDEN["start"], -0.1, atol=1e-6)
    np.testing.assert_allclose(values[1] - values[0], -0.05, atol=1e-6)


def test_the_rate_of_the_step_acts_on_the_whole_momentum():
    spec = OptimSpec(momentum=0.5, nesterov=False, weight_decay=0.0)
    values = trace(spec, lambda step: jnp.where(step == 0, 1.0, 0.1), [np.ones(5), np.zeros(5)])
    np.testing.assert_allclose(values[1] - values[0], -0.05, atol=1e-6)


def test_decay_mask_takes_kernels_and_the_static_table():
    params = {
        "conv": {"kernel": jnp.zeros((3, 3, 4, 4)), "bias": jnp.zeros(4)},
        "norm": {"scale": jnp.zeros(4), "bias": jnp.zeros(4)},
        "junction": {"logits": jnp.zeros((3, 4))},
    }
    assert optimizers.decay_mask(params) == {
        "conv": {"kernel": True, "bias": False},
        "norm": {"scale": False, "bias": False},
        "junction": {"logits": True},
    }
