import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.specs import MixingSpec, Statistics
from skipnet_jax.training import mixing

CLASSES = 10
SIZE = 16


def painted_batch(batch):
    """Images in which every pixel tells the example and the position: the example's number, the row, the column."""
    example, row, column = np.meshgrid(np.arange(batch), np.arange(SIZE), np.arange(SIZE), indexing="ij")
    images = np.stack([example, row, column], axis=-1).astype(np.float32)
    return jnp.asarray(images), jnp.arange(batch) % CLASSES


STATISTICS = Statistics((0.5, 0.1, 0.0), (0.25, 0.5, 2.0))


def test_normalize():
    images = np.zeros((1, 1, 2, 3), np.uint8)
    images[0, 0, 1] = 255, 51, 102
    out = mixing.normalize_images(jnp.asarray(images), STATISTICS, jnp.float32)
    np.testing.assert_allclose(out[0, 0, 0], [-2.0, -0.2, 0.0], atol=1e-6)
    np.testing.assert_allclose(out[0, 0, 1], [2.0, 0.2, 0.2], atol=1e-6)


def test_lighting_shifts_each_image_before_it_is_standardised():
    images = jnp.asarray(np.full((2, 1, 1, 3), 255, np.uint8))
    lighting = jnp.asarray([[0.5, 0.0, -0.2], [0.0, 0.1, -2.0]], jnp.float32)  # beyond 0..1, and not clipped
    out = mixing.normalize_images(images, STATISTICS, jnp.float32, lighting)
    np.testing.assert_allclose(out[:, 0, 0], [[4.0, 1.8, 0.4], [2.0, 2.0, -0.5]], atol=1e-6)


def test_without_mixing_the_batch_is_left_alone():
    images, labels = painted_batch(4)
    out, targets = mixing.mix(jax.random.key(0), images, labels, CLASSES, MixingSpec())
    np.testing.assert_array_equal(out, images)
    np.testing.assert_array_equal(targets, np.eye(CLASSES)[labels])


def count_draws(jaxpr):
    """How many times a program draws random bits."""
    inner = [value.jaxpr for eqn in jaxpr.eqns for value in eqn.params.values() if hasattr(value, "jaxpr")]
    own = sum(eqn.primitive.name == "random_bits" for eqn in jaxpr.eqns)
    return own + sum(map(count_draws, inner))


def test_what_is_off_leaves_nothing_in_the_program():
    images, labels = painted_batch(4)

    def draws(**probabilities):
        spec = MixingSpec(**probabilities)
        return count_draws(jax.make_jaxpr(lambda key: mixing.mix(key, images, labels, CLASSES, spec))(key).jaxpr)

    key = jax.random.key(0)
    assert draws(label_smoothing=0.1) == 0
    assert draws(cutmix_prob=0.5) == 1 + 1 + 2  # who, lambda, the box's centre
    assert draws(mixup_prob=0.5) == 1 + 1  # who, lambda
    assert draws(erasing_prob=0.5) == 1 + 2 + 2 + 1  # who, area and aspect, place, noise
    assert draws(cutmix_prob=0.5, mixup_prob=0.5, erasing_prob=0.5) == 4 + 1 + 6  # who is mixed is drawn once for both


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


def kinds(out):
    """Which examples of a painted batch are as they were, have a box of their partner, or are blended with it."""
    own = np.arange(len(out))[:, None, None]
    other = np.asarray(out)[..., 0] - own
    partner = (own - 1) % len(out) - own
    box = ((other == partner) | (other == 0)).all((1, 2)) & (other != 0).any((1, 2))
    blended = ((other != 0) & (other != partner)).all((1, 2))
    alone = (other == 0).all((1, 2))
    assert np.all(box.astype(int) + blended + alone == 1)
    return {"box": box, "blended": blended, "alone": alone}


@pytest.mark.parametrize(("cutmix_prob", "mixup_prob"), [(0.25, 0.0), (0.0, 0.4), (0.5, 0.2), (0.7, 0.3)])
def test_shares_of_cutmix_mixup_and_neither(cutmix_prob, mixup_prob):
    batch = 3000
    images, labels = painted_batch(batch)
    spec = MixingSpec(cutmix_prob=cutmix_prob, mixup_prob=mixup_prob)
    out, targets = mixing.mix(jax.random.key(0), images, labels, CLASSES, spec)
    kind = kinds(out)
    shares = [kind[name].mean() for name in ("box", "blended", "alone")]
    # a box without a single pixel's centre (2 % at 16 pixels) is nobody's
    np.testing.assert_allclose(shares, [cutmix_prob, mixup_prob, 1 - cutmix_prob - mixup_prob], atol=0.045)
    assert mixup_prob > 0 or not kind["blended"].any()
    assert cutmix_prob > 0 or not kind["box"].any()
    assert cutmix_prob + mixup_prob < 1 or not kind["alone"].mean() > 0.04
    np.testing.assert_allclose(np.sum(targets, axis=1), 1.0, rtol=1e-6)


def test_mixup_blends_image_and_target_by_the_same_share():
    batch = 256
    images, labels = painted_batch(batch)
    out, targets = mixing.mix(jax.random.key(1), images, labels, CLASSES, MixingSpec(mixup_prob=1.0))
    np.testing.assert_allclose(out[..., 1:], images[..., 1:], rtol=1e-6)  # pixels keep their place
    share = np.asarray(targets)[np.arange(batch), (np.arange(batch) - 1) % batch % CLASSES]
    assert share.min() >= 0 and share.max() <= 0.5 and len(np.unique(share)) > 200
    numbers = np.arange(batch)
    expected = (1 - share) * numbers + share * np.roll(numbers, 1)
    np.testing.assert_allclose(out[..., 0], np.broadcast_to(expected[:, None, None], out.shape[:3]), rtol=1e-5)
    one_hot = np.eye(CLASSES)[labels]
    np.testing.assert_allclose(
        targets, (1 - share)[:, None] * one_hot + share[:, None] * np.roll(one_hot, 1, axis=0), atol=1e-6
    )


def distance(ours, theirs):
    """Kolmogorov and Smirnov's: the largest difference between two empirical distributions."""
    points = np.concatenate([ours, theirs])
    below = [np.searchsorted(np.sort(sample), points, side="right") / len(sample) for sample in (ours, theirs)]
    return np.abs(below[0] - below[1]).max()


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.8, 1.0, 3.0])
def test_shares_of_the_partner_follow_beta(alpha):
    n = 20_000
    shares = np.asarray(mixing.smaller_shares(jax.random.key(0), n, alpha))
    drawn = np.random.default_rng(0).beta(alpha, alpha, n)
    expected = np.minimum(drawn, 1 - drawn)
    shares, expected = (np.maximum(np.float64(sample), 1e-5) for sample in (shares, expected))  # float32 ends near here
    assert distance(shares, expected) < 1.95 * (2 / n) ** 0.5  # exceeded by chance in one of a thousand
    assert distance(shares, expected + 0.02) > 1.95 * (2 / n) ** 0.5


def test_mixup_and_cutmix_have_an_alpha_each():
    batch = 3000
    images, labels = painted_batch(batch)
    spec = MixingSpec(cutmix_prob=0.5, cutmix_alpha=20.0, mixup_prob=0.5, mixup_alpha=0.2)
    out, targets = mixing.mix(jax.random.key(2), images, labels, CLASSES, spec)
    share = np.asarray(targets)[np.arange(batch), (np.arange(batch) - 1) % batch % CLASSES]
    blended = kinds(out)["blended"]
    assert np.median(share[blended]) < 0.05  # Beta(0.2, 0.2) sits at the ends, Beta(20, 20) in the middle
    assert np.median(share[~blended]) > 0.2


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_box_sides_follow_lambda(alpha):
    """Where a box is not clipped, its squared side is 1 - max(lambda, 1 - lambda) with lambda ~ Beta(alpha, alpha)."""
    size = 256
    area_key, *keys = jax.random.split(jax.random.key(2), 3)
    area = mixing.smaller_shares(area_key, 4000, alpha)
    box = np.asarray(mixing.cutmix_boxes(*keys, area, size, size))
    rows, columns = box.any(axis=2), box.any(axis=1)
    assert rows.mean(axis=1).max() < np.sqrt(0.5) + 2 / size
    # Conditioning on "not clipped" would favour small boxes: weigh each by the chance that its centre leaves it whole.
    whole = ~(rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1])
    side = rows[whole].mean(axis=1)
    np.testing.assert_allclose(side, columns[whole].mean(axis=1), atol=2 / size)
    np.testing.assert_allclose(side, np.sqrt(np.asarray(area)[whole]), atol=2 / size)
    weight = 1 / (1 - side) ** 2
    share = np.sum(weight[:, None] * (side[:, None] ** 2 < [0.1, 0.25, 0.4]), axis=0) / weight.sum()
    drawn = np.random.default_rng(0).beta(alpha, alpha, 200_000)
    expected = np.mean(np.minimum(drawn, 1 - drawn)[:, None] < [0.1, 0.25, 0.4], axis=0)
    np.testing.assert_allclose(share, expected, atol=0.04)


def test_boxes_are_clipped_at_the_border_and_lie_everywhere():
    keys = jax.random.split(jax.random.key(5))
    box = np.asarray(mixing.cutmix_boxes(*keys, jnp.full((4000,), 0.25), 32, 8))
    assert box.shape == (4000, 32, 8)
    rows, columns = box.any(axis=2), box.any(axis=1)
    np.testing.assert_allclose(rows.mean(axis=0), rows.mean(axis=0)[::-1], atol=0.05)
    assert rows[:, 0].mean() > 0.1 and rows[:, 0].mean() < rows[:, 16].mean()
    assert abs(np.corrcoef(rows[:, 0], columns[:, 0])[0, 1]) < 0.06  # rows and columns have centres of their own


def test_what_could_not_be_decoded_has_no_target_and_gives_none():
    images, labels = painted_batch(64)
    labels = labels.at[jnp.asarray([5, 6, 20])].set(-1)
    lost = np.asarray(labels) == -1
    _, plain = mixing.mix(jax.random.key(0), images, labels, CLASSES, MixingSpec(label_smoothing=0.1))
    np.testing.assert_array_equal(np.sum(plain, axis=1) == 0, lost)
    np.testing.assert_allclose(np.sum(plain, axis=1)[~lost], 1.0, rtol=1e-6)
    for spec in (MixingSpec(cutmix_prob=1.0), MixingSpec(mixup_prob=1.0)):
        _, known = mixing.mix(jax.random.key(0), images, labels.at[:].set(0), CLASSES, spec)
        _, targets = mixing.mix(jax.random.key(0), images, labels, CLASSES, spec)
        mass = np.sum(targets, axis=1)
        np.testing.assert_array_equal(targets[lost], 0.0)
        lonely = np.roll(lost, 1) & ~lost
        assert lonely.sum() == 2
        assert np.all(mass[lonely] >= 0.5) and np.all(mass[lonely] < 1)
        own = np.asarray(targets)[lonely, np.asarray(labels)[lonely]]
        np.testing.assert_allclose(own, mass[lonely])  # the rest of it is its own class
        np.testing.assert_allclose(mass[~lost & ~lonely], 1.0, rtol=1e-6)
        np.testing.assert_allclose(np.sum(known, axis=1), 1.0, rtol=1e-6)


def test_erased_pixels_are_standard_normal_noise_and_the_others_stay():
    images = jnp.full((400, SIZE, SIZE, 3), 100.0)
    labels = jnp.arange(400) % CLASSES
    out, targets = mixing.mix(jax.random.key(0), images, labels, CLASSES, MixingSpec(erasing_prob=0.25))
    erased = np.asarray(out) != 100.0
    np.testing.assert_array_equal(erased.all(-1), erased.any(-1))
    for box in erased.any(-1):
        np.testing.assert_array_equal(box, box.any(axis=1)[:, None] & box.any(axis=0)[None, :])
    share = erased.any((1, 2, 3)).mean()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5
    noise = np.asarray(out)[erased].reshape(-1, 3)
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.06)
    np.testing.assert_allclose(np.cov(noise.T), np.eye(3), atol=0.08)  # channels are drawn apart
    np.testing.assert_array_equal(targets, np.eye(CLASSES)[labels])


@pytest.mark.parametrize(("height", "width"), [(128, 128), (96, 160)])
def test_area_aspect_and_place_of_what_is_erased(height, width):
    n = 3000
    box = np.asarray(mixing.erasing_boxes(jax.random.key(1), n, height, width, 1.0))
    rows, columns = box.any(axis=2), box.any(axis=1)
    tall, wide = rows.sum(1), columns.sum(1)
    rng = np.random.default_rng(0)
    area = rng.uniform(0.02, 1 / 3, n)
    aspect = np.exp(rng.uniform(np.log(0.3), np.log(3.3), n))
    sides = (
        np.minimum(np.sqrt(area * height * width * aspect), height),
        np.minimum(np.sqrt(area * height * width / aspect), width),
    )
    critical = 1.95 * (2 / n) ** 0.5
    assert distance(tall * wide / (height * width), sides[0] * sides[1] / (height * width)) < critical
    assert distance(np.log(tall / wide), np.log(sides[0] / sides[1])) < critical
    assert abs(np.corrcoef(tall * wide, np.log(tall / wide))[0, 1]) < 0.1
    for line, side, size in ((rows, tall, height), (columns, wide, width)):
        first = line.argmax(1)
        np.testing.assert_array_equal(line.sum(1), size - line[:, ::-1].argmax(1) - first)  # one piece
        fits = side < size - 8
        place = (first[fits] + rng.uniform(0, 1, fits.sum()) - 0.5) / (size - side[fits])
        assert distance(np.clip(place, 0, 1), rng.uniform(0, 1, n)) < critical


def test_erasing_comes_before_mixing():
    """A box from a partner brings the partner's noise along."""
    images, labels = jnp.zeros((400, SIZE, SIZE, 1)), jnp.zeros(400, jnp.int32)
    key = jax.random.key(4)
    erased, _ = mixing.mix(key, images, labels, CLASSES, MixingSpec(erasing_prob=0.5))
    both, _ = mixing.mix(key, images, labels, CLASSES, MixingSpec(erasing_prob=0.5, cutmix_prob=0.5))
    from_self, from_partner = both == erased, both == jnp.roll(erased, 1, axis=0)
    assert np.all(from_self | from_partner) and np.any(~from_self)


def test_the_key_decides():
    images, labels = painted_batch(256)
    spec = MixingSpec(cutmix_prob=0.5, mixup_prob=0.5, erasing_prob=0.5)
    first, again, other = (mixing.mix(jax.random.key(seed), images, labels, CLASSES, spec)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(np.asarray(first) != np.asarray(other))
