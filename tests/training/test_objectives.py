import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.training import objectives


def test_cross_entropy_of_hard_targets_is_minus_the_log_probability():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]], np.float32)
    losses = objectives.cross_entropy(jnp.log(probabilities) + 3.0, jnp.eye(3)[jnp.array([0, 2])])
    np.testing.assert_allclose(losses, [-np.log(0.7), -np.log(0.5)], rtol=1e-6)


def test_cross_entropy_is_linear_in_the_targets():
    logits = jnp.array([[1.0, -2.0, 0.5], [0.0, 0.0, 4.0]])
    first, second = jnp.eye(3)[jnp.array([0, 1])], jnp.eye(3)[jnp.array([2, 2])]
    mixed = objectives.cross_entropy(logits, 0.3 * first + 0.7 * second)
    apart = 0.3 * objectives.cross_entropy(logits, first) + 0.7 * objectives.cross_entropy(logits, second)
    np.testing.assert_allclose(mixed, apart, rtol=1e-6)
    assert objectives.cross_entropy(logits, jnp.zeros((2, 3))).tolist() == [0.0, 0.0]


def test_cross_entropy_of_huge_logits_is_finite():
    losses = objectives.cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([[0.5, 0.5]]))
    np.testing.assert_allclose(losses, [1e4], rtol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_topk_correct_agrees_with_sorting(k):
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((64, 20)).astype(np.float32), rng.integers(0, 20, 64)
    expected = np.any(np.argsort(-logits, axis=1)[:, :k] == labels[:, None], axis=1)
    assert objectives.topk_correct(jnp.asarray(logits), jnp.asarray(labels), k).tolist() == expected.tolist()


def test_topk_correct_with_nan_with_equal_scores_and_without_a_label():
    logits = jnp.array([[jnp.nan] * 3, [jnp.nan, 1.0, 0.0], [0.0] * 3, [0.0] * 3, [0.0, 0.0, 1.0]])
    hits = objectives.topk_correct(logits, jnp.array([0, 1, 0, 1, -1]), 1)
    assert hits.tolist() == [False, False, True, False, False]


def test_several_right_answers_share_the_target():
    targets = objectives.uniform_targets(jnp.array([[0, 3, -1], [1, -1, -1], [-1, -1, -1]]), 4, jnp.float32)
    assert targets.tolist() == [[0.5, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(("k", "expected"), [(1, [True, False, False]), (2, [True, True, False])])
def test_any_of_several_right_answers_is_correct(k, expected):
    logits = jnp.array([[1.0, 4.0, 3.0, 2.0]] * 3)
    labels = jnp.array([[0, 1, -1], [2, -1, -1], [0, 3, -1]])
    assert objectives.any_topk_correct(logits, labels, k).tolist() == expected


def test_restricted_to_some_classes():
    """Class 1 has the highest score, but neither its score nor its label remains."""
    logits = jnp.array([[1.0, 9.0, 3.0, 2.0]])
    scores, labels = objectives.restrict(logits, jnp.array([[2, 3, 1, -1]]), (3, 2))
    assert scores.tolist() == [[2.0, 3.0]]
    assert labels.tolist() == [[1, 0, -1, -1]]


def test_predictions_of_several_answers_of_padding_and_of_scores_that_are_not_finite():
    logits = jnp.array(
        [[3.0, 1.0, 0.0], [3.0, 1.0, 0.0], [0.0, 0.0, 1.0], [2.0, 2.0, 0.0], [jnp.nan, 9.0, 0.0], [9.0, 0.0, 0.0]]
    )
    labels = jnp.array([[1, 0], [-1, 2], [1, -1], [1, -1], [1, -1], [-1, -1]])
    found = objectives.predict(logits, labels, jnp.array([True] * 5 + [False]))
    # Right, though not the first answer; an answer behind padding; wrong; of equal scores the lower class.
    assert found["answer"].tolist() == [0, 2, 1, 1, -1, -1]
    assert found["prediction"].tolist() == [0, 0, 2, 0, -1, -1]
    first = np.exp(3) / (np.exp(3) + np.e + 1)
    shares = [first, first, np.e / (np.e + 2), np.e**2 / (2 * np.e**2 + 1)]
    np.testing.assert_allclose(found["confidence"][:4], shares, rtol=1e-6)


def test_means_weigh_every_example_alike():
    sums = [{"loss": 3.0, "count": 2}, {"loss": np.float32(1.0), "count": np.int32(6)}]
    assert objectives.means(sums, {"mean": "loss"}) == {"mean": 0.5}
    assert np.isnan(objectives.means([], {"mean": "loss"})["mean"])
