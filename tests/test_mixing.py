import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax import mixing
from skipnet_jax.specs import MixingSpec

CLASSES = 10
SIZE = 16


def painted_batch(batch):
    """Images in which every pixel tells the example and the position: the example's number, the row, the column."""
    example, row, column = np.meshgrid(np.arange(batch), np.arange(SIZE), np.arange(SIZE), indexing="ij")
    images = np.stack([example, row, column], axis=-1).astype(np.float32)
    return jnp.asarray(images), jnp.arange(batch) % CLASSES


def test_normalize():
    images = np.zeros((1, 1, 2, 3), np.uint8)
    images[0, 0, 1] = 255, 51, 102
    out = mixing.normalize(jnp.asarray(images), (0.5, 0.1, 0.0), (0.25, 0.5, 2.0), jnp.float32)
    np.testing.assert_allclose(out[0, 0, 0], [-2.0, -0.2, 0.0], atol=1e-6)
    np.testing.assert_allclose(out[0, 0, 1], [2.0, 0.2, 0.2], atol=1e-6)


def test_without_mixing_the_batch_is_left_alone():
    images, labels = painted_batch(4)
    out, targets = mixing.mix(jax.random.key(0), images, labels, CLASSES, MixingSpec())
    np.testing.assert_array_equal(out, images)
    np.testing.assert_array_equal(targets, np.eye(CLASSES)[labels])


def test_without_cutmix_nothing_random_is_compiled():
    images, labels = painted_batch(4)

    def program(spec):
        return str(jax.make_jaxpr(lambda key: mixing.mix(key, images, labels, CLASSES, spec))(jax.random.key(0)))

    assert "random" not in program(MixingSpec(cutmix_prob=0.0))
    assert "random" in program(MixingSpec(cutmix_prob=0.5))


def test_label_smoothing_comes_after_mixing():
    images, labels = painted_batch(256)
    key = jax.random.key(3)
    _, hard = mixing.mix(key, images, labels, CLASSES, MixingSpec(cutmix_prob=1.0))
    _, smooth = mixing.mix(key, images, labels, CLASSES, MixingSpec(cutmix_prob=1.0, label_smoothing=0.1))
    np.testing.assert_allclose(smooth, 0.9 * hard + 0.1 / CLASSES, rtol=1e-6)


def test_cutmix_pastes_one_box_of_the_partner_and_mixes_the_target_by_its_true_area():
    batch = 256
    images, labels = painted_batch(batch)
    out, targets = mixing.mix(jax.random.key(1), images, labels, CLASSES, MixingSpec(cutmix_prob=1.0))
    out, targets = np.asarray(out), np.asarray(targets)
    np.testing.assert_array_equal(out[..., 1:], images[..., 1:])  # pixels keep their place
    own = np.arange(batch)[:, None, None]
    pasted = out[..., 0] != own
    np.testing.assert_array_equal(out[..., 0], np.where(pasted, (own - 1) % batch, own))
    for box in pasted:
        np.testing.assert_array_equal(box, box.any(axis=1)[:, None] & box.any(axis=0)[None, :])
    area = pasted.mean(axis=(1, 2))
    assert len(np.unique(area)) > 30  # each example has its own box
    one_hot = np.eye(CLASSES)[labels]
    expected = (1 - area)[:, None] * one_hot + area[:, None] * np.roll(one_hot, 1, axis=0)
    np.testing.assert_allclose(targets, expected, atol=1e-6)
    np.testing.assert_allclose(targets.sum(axis=1), 1.0, rtol=1e-6)


def test_cutmix_prob_is_the_share_of_examples_with_a_box():
    rows, columns = mixing.cutmix_boxes(jax.random.key(0), 4000, 64, 64, MixingSpec(cutmix_prob=0.25))
    share = np.mean(np.any(rows, axis=1) & np.any(columns, axis=1))
    assert 0.22 < share < 0.27


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_box_sides_follow_lambda(alpha):
    """Where a box is not clipped, its squared side is 1 - max(lambda, 1 - lambda) with lambda ~ Beta(alpha, alpha)."""
    size = 1000
    spec = MixingSpec(cutmix_prob=1.0, cutmix_alpha=alpha)
    rows, columns = map(np.asarray, mixing.cutmix_boxes(jax.random.key(2), 4000, size, size, spec))
    assert rows.mean(axis=1).max() < np.sqrt(0.5) + 2 / size
    # Conditioning on "not clipped" would favour small boxes: weigh each by the chance that its centre leaves it whole.
    whole = ~(rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1])
    side = rows[whole].mean(axis=1)
    np.testing.assert_allclose(side, columns[whole].mean(axis=1), atol=2 / size)
    weight = 1 / (1 - side) ** 2
    share = np.sum(weight[:, None] * (side[:, None] ** 2 < [0.1, 0.25, 0.4]), axis=0) / weight.sum()
    drawn = np.random.default_rng(0).beta(alpha, alpha, 200_000)
    expected = np.mean(np.minimum(drawn, 1 - drawn)[:, None] < [0.1, 0.25, 0.4], axis=0)
    np.testing.assert_allclose(share, expected, atol=0.04)


def test_boxes_are_clipped_at_the_border_and_lie_everywhere():
    rows, columns = map(np.asarray, mixing.cutmix_boxes(jax.random.key(5), 4000, 32, 8, MixingSpec(cutmix_prob=1.0)))
    assert rows.shape == (4000, 32) and columns.shape == (4000, 8)
    np.testing.assert_allclose(rows.mean(axis=0), rows.mean(axis=0)[::-1], atol=0.05)
    assert rows[:, 0].mean() > 0.1 and rows[:, 0].mean() < rows[:, 16].mean()
    correlation = np.corrcoef(rows[:, 0], columns[:, 0])[0, 1]
    assert correlation < 0.5  # rows and columns have centres of their own


def test_the_key_decides():
    images, labels = painted_batch(256)
    spec = MixingSpec(cutmix_prob=1.0)
    first, again, other = (mixing.mix(jax.random.key(seed), images, labels, CLASSES, spec)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(np.asarray(first) != np.asarray(other))
