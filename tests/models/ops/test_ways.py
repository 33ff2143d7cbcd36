"""Every platform's way against the plain formula, as `ops.TABLE` lists them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.models import ops
from skipnet_jax.models.ops import cpu, gpu, plain
from skipnet_jax.training import xla_options

QUICKLY = {**xla_options.for_training("cpu"), "xla_backend_optimization_level": 0}  # to compile, not to run


def normal(*shape, seed=0, dtype=np.float32):
    """In NumPy, as all operands below: importing this module computes nothing with JAX."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def image_and_kernel(size, kernel, *, width=1, groups=1, features=1, batch=2):
    return normal(batch, *size, groups * width), normal(kernel, kernel, width, groups * features, seed=1)


def images_for_pooling(height, width):
    """Random pixels, many equal ones, few values, a constant, and images below 0."""
    x = normal(2, height, width, 3)
    whole = np.random.default_rng(2).integers(0, 3, x.shape).astype(np.float32)
    return np.concatenate([x, np.maximum(x - 0.8, 0), whole, np.full_like(x, -2), -1 - np.abs(x)])


def norm_operands(*shape):
    """The groups, or the pixels, have different means and variances."""
    different = 1 + np.arange(shape[0], dtype=np.float32).reshape(-1, *[1] * (len(shape) - 1))
    return 3 * different * normal(*shape) + 2, normal(shape[-1], seed=1), normal(shape[-1], seed=2)


def batch_norm_operands(*shape):
    """And with a vector to measure the moments from."""
    return *norm_operands(*shape), normal(shape[-1], seed=3)


def multiplied(way):
    """A norm as its readers see it, whether it defers the multiplication or not."""

    def run(*arguments):
        (value, factor, offset), *others = way(*arguments)
        factor, offset = (each[:, None, None, None] for each in (factor, offset))
        return (value * factor + offset).astype(value.dtype), *others

    return run


def gate_operands(states, branch_logit=None, deferred=False):
    logits = normal(2, 1 + states, 5)
    if branch_logit is not None:
        logits[:, 0] = branch_logit
    y = normal(2, 3, 4, 5, seed=1), *((normal(2, 5, seed=50), normal(2, 5, seed=51)) if deferred else (None, None))
    return logits, y, tuple(normal(2, 3, 4, 5, seed=2 + k) for k in range(states))


AROUND_0 = np.concatenate([np.linspace(-6, 6, 240), np.zeros(1)]).astype(np.float32)

# Operation -> (arrays, settings). The first case of each also runs in float32 and in bfloat16.
CASES = {
    plain.convolve: [
        # few groups: all together, in two parts, a prime number of them, too wide to join, narrower, wider
        (image_and_kernel((7, 8), 3, groups=2, width=4, features=4), (1, 1, 2)),
        (image_and_kernel((7, 8), 3, groups=16, width=4, features=4), (2, 1, 16)),
        (image_and_kernel((7, 8), 3, groups=7, width=4, features=4), (1, 0, 7)),
        (image_and_kernel((7, 8), 3, groups=2, width=40, features=40), (1, 1, 2)),
        (image_and_kernel((7, 8), 3, groups=6, width=8, features=4), (1, 1, 6)),
        (image_and_kernel((7, 8), 3, groups=4, width=3, features=6), (2, 1, 4)),
        (image_and_kernel((7, 8), 3, width=5, features=4), (1, 1, 1)),
        (image_and_kernel((5, 9), 3, width=5, features=4), (2, 1, 1)),
        (image_and_kernel((8, 8), 4, width=5, features=4), (4, 0, 1)),
        (image_and_kernel((4, 5), 3, width=128, features=128), (2, 1, 1)),
        # depthwise: images larger and smaller than the kernel, even kernels, stride 2, several outputs for each input
        (image_and_kernel((7, 8), 3, groups=5), (1, 1, 5)),
        (image_and_kernel((7, 8), 7, groups=5), (1, 3, 5)),
        (image_and_kernel((3, 5), 7, groups=5), (1, 3, 5)),
        (image_and_kernel((7, 8), 4, groups=5), (1, 1, 5)),
        (image_and_kernel((7, 8), 3, groups=5), (1, 3, 5)),
        (image_and_kernel((7, 8), 7, groups=5), (2, 3, 5)),
        (image_and_kernel((7, 8), 3, groups=5, features=2), (1, 1, 5)),
    ],
    plain.max_pool: [
        ((images_for_pooling(*size),), ()) for size in [(9, 8), (8, 11), (7, 6), (1, 1), (1, 4), (2, 1), (3, 2)]
    ],
    plain.relu: [((AROUND_0,), ())],
    plain.gelu: [((AROUND_0,), ())],
    plain.batch_norm: [
        (batch_norm_operands(3, 4, 3, 5, 6), (1e-5, False)),
        (batch_norm_operands(3, 4, 3, 5, 6), (0.1, True)),
        (batch_norm_operands(4, 8, 6), (1e-5, False)),
        (batch_norm_operands(1, 4, 1, 1, 6), (0.1, True)),
    ],
    plain.batch_norm_max_pool: [
        (batch_norm_operands(3, 4, 7, 6, 5), (1e-5,)),
        (batch_norm_operands(1, 4, 8, 9, 6), (0.1,)),
    ],
    plain.deferred_batch_norm: [
        (batch_norm_operands(3, 4, 3, 5, 6), (1e-5,)),
        (batch_norm_operands(1, 4, 1, 1, 6), (0.1,)),
    ],
    plain.layer_norm: [(norm_operands(2, 3, 5, 6), (1e-5,)), (norm_operands(4, 6), (0.1,))],
    plain.gated_sum: [
        (gate_operands(states=3), (True, False)),
        (gate_operands(states=2), (False, True)),
        (jax.tree.map(np.zeros_like, gate_operands(states=1)), (True, True)),
        (gate_operands(states=2, branch_logit=-40.0), (True, True)),
        (gate_operands(states=2, branch_logit=8.0), (True, False)),
        (gate_operands(states=2, deferred=True), (True, True)),
        (gate_operands(states=1, deferred=True), (False, False)),
    ],
    plain.materialize: [((AROUND_0,), ())],
    plain.materialize_gradient: [((AROUND_0,), ())],
}
WAYS = [
    pytest.param(operation, way, id=f"{operation.__name__}-{'+'.join(p for p in ways if ways[p] is way)}")
    for operation, ways in ops.TABLE.items()
    for way in dict.fromkeys(ways.values())
]


def on_device(arrays):
    return jax.tree.map(jnp.asarray, arrays)


def cast(arrays, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), arrays)


def outputs_and_gradients(function, settings, arrays):
    """The gradients of all arrays, for random gradients of all outputs."""
    arrays = on_device(arrays)
    outputs, vjp = jax.vjp(lambda *arrays: function(*arrays, *settings), *arrays)
    gradients = [normal(*out.shape, seed=20 + k, dtype=jnp.bfloat16) for k, out in enumerate(jax.tree.leaves(outputs))]
    gradients = jax.tree.unflatten(jax.tree.structure(outputs), on_device(gradients))
    return outputs, vjp(jax.tree.map(lambda gradient, out: gradient.astype(out.dtype), gradients, outputs))


def assert_equal(way, operation, cases, *, rtol, atol, exact=lambda arrays: arrays):
    """Compares a way with the plain formula, which gets the same numbers by way of `exact`."""

    @functools.partial(jax.jit, compiler_options=QUICKLY)  # one program for all cases
    def run(all_arrays):
        pairs = []
        for arrays, (_, settings) in zip(all_arrays, cases, strict=True):
            ways = way, operation
            if operation is plain.deferred_batch_norm:
                ways = multiplied(way), multiplied(operation)
            got = outputs_and_gradients(ways[0], settings, arrays)
            wanted = outputs_and_gradients(ways[1], settings, exact(arrays))
            assert jax.tree.structure(got) == jax.tree.structure(wanted)
            pairs.append(list(zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)))
        return pairs

    for (_, settings), pairs in zip(cases, run([arrays for arrays, _ in cases]), strict=True):
        for got, wanted in pairs:
            assert np.isfinite(np.float64(got)).all()
            np.testing.assert_allclose(
                np.float64(got), np.float64(wanted), rtol, atol, err_msg=f"{settings}, {got.shape}"
            )


def test_every_operation_has_cases():
    assert CASES.keys() == ops.TABLE.keys()


@pytest.mark.parametrize(("operation", "way"), WAYS)
def test_in_float64_a_way_is_the_plain_formula(operation, way, x64):
    cases = [(cast(arrays, jnp.float64), settings) for arrays, settings in CASES[operation]]
    assert_equal(way, operation, cases, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("operation", "way"), WAYS)
def test_in_float32_a_way_is_the_plain_formula(operation, way):
    assert_equal(way, operation, CASES[operation][:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("operation", "way"), WAYS)
def test_in_bfloat16_a_way_is_near_the_plain_formula_in_float32(operation, way):
    arrays, settings = CASES[operation][0]
    if operation is plain.gated_sum:
        arrays = (arrays[0], *jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.ndim == 4 else x, arrays[1:]))
    elif operation is plain.convolve:
        arrays = cast(arrays, jnp.bfloat16)
    else:
        arrays = (arrays[0].astype(jnp.bfloat16), *arrays[1:])
    # Half a unit in the last of bfloat16's 8 digits, and a little for sums whose terms cancel. But a gate rounds its
    # weights too, and the pool adds up rounded gradients.
    coarse = operation in (plain.gated_sum, plain.max_pool)
    rtol, atol = (0.05, 0.05) if coarse else (2**-8, 2e-3)
    exact = functools.partial(cast, dtype=jnp.float32)
    assert_equal(way, operation, [(arrays, settings)], rtol=rtol, atol=atol, exact=exact)


def test_in_bfloat16_the_gradient_of_a_kernel_is_summed_in_float32():
    x, kernel = cast(image_and_kernel((16, 16), 3, groups=8, width=4, features=4, batch=8), jnp.bfloat16)
    run = jax.jit(functools.partial(outputs_and_gradients, cpu.convolve, (1, 1, 8)))
    out, (_, dkernel) = run((jnp.ones_like(x), jnp.ones_like(kernel)))
    dy = np.float64(normal(*out.shape, seed=20, dtype=jnp.bfloat16))
    # the middle of the kernel sees every pixel: 2048 numbers of either sign, whose sum is small
    np.testing.assert_allclose(np.float64(dkernel[1, 1, 0]), dy.sum((0, 1, 2)), rtol=0.01)


@pytest.mark.parametrize(("size", "kernel", "padding"), [((32, 32), 7, 3), ((33, 40), 3, 1), ((17, 15), 5, 2)])
def test_a_stem_over_blocks_of_pixels_is_the_plain_convolution(size, kernel, padding, x64):
    arrays = cast(image_and_kernel(size, kernel, width=3, features=4), jnp.float64)

    def in_blocks(x, kernel, stride, padding, groups):
        return gpu.in_blocks(x, kernel, padding)

    assert_equal(in_blocks, plain.convolve, [(arrays, (2, padding, 1))], rtol=1e-11, atol=1e-11)


# How many arrays as large as its input each operation keeps for its gradient, where CPUs and GPUs have one by hand.
KEPT = {plain.relu: 1, plain.gelu: 1, plain.batch_norm: 1, plain.layer_norm: 1, plain.gated_sum: 4, plain.max_pool: 1}


@pytest.mark.parametrize(("operation", "way"), [way for way in WAYS if way.values[0] in KEPT and "tpu" not in way.id])
def test_a_gradient_keeps_no_more_than_it_must(operation, way):
    arrays, settings = CASES[operation][0]
    arrays = on_device(arrays)
    _, vjp = jax.vjp(lambda *arrays: way(*arrays, *settings), *arrays)
    large = max(leaf.size for leaf in jax.tree.leaves(arrays))
    assert sum(leaf.size >= large for leaf in jax.tree.leaves(vjp)) == KEPT[operation]


@pytest.mark.parametrize("way", [cpu.gated_sum, gpu.gated_sum])
def test_a_gate_keeps_its_output_and_its_states_but_not_the_branch(way):
    logits, y, states = on_device(gate_operands(states=3))
    (out, _), vjp = jax.vjp(lambda *arrays: way(*arrays, True, True), logits, y, states)
    kept = jax.tree.leaves(vjp)
    for array in (*states, out):
        assert any(np.array_equal(leaf, array) for leaf in kept)
    assert not any(np.array_equal(leaf, y[0]) for leaf in kept)


@pytest.mark.parametrize("operation", [plain.batch_norm, plain.deferred_batch_norm])
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_a_large_mean_does_not_drown_a_small_variance(operation, platform):
    x, origin = on_device(100 + 0.01 * normal(1, 64, 4, 4, 3)), jnp.full(3, 99.9)  # a running mean that has come near
    settings = (1e-5, False)[: 2 if operation is plain.batch_norm else 1]
    *_, var = ops.TABLE[operation][platform](x, jnp.ones(3), jnp.zeros(3), origin, *settings)
    np.testing.assert_allclose(var, np.float64(x).var((1, 2, 3)), rtol=1e-3)


@pytest.mark.parametrize("way", [plain.batch_norm, *ops.TABLE[plain.batch_norm].values()])
@pytest.mark.parametrize("value", [0.0, -3.0])
def test_a_constant_channel_has_a_finite_gradient(way, value):
    x, scale, bias = on_device(normal(2, 4, 3, 3, 5)).at[..., 2].set(value), normal(5, seed=1), normal(5, seed=2)
    (y, _, _), gradients = outputs_and_gradients(way, (1e-5, False), (x, scale, bias, jnp.zeros(5)))
    np.testing.assert_allclose(y[..., 2], bias[2], rtol=1e-6)
    for gradient in gradients:
        assert np.isfinite(gradient).all()


def test_the_gradient_of_a_relu_is_0_at_0():
    np.testing.assert_array_equal(jax.grad(lambda x: plain.relu(x).sum())(jnp.zeros(1)), 0)


@pytest.mark.parametrize("way", ops.TABLE[plain.batch_norm].values())
def test_a_norm_in_bfloat16_has_statistics_and_gradients_of_its_parameters_in_float32(way):
    x, *vectors = batch_norm_operands(3, 4, 3, 5, 6)
    outputs, gradients = outputs_and_gradients(way, (1e-5, True), (x.astype(jnp.bfloat16), *vectors))
    assert [out.dtype for out in outputs] == [jnp.bfloat16, jnp.float32, jnp.float32]
    assert [gradient.dtype for gradient in gradients] == [jnp.bfloat16, jnp.float32, jnp.float32, jnp.float32]
