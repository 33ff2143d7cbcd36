import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.models.ops.normalization import layer_normalize, normalize
from skipnet_jax.training import xla_options

EPSILON = 1e-5


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def reference(x, scale, bias, epsilon=EPSILON):
    """The formula, for JAX to differentiate; one group after the other."""
    out = []
    for group in x:
        axes = tuple(range(group.ndim - 1))
        mean, var = group.mean(axes, keepdims=True), group.var(axes, keepdims=True)
        shape = mean.shape
        out.append((group - mean) / jnp.sqrt(var + epsilon) * scale.reshape(shape) + bias.reshape(shape))
    return jnp.stack(out)


def output_and_gradients(function, *operands):
    def run(*operands):
        out, vjp = jax.vjp(function, *operands)
        return out, *vjp(normal(*out.shape, seed=9, dtype=out.dtype))

    quickly = {"xla_backend_optimization_level": 0}  # compiled, not run
    return jax.jit(run, compiler_options={**xla_options.compiler_options("cpu"), **quickly})(*operands)


def only_output(epsilon=EPSILON):
    return lambda x, scale, bias: normalize(x, scale, bias, epsilon)[0]


@pytest.mark.parametrize(
    ("shape", "epsilon"),
    [
        ((1, 4, 3, 5, 6), 1e-5),
        ((1, 4, 3, 5, 6), 0.1),
        ((3, 4, 3, 5, 6), 1e-5),
        ((5, 2, 1, 1, 6), 0.1),
        ((1, 16, 6), 1e-5),
        ((4, 8, 6), 1e-5),
    ],
)
def test_output_and_gradients_are_those_of_the_formula(shape, epsilon, x64):
    groups = (1 + jnp.arange(shape[0], dtype=jnp.float64)).reshape(-1, *[1] * (len(shape) - 1))
    x = 3 * groups * normal(*shape, dtype=jnp.float64) + 2  # each group has another variance
    scale, bias = normal(6, seed=1, dtype=jnp.float64), normal(6, seed=2, dtype=jnp.float64)
    ours = output_and_gradients(only_output(epsilon), x, scale, bias)
    wanted = output_and_gradients(lambda *operands: reference(*operands, epsilon), x, scale, bias)
    for name, got, right in zip(("output", "x", "scale", "bias"), ours, wanted, strict=True):
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, right, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("shape", [(1, 4, 3, 5, 6), (3, 4, 3, 5, 6), (1, 16, 6)])
def test_with_a_relu_too(shape, x64):
    x = 3 * normal(*shape, dtype=jnp.float64) + 2
    scale, bias = normal(6, seed=1, dtype=jnp.float64), normal(6, seed=2, dtype=jnp.float64)
    ours = output_and_gradients(lambda *given: normalize(*given, EPSILON, relu=True)[0], x, scale, bias)
    wanted = output_and_gradients(lambda *given: jax.nn.relu(reference(*given)), x, scale, bias)
    assert 0 < np.mean(wanted[0] == 0) < 1
    for name, got, right in zip(("output", "x", "scale", "bias"), ours, wanted, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (4, 6)])
def test_layer_norm_and_its_gradients_are_those_of_the_formula(shape, x64):
    def formula(x, scale, bias):
        centred = x - x.mean(-1, keepdims=True)
        y = centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + EPSILON)
        return y * scale.reshape((1,) * (x.ndim - 1) + (-1,)) + bias.reshape((1,) * (x.ndim - 1) + (-1,))

    x = 3 * normal(*shape, dtype=jnp.float64) + 2
    scale, bias = normal(6, seed=1, dtype=jnp.float64), normal(6, seed=2, dtype=jnp.float64)
    ours = output_and_gradients(lambda *given: layer_normalize(*given, EPSILON), x, scale, bias)
    wanted = output_and_gradients(formula, x, scale, bias)
    for name, got, right in zip(("output", "x", "scale", "bias"), ours, wanted, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-12, atol=1e-12, err_msg=name)


def test_layer_norm_keeps_one_array_as_large_as_the_input():
    x = normal(2, 4, 3, 5)
    _, vjp = jax.vjp(lambda *given: layer_normalize(*given, EPSILON), x, normal(5, seed=1), normal(5, seed=2))
    assert [leaf.shape for leaf in jax.tree.leaves(vjp) if leaf.size >= x.size] == [x.shape]


def test_statistics_are_those_of_each_group(x64):
    x = normal(3, 4, 2, 5, 6, dtype=jnp.float64) * 3 + 7
    _, mean, var = normalize(x, jnp.ones(6), jnp.zeros(6), EPSILON)
    np.testing.assert_allclose(mean, np.mean(x, axis=(1, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(var, np.var(x, axis=(1, 2, 3)), rtol=1e-12)


def test_statistics_take_no_gradient():
    x, scale, bias = normal(2, 4, 3, 3, 5), normal(5, seed=1), normal(5, seed=2)

    def run(x, scale, bias, weight):
        out, mean, var = normalize(x, scale, bias, EPSILON)
        return (out**2).sum() + weight * ((mean**3).sum() + (var**2).sum())

    gradients = jax.jit(jax.grad(run, argnums=(0, 1, 2)))
    for with_them, without in zip(gradients(x, scale, bias, 10.0), gradients(x, scale, bias, 0.0), strict=True):
        np.testing.assert_array_equal(with_them, without)
        assert np.abs(without).max() > 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("value", [0.0, -3.0])
def test_a_constant_channel_has_a_finite_gradient(dtype, value):
    x = normal(2, 4, 3, 3, 5).at[..., 2].set(value).astype(dtype)
    scale, bias = normal(5, seed=1), normal(5, seed=2)
    out, dx, dscale, dbias = output_and_gradients(only_output(), x, scale, bias)
    for array in (out, dx, dscale, dbias):
        assert np.isfinite(np.float64(array)).all()
    np.testing.assert_allclose(np.float64(out[..., 2]), float(bias[2]), rtol=0.01)
    np.testing.assert_allclose(dscale[2], 0, atol=2e-4)  # rounding, times 1 / sqrt(epsilon)


def test_a_large_mean_does_not_drown_a_small_variance():
    x = 100 + 0.01 * normal(1, 64, 4, 4, 3)
    _, _, var = normalize(x, jnp.ones(3), jnp.zeros(3), EPSILON)
    np.testing.assert_allclose(var, np.float64(x).var((1, 2, 3)), rtol=1e-3)


def test_bfloat16_is_computed_in_float32():
    x = (4 + normal(2, 32, 4, 4, 5)).astype(jnp.bfloat16)
    scale, bias = normal(5, seed=1), normal(5, seed=2)
    narrow, mean, var = normalize(x, scale, bias, EPSILON)
    assert (narrow.dtype, mean.dtype, var.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    out, dx, dscale, dbias = output_and_gradients(only_output(), x, scale, bias)
    assert (dx.dtype, dscale.dtype, dbias.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    exact = [np.float64(x), np.float64(scale), np.float64(bias)]
    flat = exact[0].reshape(2, -1, 5)
    np.testing.assert_allclose(mean, flat.mean(1), rtol=1e-5)
    np.testing.assert_allclose(var, flat.var(1), rtol=1e-5)
    dy = np.float64(normal(*x.shape, seed=9, dtype=jnp.bfloat16)).reshape(2, -1, 5)
    normalised = (flat - flat.mean(1, keepdims=True)) / np.sqrt(flat.var(1, keepdims=True) + EPSILON)
    # parameters and their gradients are never rounded, x and its gradient once: half of 2^-7
    np.testing.assert_allclose(dbias, dy.sum((0, 1)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dscale, (dy * normalised).sum((0, 1)), rtol=1e-4, atol=1e-3)
    right = (normalised * exact[1] + exact[2]).reshape(x.shape)
    np.testing.assert_allclose(np.float64(out), right, rtol=2**-8, atol=1e-6)
    centred = dy - dy.mean(1, keepdims=True) - normalised * (dy * normalised).mean(1, keepdims=True)
    right = (centred * exact[1] / np.sqrt(flat.var(1, keepdims=True) + EPSILON)).reshape(x.shape)
    np.testing.assert_allclose(np.float64(dx), right, rtol=2**-8, atol=1e-5)


def test_the_gradient_keeps_one_array_as_large_as_the_input():
    x = normal(2, 4, 3, 3, 5)
    _, vjp = jax.vjp(only_output(), x, normal(5, seed=1), normal(5, seed=2))
    assert [leaf.shape for leaf in jax.tree.leaves(vjp) if leaf.size >= x.size] == [x.shape]
