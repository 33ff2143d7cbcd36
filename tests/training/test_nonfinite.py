import jax.numpy as jnp
import numpy as np
import optax
import pytest

from skipnet_jax.training import nonfinite


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_all_finite_finds_one_number_among_many(value):
    tree = {"a": jnp.ones((3, 4)), "b": {"n": jnp.asarray(3), "c": jnp.ones(2)}}
    assert nonfinite.all_finite(tree)
    assert nonfinite.all_finite({"n": jnp.asarray(3)})
    tree["b"]["c"] = tree["b"]["c"].at[1].set(value)
    assert not nonfinite.all_finite(tree)


def test_a_skipped_update_changes_nothing_but_the_schedule():
    optimizer = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(optax.constant_schedule(0.1)))
    params = {"w": jnp.ones(3)}
    old = optimizer.init(params)
    _, new = optimizer.update({"w": jnp.full(3, 2.0)}, old, params)
    kept = nonfinite.keep_finite(jnp.asarray(False), new, old)
    assert kept[0].count == 0 and kept[1].count == 1
    np.testing.assert_array_equal(kept[0].mu["w"], np.zeros(3))
    taken = nonfinite.keep_finite(jnp.asarray(True), new, old)
    assert taken[0].count == 1 and taken[0].mu["w"][0] == new[0].mu["w"][0]


def test_the_metrics_of_a_skipped_update_are_zero():
    metrics = {"loss": jnp.asarray(np.nan, jnp.float32), "count": jnp.asarray(8)}
    skipped = nonfinite.zero_if_skipped(jnp.asarray(False), metrics)
    assert {name: value.item() for name, value in skipped.items()} == {"loss": 0.0, "count": 0, "skipped": 1}
    assert nonfinite.zero_if_skipped(jnp.asarray(True), {"count": jnp.asarray(8)})["skipped"] == 0
