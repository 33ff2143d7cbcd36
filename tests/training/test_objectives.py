import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.training import objectives


def test_cross_entropy_of_hard_targets_is_minus_log_probability():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]], np.float32)
    losses = objectives.cross_entropy(jnp.log(probabilities) + 3.0, jnp.eye(3)[jnp.array([0, 2])])
    np.testing.assert_allclose(losses, [-np.log(0.7), -np.log(0.5)], rtol=1e-6)


def test_cross_entropy_is_linear_in_the_targets():
    logits = jnp.array([[1.0, -2.0, 0.5], [0.0, 0.0, 4.0]])
    first, second = jnp.eye(3)[jnp.array([0, 1])], jnp.eye(3)[jnp.array([2, 2])]
    mixed = objectives.cross_entropy(logits, 0.3 * first + 0.7 * second)
    apart = 0.3 * objectives.cross_entropy(logits, first) + 0.7 * objectives.cross_entropy(logits, second)
    np.testing.assert_allclose(mixed, apart, rtol=1e-6)


def test_cross_entropy_of_huge_logits_is_finite():
    losses = objectives.cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([[0.5, 0.5]]))
    np.testing.assert_allclose(losses, [1e4], rtol=1e-6)


@pytest.mark.parametrize(("k", "expected"), [(1, [True, False, False]), (2, [True, True, False]), (3, [True] * 3)])
def test_topk_correct(k, expected):
    logits = jnp.array([[3.0, 2.0, 1.0]] * 3)
    assert objectives.topk_correct(logits, jnp.array([0, 1, 2]), k).tolist() == expected


def test_nan_is_never_correct():
    logits = jnp.array([[jnp.nan] * 3, [jnp.nan, 1.0, 0.0]])
    assert objectives.topk_correct(logits, jnp.array([0, 1]), 1).tolist() == [False, False]


def test_topk_correct_is_a_membership_in_the_sorted_scores():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((64, 20)).astype(np.float32), rng.integers(0, 20, 64)
    best = np.argsort(-logits, axis=1)[:, :5]
    expected = np.any(best == labels[:, None], axis=1)
    assert objectives.topk_correct(jnp.asarray(logits), jnp.asarray(labels), 5).tolist() == expected.tolist()


def test_equal_scores_do_not_count_as_correct_for_every_class():
    hits = objectives.topk_correct(jnp.zeros((4, 4)), jnp.arange(4), 1)
    assert hits.tolist() == [True, False, False, False]


def test_without_a_label_nothing_is_correct():
    assert objectives.topk_correct(jnp.array([[0.0, 1.0]] * 2), jnp.array([-1, 1]), 2).tolist() == [False, True]


def test_targets_of_zero_have_no_loss():
    assert objectives.cross_entropy(jnp.array([[3.0, -1.0]]), jnp.zeros((1, 2))).tolist() == [0.0]


def test_several_right_answers_share_the_target():
    targets = objectives.uniform_targets(jnp.array([[0, 3, -1], [1, -1, -1], [-1, -1, -1]]), 4, jnp.float32)
    assert targets.tolist() == [[0.5, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(("k", "expected"), [(1, [True, False, False]), (2, [True, True, False])])
def test_any_of_several_right_answers_is_correct(k, expected):
    logits = jnp.array([[1.0, 4.0, 3.0, 2.0]] * 3)
    labels = jnp.array([[0, 1, -1], [2, -1, -1], [0, 3, -1]])
    assert objectives.any_topk_correct(logits, labels, k).tolist() == expected


def test_restricted_to_some_classes():
    """The best of all classes, 1, is none of them, nor is it a label."""
    logits = jnp.array([[1.0, 9.0, 3.0, 2.0]])
    scores, labels = objectives.restrict(logits, jnp.array([[2, 3, 1, -1]]), (3, 2))
    assert scores.tolist() == [[2.0, 3.0]]
    assert labels.tolist() == [[1, 0, -1, -1]]
    assert objectives.any_topk_correct(scores, labels[:, :1], 1).tolist() == [True]


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
