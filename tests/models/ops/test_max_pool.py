import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.models.ops.max_pool import max_pool
from skipnet_jax.training import sharding, xla_options


def reference(x):
    """With JAX's own gradient."""
    return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def output_and_gradient(pool, x):
    """For whole numbers that arrive at the output, whose sums are exact in every type."""

    out, vjp = jax.vjp(pool, x)
    whole = np.random.default_rng(1).integers(-8, 9, out.shape)
    return out, *vjp(jnp.asarray(whole, out.dtype))


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiled quickly, not run
def ours_and_jaxs(x):
    return output_and_gradient(max_pool, x), output_and_gradient(reference, x)


def assert_same_as_jax(x):
    for got, wanted in zip(*ours_and_jaxs(x), strict=True):
        assert got.dtype == wanted.dtype == x.dtype
        np.testing.assert_array_equal(np.float64(got), np.float64(wanted))


def normal(*shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype)


SIZES = [(8, 8), (9, 9), (8, 11), (7, 6), (1, 1), (1, 4), (2, 1), (2, 2), (3, 2)]


@pytest.mark.parametrize("size", SIZES)
def test_as_jax_at_any_size(size):
    assert_same_as_jax(normal(2, *size, 3))


@pytest.mark.parametrize("size", SIZES)
def test_of_equal_pixels_the_same_one_gets_the_gradient(size):
    assert_same_as_jax(jnp.maximum(normal(2, *size, 3) - 0.8, 0))  # four of five pixels are 0
    few_values = np.random.default_rng(2).integers(0, 3, (2, *size, 3))
    assert_same_as_jax(jnp.asarray(few_values, jnp.float32))


@pytest.mark.parametrize("value", [0.0, -2.0, 3.0])
def test_in_a_constant_image_the_same_pixels_get_the_gradient(value):
    assert_same_as_jax(jnp.full((2, 9, 8, 3), value))


def test_pixels_beyond_the_edge_are_no_maximum():
    x = -1 - jnp.abs(normal(2, 7, 8, 3))
    assert_same_as_jax(x)
    out, dx = output_and_gradient(max_pool, x)
    assert float(out.max()) < 0
    whole = np.random.default_rng(1).integers(-8, 9, out.shape)
    assert float(dx.sum()) == whole.sum()  # nothing is lost beyond the edge


def test_in_bfloat16():
    assert_same_as_jax(normal(2, 12, 13, 5, dtype=jnp.bfloat16))  # has pixels that are equal after rounding
    assert_same_as_jax(jnp.maximum(normal(2, 12, 13, 5, dtype=jnp.bfloat16), 0))


def test_in_float64(x64):
    assert_same_as_jax(normal(2, 6, 7, 3, dtype=jnp.float64))


def test_as_it_is_compiled_for_training():
    x = jnp.maximum(normal(2, 12, 13, 5), 0)
    gradient = jax.jit(
        jax.grad(lambda x: (max_pool(x) ** 2).sum()), compiler_options=xla_options.compiler_options("cpu")
    )
    np.testing.assert_allclose(gradient(x), jax.grad(lambda x: (reference(x) ** 2).sum())(x), rtol=1e-6)


def test_eight_devices_compute_the_same_gradient_without_the_whole_batch():
    x = jnp.maximum(normal(16, 6, 7, 3), 0)
    split = sharding.batch_sharding(sharding.make_mesh())
    gradient = jax.grad(lambda x: (max_pool(x) ** 2).sum())
    program = jax.jit(gradient, in_shardings=split, out_shardings=split).lower(x).compile()
    assert "all-gather" not in program.as_text()
    np.testing.assert_array_equal(program(jax.device_put(x, split)), jax.jit(gradient)(x))


def gradient_program(platform):
    gradient = jax.jit(jax.grad(lambda x: max_pool(x).sum()))
    return jax.export.export(gradient, platforms=(platform,))(jnp.zeros((2, 8, 8, 3))).mlir_module()


def test_on_cpus_and_gpus_the_gradient_is_another():
    assert "stablehlo.select_and_scatter" not in gradient_program("cuda")
    assert "stablehlo.optimization_barrier" not in gradient_program("cuda")
    assert "stablehlo.select_and_scatter" in gradient_program("tpu")
    assert "stablehlo.select_and_scatter" not in gradient_program("cpu")
