import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.models.ops.gated_sum import gate_weights, gated_sum
from skipnet_jax.training import xla_options

SHAPE = (2, 3, 4, 5)


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def operands(n, dtype=jnp.float64, logits_dtype=None):
    """Logits, the branch and n states."""
    logits = normal(SHAPE[0], 1 + n, SHAPE[3], dtype=logits_dtype or dtype)
    return logits, normal(*SHAPE, seed=1, dtype=dtype), tuple(normal(*SHAPE, seed=2 + k, dtype=dtype) for k in range(n))


def reference(logits, y, states, weigh_branch, relu):
    """The definition, for JAX to differentiate."""
    exponentials = jnp.exp(logits[:, 1:] - logits[:, 1:].max(1, keepdims=True))
    weights = exponentials / exponentials.sum(1, keepdims=True)
    out = y / (1 + jnp.exp(-logits[:, 0]))[:, None, None] if weigh_branch else y
    for k, state in enumerate(states):
        out = out + state * weights[:, k][:, None, None]
    return jnp.where(out > 0, out, 0) if relu else out


def output_and_gradients(function, operands, weigh_branch, relu):
    def run(*operands):
        out, vjp = jax.vjp(lambda *operands: function(*operands, weigh_branch, relu), *operands)
        return out, *vjp(normal(*out.shape, seed=20, dtype=out.dtype))

    quickly = {"xla_backend_optimization_level": 0}  # compiled, not run
    return jax.jit(run, compiler_options={**xla_options.compiler_options("cpu"), **quickly})(*operands)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("weigh_branch", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_output_and_gradients_are_those_of_the_definition(n, weigh_branch, relu, x64):
    given = operands(n)
    ours = output_and_gradients(gated_sum, given, weigh_branch, relu)
    wanted = output_and_gradients(reference, given, weigh_branch, relu)
    assert jax.tree.structure(ours) == jax.tree.structure(wanted)
    for got, right in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("branch_logit", [-40.0, -8.0, 8.0, 40.0])
@pytest.mark.parametrize("relu", [False, True])
def test_a_branch_that_is_shut_or_wide_open_has_finite_and_right_gradients(branch_logit, relu, x64):
    logits, y, states = operands(2)
    given = (logits.at[:, 0].set(branch_logit), y, states)
    ours = output_and_gradients(gated_sum, given, True, relu)
    wanted = output_and_gradients(reference, given, True, relu)
    for got, right in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, right, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("branch_logit", [-40.0, 40.0])
@pytest.mark.parametrize("state_logit", [-40.0, 40.0])
def test_in_float32_gradients_at_the_ends_are_finite_and_small(branch_logit, state_logit):
    logits, y, states = operands(2, jnp.float32)
    logits = logits.at[:, 0].set(branch_logit).at[:, 1].set(state_logit)
    _, dlogits, *others = output_and_gradients(gated_sum, (logits, y, states), True, True)
    assert np.abs(dlogits).max() < 1e-4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(others))


def test_a_branch_that_is_not_weighed_gives_its_logit_no_gradient():
    _, dlogits, dy, _ = output_and_gradients(gated_sum, operands(2, jnp.float32), False, False)
    np.testing.assert_array_equal(dlogits[:, 0], 0)
    assert np.abs(dlogits[:, 1:]).min() > 0
    np.testing.assert_array_equal(dy, normal(*SHAPE, seed=20))


def test_a_sum_of_exactly_zero_gives_no_gradient_under_the_relu():
    logits, y, (state,) = operands(1, jnp.float32)
    gradients = output_and_gradients(gated_sum, (logits, jnp.zeros_like(y), (jnp.zeros_like(state),)), True, True)
    for leaf in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(leaf, 0)


@pytest.mark.parametrize("relu", [False, True])
def test_bfloat16_maps_have_gradients_near_those_of_float64(relu, x64):
    given = operands(3, jnp.bfloat16, jnp.float32)
    ours = output_and_gradients(gated_sum, given, True, relu)
    assert [leaf.dtype for leaf in jax.tree.leaves(ours)] == [jnp.bfloat16, jnp.float32] + [jnp.bfloat16] * 4
    # a pixel whose sum is nearly 0 may fall on the other side of the ReLU: those get nothing from above
    clear = jnp.abs(reference(*jax.tree.map(jnp.float64, given), True, False)) > 0.02

    def cleared(function):
        return lambda *operands: jnp.where(clear, function(*operands), 0)

    exact = jax.tree.map(jnp.float64, given)
    ours = output_and_gradients(cleared(gated_sum), given, True, relu)
    wanted = output_and_gradients(cleared(reference), exact, True, relu)
    for got, right in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(np.float64(got), right, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("relu", [False, True])
def test_the_gradient_keeps_the_states_and_the_output_but_not_the_branch(n, relu):
    logits, y, states = operands(n, jnp.float32)
    out, vjp = jax.vjp(lambda *operands: gated_sum(*operands, True, relu), logits, y, states)
    kept = [leaf for leaf in jax.tree.leaves(vjp) if leaf.shape == SHAPE]
    assert len(kept) == n + 1
    for array in (*states, out):
        assert sum(np.array_equal(leaf, array) for leaf in kept) == 1


def test_weights_are_a_sigmoid_and_a_softmax_over_the_states():
    logits, _, _ = operands(3, jnp.float32)
    branch, weights = gate_weights(logits)
    np.testing.assert_allclose(branch, 1 / (1 + np.exp(-np.float64(logits[:, 0]))), rtol=1e-5)
    exponentials = np.exp(np.float64(logits[:, 1:]))
    np.testing.assert_allclose(weights, exponentials / exponentials.sum(1, keepdims=True), rtol=1e-5)
