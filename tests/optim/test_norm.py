import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.optim.optimizers import SMALL_ARRAY, global_norm


@pytest.mark.parametrize("sizes", [[3], [SMALL_ARRAY, SMALL_ARRAY + 1], [2, 5, SMALL_ARRAY + 1], []], ids=str)
def test_of_small_and_large_arrays(sizes):
    random = np.random.default_rng(0)
    arrays = [random.standard_normal(size).astype(np.float32) for size in sizes]
    expected = np.linalg.norm(np.concatenate([*arrays, [0]]).astype(np.float64))
    np.testing.assert_allclose(global_norm([jnp.asarray(array) for array in arrays]), expected, rtol=1e-6)


def test_hundreds_of_small_arrays_are_one_sum():
    tree = {str(i): jnp.ones((i + 1, 2)) for i in range(100)}
    program = jax.jit(global_norm).lower(tree).as_text()
    assert program.count("stablehlo.reduce(") == 1
