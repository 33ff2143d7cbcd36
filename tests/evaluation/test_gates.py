import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.errors import UserError
from skipnet_jax.evaluation import gates
from skipnet_jax.models import create_model
from skipnet_jax.specs import Statistics
from skipnet_jax.training import sharding
from tests.exports.small_networks import add_small_networks, make_variables

STATISTICS = Statistics((0.3, 0.4, 0.5), (0.2, 0.3, 0.4))
CLASSES, BLOCKS, IMAGES = 4, 3, 10


@functools.cache
def network(junction="skip"):
    with pytest.MonkeyPatch.context() as patch:
        add_small_networks(patch)
        name = f"{junction}_tiny"
        return create_model(name, num_classes=CLASSES, bn_group_size=0), make_variables(name, CLASSES)


def batches(size=8):
    """Images with labels 0, 1 and 3, the last batch padded, as `scoring.batches` yields them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, 8, 8, 3), np.uint8)
    labels = rng.choice([0, 1, 3], IMAGES).astype(np.int32)
    for start in range(0, IMAGES, size):
        rows = slice(start, start + size)
        missing = size - len(labels[rows])
        yield {
            "image": np.pad(images[rows], [(0, missing), (0, 0), (0, 0), (0, 0)]),
            "label": np.pad(labels[rows], (0, missing)),
            "mask": np.arange(size) < size - missing,
        }


def measure(model, variables, batches):
    mesh = sharding.make_mesh()
    return gates.measure(
        model, sharding.replicate(variables, mesh), batches, num_classes=CLASSES, statistics=STATISTICS, mesh=mesh
    )


@functools.cache
def sown():
    """The weights [images, channels] of every link and every branch, and the labels."""
    model, variables = network()
    [batch] = batches(size=IMAGES)
    images = (batch["image"] / 255 - np.asarray(STATISTICS.mean)) / np.asarray(STATISTICS.std)
    apply = jax.jit(functools.partial(model.apply, train=False, mutable=["intermediates"]))
    _, collected = apply(variables, jnp.asarray(images, jnp.float32))
    junctions = [collected["intermediates"][f"blocks_{i}"]["junction"] for i in range(BLOCKS)]
    links = [np.asarray(state) for junction in junctions for state in junction["weights"][0].swapaxes(0, 1)]
    return links, [np.asarray(junction["branch"][0]) for junction in junctions], batch["label"]


def test_sections_and_who_sees_whom():
    [first, second, third] = gates.find_sections(create_model("skip_resnet20"))
    assert first.seen == ((0,), (1, 0), (2, 1))
    assert second.first == 3 and list(second.blocks) == [3, 4, 5]
    assert second.links == ((3, 3), (4, 4), (4, 3), (5, 5), (5, 4))
    assert third.seen == ((6,), (7, 6), (8, 7))
    [_, _, deep] = gates.find_sections(create_model("skip_resnet110"))
    assert deep.seen[-1] == (53, 52, 50, 46, 38)
    [dense, *_] = gates.find_sections(create_model("dense_resnet110"))
    assert dense.seen[-1] == (17, 16, 15, 14, 13)


def test_a_plain_network_has_no_gates():
    with pytest.raises(UserError, match=r"^model\.name: got ResNet-20 with plain additions"):
        gates.find_sections(create_model("resnet20"))


def test_means_over_all_images_and_classes_are_exact():
    measured = measure(*network(), batches())
    links, branches, labels = sown()
    np.testing.assert_array_equal(measured.counts, np.bincount(labels, minlength=CLASSES))
    assert measured.counts[2] == 0 and measured.by_class[2] is None
    np.testing.assert_allclose(measured.overall.states, [weights.mean() for weights in links], rtol=1e-5)
    np.testing.assert_allclose(measured.overall.branch, [weights.mean() for weights in branches], rtol=1e-5)
    for k in (0, 1, 3):
        own, chosen = measured.by_class[k], labels == k
        np.testing.assert_allclose(own.states, [weights[chosen].mean() for weights in links], rtol=1e-5)
        np.testing.assert_allclose(own.branch, [weights[chosen].mean() for weights in branches], rtol=1e-5)
    spread = [weights.std(axis=0).mean() for weights in links]
    np.testing.assert_allclose(measured.spread, spread, rtol=1e-3, atol=1e-4)
    assert measured.spread.max() > 1e-3


def test_a_single_image():
    model, variables = network()
    links, branches, _ = sown()
    single = gates.measure_image(model, variables, next(batches())["image"][1], statistics=STATISTICS)
    np.testing.assert_allclose(single.states, [weights[1].mean() for weights in links], rtol=1e-4)
    np.testing.assert_allclose(single.branch, [weights[1].mean() for weights in branches], rtol=1e-4)


@pytest.mark.parametrize(
    ("junction", "total", "branch", "spread"),
    [
        ("sum", 2, False, False),
        ("static", 1, False, False),
        pytest.param("mean", 1, False, False, marks=pytest.mark.slow),
        pytest.param("dynamic", 1, False, True, marks=pytest.mark.slow),
        pytest.param("dense", 1, True, True, marks=pytest.mark.slow),
    ],
)
def test_other_junctions(junction, total, branch, spread):
    """The weights of the second block, which sees two states, add up; only gates look at the image."""
    measured = measure(*network(junction), batches())
    assert [block for section in measured.sections for block, _ in section.links] == [0, 1, 1, 2]
    assert measured.overall.states[1:3].sum() == pytest.approx(total, rel=1e-5)
    assert (measured.overall.branch is not None) == branch
    assert (measured.spread.max() > 1e-3) == spread


def test_no_images():
    with pytest.raises(UserError, match="no image with a label"):
        measure(*network(), [])
