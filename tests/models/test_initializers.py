import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.models.initializers import HostDraw, uniform_by_fan_in


@pytest.mark.parametrize("init", [HostDraw(bound=None), uniform_by_fan_in(9)], ids=["normal", "uniform"])
def test_numbers_follow_the_key_and_nothing_else(init):
    draw = jax.jit(lambda key: init(key, (3, 4), jnp.float32))
    keys = jax.random.split(jax.random.key(0), 2)
    first, second = (np.asarray(init(key, (3, 4), jnp.float32)) for key in keys)
    assert not np.isin(first, second).any()
    np.testing.assert_array_equal(draw(keys[0]), first)
    np.testing.assert_array_equal(jax.vmap(draw)(keys), [first, second])


def test_the_normal_draw_is_standard():
    values = HostDraw(bound=None)(jax.random.key(0), (100, 100), jnp.float32)
    np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=0.03)
    assert np.abs(values).max() > 3


def test_the_uniform_draw_keeps_its_bound():
    values = uniform_by_fan_in(16)(jax.random.key(0), (100, 100), jnp.float32)
    np.testing.assert_allclose([values.min(), values.mean(), values.max()], [-0.25, 0, 0.25], atol=0.01)
    assert np.abs(values).max() <= 0.25
