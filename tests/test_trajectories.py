"""A short training run of Skip-ResNet-110 against the same run of the published implementation, in float64."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from skipnet_jax import sharding, specs, steps
from skipnet_jax.interop.torch_weights import from_state_dict, original_name
from skipnet_jax.models import create_model
from skipnet_jax.optim import optimizers
from tests import golden_rules

NAME = "skip_resnet110"


def starting_variables(num_classes):
    start = golden_rules.GoldenNetwork.load("skip-resnet-110-32x32").state_dict
    return from_state_dict(
        NAME, {key: value.astype(np.float64) for key, value in start.items()}, num_classes=num_classes
    )


def images_of(seed, batch, size):
    return jnp.asarray(golden_rules.images(seed, batch, *size), jnp.float64)


@pytest.mark.slow
def test_sgd_on_skip_resnet110(golden, x64):
    expected = json.loads((golden / "trajectories" / "skip-resnet-110-sgd.json").read_text())
    settings, classes, batch = expected["optimizer"], expected["num_classes"], expected["batch"]
    model = create_model(NAME, num_classes=classes, dtype=jnp.float64, bn_group_size=0)
    spec = specs.OptimSpec(
        lr=settings["train_lr"], momentum=settings["train_momentum"], weight_decay=settings["train_wdecay"]
    )
    optimizer = optimizers.make_optimizer(spec, optax.constant_schedule(spec.lr), optimizers.decay_mask)
    variables = starting_variables(classes)
    state = steps.TrainState(step=jnp.zeros((), jnp.int32), opt_state=optimizer.init(variables["params"]), **variables)
    state = sharding.replicate(state, sharding.make_mesh(jax.devices()[:1]))
    update = jax.jit(functools.partial(steps.update, model=model, optimizer=optimizer), donate_argnums=0)

    for step in range(expected["steps"]):
        images = images_of(100 + step, batch, expected["image_size"])
        targets = jnp.eye(classes)[golden_rules.generator(200 + step).integers(0, classes, batch)]
        state, _, metrics = update(state, images, targets, jax.random.key(0))
        np.testing.assert_allclose(metrics["loss"] / batch, expected["losses"][step], rtol=1e-6, err_msg=f"{step=}")
        np.testing.assert_allclose(metrics["grad_norm"], expected["grad_norms"][step], rtol=1e-6, err_msg=f"{step=}")

    params = traverse_util.flatten_dict(state.params)
    norms = {original_name(path): np.linalg.norm(np.ravel(leaf)) for path, leaf in params.items()}
    assert norms.keys() == expected["final_param_norms"].keys()
    for name, norm in norms.items():
        np.testing.assert_allclose(norm, expected["final_param_norms"][name], rtol=1e-6, err_msg=name)
    evaluate = jax.jit(functools.partial(model.apply, train=False))
    logits = evaluate(state.variables, images_of(0, batch, expected["image_size"]))
    np.testing.assert_allclose(logits, expected["final_eval_logits"], rtol=1e-6, atol=1e-8)
