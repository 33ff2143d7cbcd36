"""A short training run of Skip-ResNet-110 against the same run of the published implementation, in float64."""

import functools
import json
import zlib

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

NAME = "skip_resnet110"


def generator(seed):
    return np.random.Generator(np.random.PCG64(seed))


def images_of(seed, batch, height, width):
    g = generator(seed)
    x = g.standard_normal((batch, 3, height, width))
    x = x + 2 * g.standard_normal((batch, 3, 1, 1))
    return jnp.asarray(x.astype(np.float32).transpose(0, 2, 3, 1), jnp.float64)


def starting_value(path, leaf, flat):
    """The value that follows from the original's name of a parameter or statistic, in the original's layout."""
    g = generator(zlib.crc32(original_name(path).encode()))
    shape = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[leaf.ndim]
    shape = tuple(leaf.shape[axis] for axis in shape)
    match path[-1]:
        case "kernel":
            value = g.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        case "scale":
            value = g.uniform(0.7, 1.2, shape)
        case "bias":
            of_norm = (*path[:-1], "scale") in flat
            value = g.standard_normal(shape) * (0.1 if of_norm else 0.3)
        case "mean":
            value = g.standard_normal(shape) * 0.1
        case "var":
            value = g.uniform(0.5, 1.5, shape)
    return value.astype(np.float32).astype(np.float64)


def starting_variables(model, num_classes):
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    state_dict = {}
    for collection in shapes.values():
        flat = traverse_util.flatten_dict(collection)
        state_dict |= {original_name(path): starting_value(path, leaf, flat) for path, leaf in flat.items()}
    return from_state_dict(NAME, state_dict, num_classes=num_classes)


@pytest.mark.slow
def test_sgd_on_skip_resnet110(golden, x64):
    expected = json.loads((golden / "trajectories" / "skip-resnet-110-sgd.json").read_text())
    settings, classes, batch = expected["optimizer"], expected["num_classes"], expected["batch"]
    model = create_model(NAME, num_classes=classes, dtype=jnp.float64, bn_group_size=0)
    spec = specs.OptimSpec(
        lr=settings["train_lr"], momentum=settings["train_momentum"], weight_decay=settings["train_wdecay"]
    )
    optimizer = optimizers.make_optimizer(spec, optax.constant_schedule(spec.lr), optimizers.decay_mask)
    variables = starting_variables(model, classes)
    state = steps.TrainState(step=jnp.zeros((), jnp.int32), opt_state=optimizer.init(variables["params"]), **variables)
    state = sharding.replicate(state, sharding.make_mesh(jax.devices()[:1]))
    update = jax.jit(functools.partial(steps.update, model=model, optimizer=optimizer), donate_argnums=0)

    for step in range(expected["steps"]):
        images = images_of(100 + step, batch, *expected["image_size"])
        targets = jnp.eye(classes)[generator(200 + step).integers(0, classes, batch)]
        state, _, metrics = update(state, images, targets, jax.random.key(0))
        np.testing.assert_allclose(metrics["loss"] / batch, expected["losses"][step], rtol=1e-6, err_msg=f"{step=}")
        np.testing.assert_allclose(metrics["grad_norm"], expected["grad_norms"][step], rtol=1e-6, err_msg=f"{step=}")

    params = traverse_util.flatten_dict(state.params)
    norms = {original_name(path): np.linalg.norm(np.ravel(leaf)) for path, leaf in params.items()}
    assert norms.keys() == expected["final_param_norms"].keys()
    for name, norm in norms.items():
        np.testing.assert_allclose(norm, expected["final_param_norms"][name], rtol=1e-6, err_msg=name)
    evaluate = jax.jit(functools.partial(model.apply, train=False))
    logits = evaluate(state.variables, images_of(0, batch, *expected["image_size"]))
    np.testing.assert_allclose(logits, expected["final_eval_logits"], rtol=1e-6, atol=1e-8)
