"""Short training runs in float64, compared with the same runs of the published implementation."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from skipnet_jax import specs
from skipnet_jax.interop.layouts import variable_shapes
from skipnet_jax.interop.original_names import original_name
from skipnet_jax.interop.torch_weights import from_state_dict, to_state_dict
from skipnet_jax.models import build_network, list_models, model_info
from skipnet_jax.optim import optimizers, schedules
from skipnet_jax.training import sharding, steps
from tests import golden_rules, quick

NAMES = {model_info(name).published_name: name for name in list_models()}
OPTIMIZERS = {"rmsproptf": "rmsprop_tf"}  # published name: our name, where they differ
KINDS = {"scale": "norm_scale", "mean": "running_mean", "var": "running_var", "logits": "static_logits"}


def starting_variables(name, classes):
    """The golden rules derive each weight from its original name and its kind; our name tells the kind."""
    shapes = variable_shapes(name, classes)
    blank = {path: np.zeros(leaf.shape, np.float32) for path, leaf in shapes.items()}
    blank = to_state_dict(name, traverse_util.unflatten_dict(blank))  # in the original's layout
    weights = {}
    for path in shapes:
        original, kind = original_name(path[1:]), KINDS.get(path[-1], path[-1])
        if kind == "bias" and (*path[:-1], "scale") in shapes:
            kind = "norm_bias"
        weights[original] = golden_rules.weight(original, blank[original].shape, kind).astype(np.float64)
    return from_state_dict(name, weights, num_classes=classes)


def images_of(seed, expected):
    return jnp.asarray(golden_rules.images(seed, expected["batch"], *expected["image_size"]), jnp.float64)


def make_spec(expected, layer_lr_ratio):
    settings = expected["optimizer"]
    return specs.TrainSpec(
        model=specs.ModelSpec(NAMES[expected["model"]], expected["num_classes"], dtype="float64", bn_group_size=0),
        data=specs.DataSpec(name="digits"),
        mixing=specs.MixingSpec(),
        optim=specs.OptimSpec(
            name=OPTIMIZERS.get(settings["train_optim"], settings["train_optim"]),
            lr=settings["train_lr"],
            schedule="constant",
            layer_lr_ratio=layer_lr_ratio,
            momentum=settings["train_momentum"],
            eps=settings["train_eps"],
            weight_decay=settings["train_wdecay"],
            clip_norm=expected["clip_norm"] or 0.0,
        ),
        batch_size=expected["batch"],
        epochs=expected["steps"],
    )


def start(expected, layer_lr_ratio=1.0):
    """The network, the state before the first step, and `steps.update` for this recipe."""
    spec = make_spec(expected, layer_lr_ratio)
    model = build_network(spec.model)
    schedule = schedules.make_schedule(spec.optim, batch_size=spec.batch_size, epochs=spec.epochs, steps_per_epoch=1)
    optimizer = optimizers.make_optimizer(spec.optim, schedule)
    mesh = sharding.make_mesh(jax.devices()[:1])
    variables = starting_variables(spec.model.name, spec.model.num_classes)
    state = steps.state_from_variables(variables, optimizer, mesh=mesh)
    return model, state, functools.partial(steps.update, model=model, optimizer=optimizer, spec=spec)


def train(state, update, expected, count):
    """The state after some steps, and the metrics of each."""
    history = []
    update = quick.jit(update, level=1, donate_argnums=0)
    for step in range(count):
        classes = expected["num_classes"]
        targets = jnp.eye(classes)[golden_rules.generator(200 + step).integers(0, classes, expected["batch"])]
        state, _, metrics = update(state, images_of(100 + step, expected), targets, jax.random.key(0))
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


def read(golden, stem):
    return json.loads((golden / "trajectories" / f"{stem}.json").read_text())


def test_first_steps_of_a_trajectory(golden, x64):
    expected = read(golden, "skip-resnet-18-sgd-layerlr0.1")
    _, state, update = start(expected, layer_lr_ratio=0.1)
    _, history = train(state, update, expected, 3)
    for metrics, loss, grad_norm in zip(history, expected["losses"], expected["grad_norms"], strict=False):
        np.testing.assert_allclose(metrics["loss"] / expected["batch"], loss, rtol=1e-6)
        np.testing.assert_allclose(metrics["grad_norm"], grad_norm, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stem", "layer_lr_ratio"),
    [
        ("skip-resnet-110-sgd", 1.0),
        ("skip-convnext-t-adamw-clip1", 1.0),
        ("skip-resnet-18-rmsproptf", 1.0),
        ("skip-resnet-18-sgd-layerlr0.1", 0.1),
    ],
)
def test_trajectory(stem, layer_lr_ratio, golden, x64):
    expected = read(golden, stem)
    model, state, update = start(expected, layer_lr_ratio)
    state, history = train(state, update, expected, expected["steps"])
    losses = [metrics["loss"] / expected["batch"] for metrics in history]
    np.testing.assert_allclose(losses, expected["losses"], rtol=1e-6)
    np.testing.assert_allclose([metrics["grad_norm"] for metrics in history], expected["grad_norms"], rtol=1e-6)

    params = traverse_util.flatten_dict(state.params)
    norms = {original_name(path): np.linalg.norm(np.ravel(leaf)) for path, leaf in params.items()}
    assert norms.keys() == expected["final_param_norms"].keys()
    for name, norm in norms.items():
        np.testing.assert_allclose(norm, expected["final_param_norms"][name], rtol=1e-6, err_msg=name)
    logits = quick.jit(functools.partial(model.apply, train=False))(state.variables, images_of(0, expected))
    np.testing.assert_allclose(logits, expected["final_eval_logits"], rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_trajectory_of_sam(golden, x64):
    """Compares two steps, because this network amplifies rounding errors about 10,000 times per step.

    Changing the weights in their last bit changes the loss by 6e-5 in the third step.
    """
    expected = read(golden, "resnet-110-sam")
    _, state, update = start(expected)
    _, history = train(state, update, expected, 2)
    losses = np.array([[metrics["loss"], metrics["loss_uphill"]] for metrics in history]) / expected["batch"]
    np.testing.assert_allclose(losses, expected["losses"][:2], rtol=1e-6)
