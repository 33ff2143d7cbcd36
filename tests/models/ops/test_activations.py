import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.models.ops.activations import gelu, relu

JAX = {relu: jax.nn.relu, gelu: lambda x: jax.nn.gelu(x, approximate=False)}
BOTH = pytest.mark.parametrize("activation", [relu, gelu])


def numbers(dtype):
    """On both sides of 0, and that itself."""
    return jnp.concatenate([jnp.linspace(-6, 6, 240, dtype=dtype), jnp.zeros(1, dtype)])


@BOTH
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.vmap, jax.remat])
def test_numbers_and_gradients_are_those_of_jax(activation, transform, x64):
    x = numbers(jnp.float64)
    out, vjp = jax.vjp(transform(activation), x)
    wanted, wanted_vjp = jax.vjp(JAX[activation], x)
    np.testing.assert_allclose(out, wanted, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(vjp(jnp.cos(x))[0], wanted_vjp(jnp.cos(x))[0], rtol=1e-13, atol=1e-15)


@BOTH
def test_in_bfloat16_each_number_is_rounded_once(activation):
    x = numbers(jnp.bfloat16)
    out, vjp = jax.vjp(activation, x)
    (dx,) = vjp(jnp.ones_like(x))
    assert out.dtype == dx.dtype == jnp.bfloat16
    exact, exact_vjp = jax.vjp(JAX[activation], jnp.float32(x))
    (exact_dx,) = exact_vjp(jnp.ones_like(exact))
    np.testing.assert_allclose(np.float64(out), exact, rtol=2**-8, atol=1e-7)
    np.testing.assert_allclose(np.float64(dx), exact_dx, rtol=2**-8, atol=1e-6)


@BOTH
def test_the_gradient_keeps_one_array(activation):
    x = numbers(jnp.float32)
    _, vjp = jax.vjp(activation, x)
    assert [leaf.shape for leaf in jax.tree.leaves(vjp)] == [x.shape]
