import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.specs import MixingSpec, Statistics
from skipnet_jax.training import mixing

CLASSES = 10
SIZE = 16
BATCH = 256
STATISTICS = Statistics((0.5, 0.1, 0.0), (0.25, 0.5, 2.0))
LABELS = np.arange(BATCH) % CLASSES
ONE_HOT = np.eye(CLASSES)[LABELS]
ALL = MixingSpec(cutmix_prob=0.5, mixup_prob=0.5, erasing_prob=0.5)


def painted_images(batch=BATCH):
    """Images whose three channels are the number of the example, the row and the column."""
    grid = np.meshgrid(np.arange(batch), np.arange(SIZE), np.arange(SIZE), indexing="ij")
    return np.stack(grid, axis=-1).astype(np.float32)


def mix(spec, *, images=None, labels=LABELS, seed=0):
    images = painted_images() if images is None else images
    mixed = jax.jit(mixing.mix, static_argnums=(3, 4))(jax.random.key(seed), images, labels, CLASSES, spec)
    return [np.asarray(array) for array in mixed]


def previous(rows):
    """The partners of the rows."""
    return np.roll(rows, 1, axis=0)


def require_boxes(masks):
    """Every mask is a filled rectangle."""
    np.testing.assert_array_equal(masks, masks.any(axis=2)[:, :, None] & masks.any(axis=1)[:, None, :])


def test_normalize_images():
    images = np.zeros((1, 1, 2, 3), np.uint8)
    images[0, 0, 1] = 255, 51, 102
    out = mixing.normalize_images(jnp.asarray(images), STATISTICS, jnp.float32)
    np.testing.assert_allclose(out[0, 0, 0], [-2.0, -0.2, 0.0], atol=1e-6)
    np.testing.assert_allclose(out[0, 0, 1], [2.0, 0.2, 0.2], atol=1e-6)


def test_lighting_shifts_each_image_before_it_is_standardised():
    images = jnp.asarray(np.full((2, 1, 1, 3), 255, np.uint8))
    lighting = jnp.asarray([[0.5, 0.0, -0.2], [0.0, 0.1, -2.0]], jnp.float32)  # leaves 0..1, and is not clipped
    out = mixing.normalize_images(images, STATISTICS, jnp.float32, lighting)
    np.testing.assert_allclose(out[:, 0, 0], [[4.0, 1.8, 0.4], [2.0, 2.0, -0.5]], atol=1e-6)


def test_without_mixing_the_batch_stays_the_same():
    images, targets = mix(MixingSpec())
    np.testing.assert_array_equal(images, painted_images())
    np.testing.assert_array_equal(targets, ONE_HOT)


def count_draws(jaxpr):
    """Counts how often a program draws random bits."""
    inner = [value.jaxpr for eqn in jaxpr.eqns for value in eqn.params.values() if hasattr(value, "jaxpr")]
    own = sum(eqn.primitive.name == "random_bits" for eqn in jaxpr.eqns)
    return own + sum(map(count_draws, inner))


@pytest.mark.parametrize(
    ("spec", "draws"),
    [
        (MixingSpec(label_smoothing=0.1), 0),
        (MixingSpec(cutmix_prob=0.5), 1 + 1 + 2),  # the choice, lambda, the centre of the box
        (MixingSpec(mixup_prob=0.5), 1 + 1),  # the choice, lambda
        (MixingSpec(erasing_prob=0.5), 1 + 2 + 2 + 1),  # the choice, area and aspect, place, noise
        (ALL, 4 + 1 + 6),  # CutMix and Mixup share the choice
    ],
)
def test_an_operation_that_is_off_is_not_compiled(spec, draws):
    def program(key):
        return mixing.mix(key, jnp.asarray(painted_images(4)), jnp.arange(4), CLASSES, spec)

    assert count_draws(jax.make_jaxpr(program)(jax.random.key(0)).jaxpr) == draws


def test_label_smoothing_comes_after_mixing():
    _, hard = mix(MixingSpec(cutmix_prob=1.0))
    _, smooth = mix(MixingSpec(cutmix_prob=1.0, label_smoothing=0.1))
    np.testing.assert_allclose(smooth, 0.9 * hard + 0.1 / CLASSES, rtol=1e-6)


def test_cutmix_pastes_one_box_of_the_partner_and_mixes_the_target_by_its_true_area():
    images, targets = mix(MixingSpec(cutmix_prob=1.0))
    np.testing.assert_array_equal(images[..., 1:], painted_images()[..., 1:])  # pixels keep their place
    own = np.arange(BATCH)[:, None, None]
    pasted = images[..., 0] != own
    np.testing.assert_array_equal(images[..., 0], np.where(pasted, (own - 1) % BATCH, own))
    require_boxes(pasted)
    area = pasted.mean(axis=(1, 2))
    assert len(np.unique(area)) > 30  # each example has its own box
    expected = (1 - area)[:, None] * ONE_HOT + area[:, None] * previous(ONE_HOT)
    np.testing.assert_allclose(targets, expected, atol=1e-6)


def test_mixup_blends_image_and_target_by_the_same_share():
    images, targets = mix(MixingSpec(mixup_prob=1.0))
    np.testing.assert_allclose(images[..., 1:], painted_images()[..., 1:], rtol=1e-6)  # pixels keep their place
    share = targets[np.arange(BATCH), previous(LABELS)]
    assert share.min() >= 0 and share.max() <= 0.5 and len(np.unique(share)) > 200
    numbers = np.arange(BATCH)
    expected = (1 - share) * numbers + share * previous(numbers)
    np.testing.assert_allclose(images[..., 0], np.broadcast_to(expected[:, None, None], images.shape[:3]), rtol=1e-5)
    expected = (1 - share)[:, None] * ONE_HOT + share[:, None] * previous(ONE_HOT)
    np.testing.assert_allclose(targets, expected, atol=1e-6)


def operations(images):
    """Tells which examples of a painted batch got CutMix ("box"), Mixup ("blended") or neither ("alone")."""
    own = np.arange(len(images))[:, None, None]
    other = images[..., 0] - own
    partner = (own - 1) % len(images) - own
    found = {
        "box": ((other == partner) | (other == 0)).all((1, 2)) & (other != 0).any((1, 2)),
        "blended": ((other != 0) & (other != partner)).all((1, 2)),
        "alone": (other == 0).all((1, 2)),
    }
    assert np.all(sum(mask.astype(int) for mask in found.values()) == 1)
    return found


@pytest.mark.parametrize(("cutmix_prob", "mixup_prob"), [(0.25, 0.0), (0.0, 0.4), (0.5, 0.2), (0.7, 0.3)])
def test_shares_of_cutmix_mixup_and_neither(cutmix_prob, mixup_prob):
    batch = 3000
    spec = MixingSpec(cutmix_prob=cutmix_prob, mixup_prob=mixup_prob)
    images, targets = mix(spec, images=painted_images(batch), labels=np.arange(batch) % CLASSES)
    found = operations(images)
    shares = [found[name].mean() for name in ("box", "blended", "alone")]
    # at 16 pixels 2 % of the boxes contain no pixel's centre
    np.testing.assert_allclose(shares, [cutmix_prob, mixup_prob, 1 - cutmix_prob - mixup_prob], atol=0.045)
    assert mixup_prob > 0 or not found["blended"].any()
    assert cutmix_prob > 0 or not found["box"].any()
    np.testing.assert_allclose(np.sum(targets, axis=1), 1.0, rtol=1e-6)


def distance(ours, theirs):
    """The Kolmogorov-Smirnov statistic: the largest difference between two empirical distributions."""
    points = np.concatenate([ours, theirs])
    below = [np.searchsorted(np.sort(sample), points, side="right") / len(sample) for sample in (ours, theirs)]
    return np.abs(below[0] - below[1]).max()


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_shares_of_the_partner_follow_beta(alpha):
    n = 20_000
    shares = np.asarray(mixing.smaller_shares(jax.random.key(0), n, alpha))
    drawn = np.random.default_rng(0).beta(alpha, alpha, n)
    expected = np.minimum(drawn, 1 - drawn)
    shares, expected = (np.maximum(np.float64(sample), 1e-5) for sample in (shares, expected))  # float32 ends near here
    assert distance(shares, expected) < 1.95 * (2 / n) ** 0.5  # exceeded by chance once in a thousand times
    assert distance(shares, expected + 0.02) > 1.95 * (2 / n) ** 0.5


def test_mixup_and_cutmix_have_an_alpha_each():
    spec = MixingSpec(cutmix_prob=0.5, cutmix_alpha=20.0, mixup_prob=0.5, mixup_alpha=0.2)
    images, targets = mix(spec)
    share = targets[np.arange(BATCH), previous(LABELS)]
    blended = operations(images)["blended"]
    assert np.median(share[blended]) < 0.05  # Beta(0.2, 0.2) sits at the ends, Beta(20, 20) in the middle
    assert np.median(share[~blended]) > 0.2


def test_cutmix_boxes_have_the_given_area_and_uniform_centres():
    n, height, width = 4000, 64, 32
    area = jnp.linspace(0.05, 0.5, n)
    boxes = np.asarray(mixing.cutmix_boxes(*jax.random.split(jax.random.key(5)), area, height, width))
    rows, columns = boxes.any(axis=2), boxes.any(axis=1)
    for line, size in ((rows, height), (columns, width)):
        np.testing.assert_allclose(line.mean(axis=0), line.mean(axis=0)[::-1], atol=0.05)
        assert 0.1 < line[:, 0].mean() < line[:, size // 2].mean()
        whole = ~(line[:, 0] | line[:, -1])  # not clipped
        np.testing.assert_allclose(line[whole].mean(axis=1), np.sqrt(area)[whole], atol=2 / size)
    assert abs(np.corrcoef(rows[:, 0], columns[:, 0])[0, 1]) < 0.06  # rows and columns have independent centres


def test_an_image_without_a_label_has_no_target_and_gives_none_to_its_partner():
    labels = LABELS.copy()
    labels[[5, 6, 20]] = -1
    lost = labels == -1
    _, plain = mix(MixingSpec(label_smoothing=0.1), labels=labels)
    np.testing.assert_array_equal(np.sum(plain, axis=1) == 0, lost)
    np.testing.assert_allclose(np.sum(plain, axis=1)[~lost], 1.0, rtol=1e-6)
    lonely = previous(lost) & ~lost  # the partner has no label
    assert lonely.sum() == 2
    for spec in (MixingSpec(cutmix_prob=1.0), MixingSpec(mixup_prob=1.0)):
        _, targets = mix(spec, labels=labels)
        mass = np.sum(targets, axis=1)
        np.testing.assert_array_equal(targets[lost], 0.0)
        assert np.all(mass[lonely] >= 0.5) and np.all(mass[lonely] < 1)
        np.testing.assert_allclose(targets[lonely, labels[lonely]], mass[lonely])  # the rest is its own class
        np.testing.assert_allclose(mass[~lost & ~lonely], 1.0, rtol=1e-6)


def test_erased_pixels_are_standard_normal_noise_and_the_others_stay():
    images, targets = mix(MixingSpec(erasing_prob=0.25), images=np.full((BATCH, SIZE, SIZE, 3), 100.0, np.float32))
    erased = images != 100.0
    np.testing.assert_array_equal(erased.all(-1), erased.any(-1))
    require_boxes(erased.any(-1))
    share = erased.any((1, 2, 3)).mean()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / BATCH) ** 0.5
    noise = images[erased].reshape(-1, 3)
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.07)
    np.testing.assert_allclose(np.cov(noise.T), np.eye(3), atol=0.1)  # channels are independent
    np.testing.assert_array_equal(targets, ONE_HOT)


@pytest.mark.parametrize(("height", "width"), [(128, 128), (96, 160)])
def test_area_aspect_and_place_of_the_erased_rectangle(height, width):
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
    """A box of the partner brings the partner's noise along."""
    blank = np.zeros((BATCH, SIZE, SIZE, 1), np.float32)
    erased, _ = mix(MixingSpec(erasing_prob=0.5), images=blank)
    both, _ = mix(MixingSpec(erasing_prob=0.5, cutmix_prob=0.5), images=blank)
    from_self, from_partner = both == erased, both == previous(erased)
    assert np.all(from_self | from_partner) and np.any(~from_self)


def test_the_key_decides():
    first, again, other = (mix(ALL, seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
