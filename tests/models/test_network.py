"""The network: wiring, precision, rematerialisation, feature pyramid, noise, initial variables."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.models import abstract_variables, create_model, init_variables
from skipnet_jax.models.block import Block, BlockArchitecture
from skipnet_jax.models.families.resnet import BasicOperation
from skipnet_jax.models.junctions import JUNCTIONS
from skipnet_jax.models.layers import Layers
from skipnet_jax.models.network import Architecture, Network
from skipnet_jax.models.noise import BranchNoise
from skipnet_jax.models.shortcuts import LinearShortcut
from skipnet_jax.models.stems import SmallStem
from skipnet_jax.specs import ModelSpec
from tests import quick

CLASSES = 5


def images_of(*size, batch=4, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((batch, *size, 3)), dtype)


# Each kind of noise on the branches, strong enough to show on its own.
NOISE = {"drop_path": 0.3, "shake_drop": 0.5, "drop_block": 0.3, "drop_block_size": 3, "signal_augment": 0.2}


def make_network(junction="skip", **settings):
    """A network of real parts but only three blocks, in two sections."""
    blocks = tuple(
        BlockArchitecture(
            stride,
            functools.partial(LinearShortcut, features, stride),
            functools.partial(BasicOperation, features, stride),
        )
        for features, stride in ((8, 1), (8, 1), (16, 2))
    )
    architecture = Architecture("Tiny", 8, CLASSES, functools.partial(SmallStem, 8), blocks, gate_reduction=2)
    return Network(architecture, JUNCTIONS[junction], ModelSpec("tiny", CLASSES, bn_group_size=0, **settings))


@pytest.fixture(scope="module")
def variables():
    """The variables of this network, with statistics other than the initial ones."""
    variables = make_network().init(jax.random.key(0), images_of(8, 8), train=False)
    stats = jax.tree.map(lambda leaf: leaf + 0.1, variables["batch_stats"])
    return {"params": variables["params"], "batch_stats": stats}


def evaluate(model, variables, images):
    return quick.jit(functools.partial(model.apply, train=False))(variables, images)


class Tap(nn.Module):
    """A shortcut through which gradients reach only its own parameter."""

    layers: Layers
    stride: int = 1

    @nn.compact
    def __call__(self, x, *, train):
        x = jax.lax.stop_gradient(x)[:, :: self.stride, :: self.stride]
        return x + self.param("tap", nn.initializers.zeros, (1, 1, 1, x.shape[-1]))


class Still(nn.Module):
    """A branch through which no gradient flows."""

    layers: Layers
    stride: int = 1

    @nn.compact
    def __call__(self, x, *, train):
        return jax.lax.stop_gradient(jnp.sin(x))[:, :: self.stride, :: self.stride]


class Widen(nn.Module):
    """A stem that only widens the image."""

    layers: Layers

    @nn.compact
    def __call__(self, x, *, train):
        return jnp.tile(x, (1, 1, 1, 2))


ABLATIONS = ("dynamic", "static", "mean", "sum")
STRIDES = (1,) * 6 + (2, 1)  # sections of 6 and 2 blocks

# The numbers of the blocks whose states each block sees.
OWN = [{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}]
SKIP = [{0}, {0, 1}, {1, 2}, {0, 2, 3}, {1, 3, 4}, {2, 4, 5}, {6}, {6, 7}]
DENSE = [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}, {0, 1, 2, 3, 4}, {1, 2, 3, 4, 5}, {6}, {6, 7}]


@pytest.mark.parametrize(
    "name", ["add", "skip", "dense", *(pytest.param(n, marks=pytest.mark.slow) for n in ABLATIONS)]
)
def test_blocks_see_exactly_the_wired_states(name):
    """The gradient of block i's junction with respect to the state of block j is zero unless i sees j."""
    blocks = tuple(
        BlockArchitecture(s, functools.partial(Tap, stride=s), functools.partial(Still, stride=s)) for s in STRIDES
    )
    architecture = Architecture("Toy", 4, CLASSES, Widen, blocks)
    model = Network(architecture, JUNCTIONS[name], ModelSpec("toy", CLASSES, bn_group_size=0, gate_reduction=1))
    images = images_of(4, 4)
    variables = quick.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)
    order = [f"blocks_{i}" for i in range(len(blocks))]

    def junction_outputs(taps):
        params = {**variables["params"]}
        for block, tap in taps.items():
            params[block] = {**params[block], "shortcut": {"tap": tap}}
        _, sown = model.apply(
            {**variables, "params": params},
            images,
            train=False,
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name == "junction",
        )
        outputs = [sown["intermediates"][block]["junction"]["__call__"][0] for block in order]
        return jnp.stack([jnp.square(out.value).sum() for out in outputs])

    taps = {block: variables["params"][block]["shortcut"]["tap"] for block in order}
    jacobian = quick.jit(jax.jacrev(junction_outputs))(taps)
    expected = {"add": OWN, "dense": DENSE}.get(name, SKIP)
    assert [{j for j, block in enumerate(order) if jacobian[block][i].any()} for i in range(len(order))] == expected


def test_evaluation_is_deterministic_and_sees_each_image_alone(variables):
    model = make_network(dropout=0.5, drop_path=0.5, drop_block=0.5, signal_augment=0.5)
    images = images_of(8, 8)
    logits = evaluate(model, variables, images)
    np.testing.assert_array_equal(logits, evaluate(make_network(), variables, images))
    np.testing.assert_allclose(logits[:1], evaluate(model, variables, images[:1]), rtol=1e-4, atol=1e-5)


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32(variables):
    images, model = images_of(8, 8), make_network(dtype="bfloat16")
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    train = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    logits, updates = jax.eval_shape(train, variables, images)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float32)}
    exact, rounded = evaluate(make_network(), variables, images), evaluate(model, variables, images)
    np.testing.assert_allclose(rounded, exact, atol=0.05 * float(jnp.abs(exact).max()))


@pytest.mark.parametrize(
    "name",
    [
        "skip_regnety_008",
        "skip_swin_tiny",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("skip_resnet20", "skip_convnext_tiny")),
    ],
)
def test_bfloat16_computes_its_blocks_in_bfloat16(name):
    model = create_model(name, num_classes=CLASSES, dtype=jnp.bfloat16)
    outputs = []

    def record(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if isinstance(context.module, Block):
            outputs.extend([result[0].value.dtype, result[1].value.dtype])
        return result

    with nn.intercept_methods(record):
        logits, _ = jax.eval_shape(
            functools.partial(model.init_with_output, train=False), jax.random.key(0), images_of(32, 32)
        )
    assert set(outputs) == {jnp.dtype(jnp.bfloat16)}
    assert logits.dtype == jnp.float32


def make_step(model, variables, images):
    """(params, key, progress) -> loss, statistics, gradient."""

    def loss_of(params, key, progress):
        logits, updates = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            progress=progress,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return jnp.square(logits).sum(), updates

    return jax.value_and_grad(loss_of, has_aux=True)


@pytest.fixture(scope="module")
def plain_and_remat(variables):
    """The same noisy step, without and with rematerialisation, and its arguments."""
    networks = [make_network(shake_drop=0.5, drop_block=0.3, remat=remat) for remat in (False, True)]
    args = variables["params"], jax.random.key(1), jnp.float32(0.7)
    return [make_step(network, variables, images_of(8, 8)) for network in networks], args


def test_rematerialisation_is_in_the_program_if_asked_for(plain_and_remat):
    (plain, remat), args = plain_and_remat
    assert "remat" not in str(jax.make_jaxpr(plain)(*args))
    assert "remat" in str(jax.make_jaxpr(remat)(*args))


@pytest.mark.slow
def test_rematerialisation_changes_no_number(plain_and_remat):
    steps, args = plain_and_remat
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(a).max())),
        *(quick.jit(step)(*args) for step in steps),
    )


def program(model, variables):
    """The training step as it goes to the compiler."""
    args = variables["params"], jax.random.key(1), jnp.float32(0.7)
    return jax.jit(make_step(model, variables, images_of(8, 8))).lower(*args).as_text()


def test_noise_that_is_off_costs_nothing(variables, monkeypatch):
    off = program(make_network(), variables)
    assert "threefry" not in off and "random" not in off and "rng" not in off
    for name, rate in NOISE.items():
        if name != "drop_block_size":
            assert "threefry" in program(make_network(**{name: rate}), variables), name
    monkeypatch.setattr(BranchNoise, "active", False)
    assert program(make_network(**NOISE), variables) == off


def test_drop_block_grows_with_the_progress_of_the_training(variables):
    def logits(model, progress):
        rngs = {"dropout": jax.random.key(1)}
        return model.apply(
            variables, images_of(8, 8), train=True, progress=progress, mutable=["batch_stats"], rngs=rngs
        )[0]

    at = quick.jit(functools.partial(logits, make_network(drop_block=0.3, drop_block_size=3)))
    np.testing.assert_allclose(at(jnp.float32(0)), quick.jit(logits, static_argnums=0)(make_network(), 0.0), rtol=1e-4)
    assert float(jnp.abs(at(jnp.float32(1)) - at(jnp.float32(0))).max()) > 1e-2


def test_features_are_the_last_outputs_of_the_sections(variables):
    model, images = make_network(), images_of(33, 37)
    params = {name: value for name, value in variables["params"].items() if name != "classifier"}
    backbone = {"params": params, "batch_stats": variables["batch_stats"]}
    stages = quick.jit(functools.partial(model.apply, train=False, method="features"))(backbone, images)
    assert [stage.shape for stage in stages] == [(4, 33, 37, 8), (4, 17, 19, 16)]
    kernel, bias = (np.asarray(variables["params"]["classifier"][name]) for name in ("kernel", "bias"))
    logits = np.asarray(stages[-1]).mean((1, 2)) @ kernel + bias
    np.testing.assert_allclose(evaluate(model, variables, images), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "strides", "widths"),
    [
        ("regnety_008", (4, 8, 16, 32), (64, 128, 320, 768)),
        ("swin_tiny", (4, 8, 16, 32), (96, 192, 384, 768)),
        pytest.param("skip_resnet50", (4, 8, 16, 32), (256, 512, 1024, 2048), marks=pytest.mark.slow),
        pytest.param("skip_convnext_tiny", (4, 8, 16, 32), (96, 192, 384, 768), marks=pytest.mark.slow),
        pytest.param("skip_wide_resnet28_10", (1, 2, 4), (160, 320, 640), marks=pytest.mark.slow),
        pytest.param("pyramidnet110_a48", (1, 2, 4), (32, 48, 64), marks=pytest.mark.slow),
    ],
)
def test_feature_pyramids_of_odd_images(name, strides, widths):
    init = functools.partial(create_model(name).init_with_output, train=False, method="features")
    stages, _ = jax.eval_shape(init, jax.random.key(0), images_of(33, 37, batch=2))
    assert tuple(stage.shape[-1] for stage in stages) == widths
    for stage, stride in zip(stages, strides, strict=True):
        for side, whole in zip(stage.shape[1:3], (33, 37), strict=True):
            assert side in {whole // stride, -(-whole // stride)}


@pytest.mark.parametrize(
    ("name", "blocks", "first"),  # Swin's attention and perceptron count separately; RegNet's first block has a stride
    [("skip_resnet20", 9, 3), ("swin_tiny", 24, 8), ("regnety_008", 14, 4)],
)
def test_noise_of_each_block(name, blocks, first):
    """Stochastic depth and ShakeDrop grow with the depth; DropBlock begins at the last-but-one stride."""
    rates = {"drop_path": 0.4, "shake_drop": 0.5, "drop_block": 0.1, "drop_block_size": 5, "signal_augment": 0.2}
    noises = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, Block):
            noises.append(context.module.noise)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        abstract_variables(create_model(name, **rates), 32)
    np.testing.assert_allclose([noise.drop_path for noise in noises], [0.4 * (i + 1) / blocks for i in range(blocks)])
    np.testing.assert_allclose([noise.shake_drop for noise in noises], [0.5 * (i + 1) / blocks for i in range(blocks)])
    assert [noise.drop_block for noise in noises] == [0.0] * first + [0.1] * (blocks - first)
    assert {(noise.drop_block_size, noise.signal_augment) for noise in noises} == {(5, 0.2)}


def test_dropout_stands_before_the_classifier(variables):
    seen = []

    def record(call, args, kwargs, context):
        if context.module.name == "classifier":
            seen.append(np.asarray(args[0]))
        return call(*args, **kwargs)

    images, rngs = images_of(8, 8, batch=64), {"dropout": jax.random.key(1)}
    with nn.intercept_methods(record):
        for dropout in (0.0, 0.5):
            make_network(dropout=dropout).apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
    plain, noisy = seen
    kept = (noisy != 0) | (plain == 0)
    assert 0.4 < kept[plain > 0].mean() < 0.6
    np.testing.assert_allclose(noisy, np.where(kept, 2 * plain, 0), rtol=1e-6)


@pytest.mark.parametrize("name", ["skip_resnet20", "static_resnet20", "convnext_tiny", "swin_tiny"])
def test_initial_variables_are_those_of_init_and_need_no_forward_pass(name, monkeypatch):
    model, size = create_model(name, num_classes=CLASSES), 32
    architecture = dataclasses.replace(model.architecture, blocks=model.architecture.blocks[:2])
    model = model.clone(architecture=architecture)
    expected = quick.jit(functools.partial(model.init, train=False))(jax.random.key(3), images_of(size, size, batch=1))
    evaluated = set()
    evaluate = jax.core.eval_jaxpr

    def spy(jaxpr, *values):
        evaluated.update(equation.primitive.name for equation in jaxpr.eqns)
        return evaluate(jaxpr, *values)

    monkeypatch.setattr(jax.core, "eval_jaxpr", spy)
    variables = init_variables(model, jax.random.key(3), size)
    # Compiled as a whole, some numbers may round otherwise.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), variables, expected)
    drawn = {"random_fold_in", "random_unwrap", "pure_callback", "broadcast_in_dim"}
    assert evaluated == drawn | ({"jit", "mul"} if name == "swin_tiny" else set())  # JAX draws Swin's position bias
