import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.evaluation import gates
from skipnet_jax.models import abstract_variables, create_model
from skipnet_jax.specs import Statistics
from skipnet_jax.training import sharding

STATISTICS = Statistics((0.3, 0.4, 0.5), (0.2, 0.3, 0.4))
CLASSES = 4


@functools.cache
def network(name="skip_resnet20"):
    """With weights that differ widely between images and channels."""
    model = create_model(name, num_classes=CLASSES, bn_group_size=0)
    shapes = abstract_variables(model, 8)
    rng = np.random.default_rng(0)
    spread = {
        "kernel": lambda shape: rng.standard_normal(shape) * 3 / np.sqrt(np.prod(shape[:-1])),
        "logits": rng.standard_normal,
        "var": lambda shape: rng.uniform(0.5, 2.0, shape),
        "scale": lambda shape: rng.uniform(0.5, 2.0, shape),
    }
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.float32(spread.get(path[-1].key, rng.standard_normal)(leaf.shape)), shapes
    )
    return model, variables


def batches(count=10, size=8, seed=0):
    """Images with labels 0, 1 and 3, the last batch padded, as `scoring.batches` gives them."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    labels = rng.choice([0, 1, 3], count).astype(np.int32)
    for start in range(0, count, size):
        rows = slice(start, start + size)
        missing = size - len(labels[rows])
        yield {
            "image": np.pad(images[rows], [(0, missing), (0, 0), (0, 0), (0, 0)]),
            "label": np.pad(labels[rows], (0, missing)),
            "mask": np.arange(size) < size - missing,
        }


@functools.cache
def measured(name="skip_resnet20", size=8):
    return measure(*network(name), batches(size=size))


def measure(model, variables, batches):
    mesh = sharding.make_mesh()
    return gates.measure(
        model, sharding.replicate(variables, mesh), batches, num_classes=CLASSES, statistics=STATISTICS, mesh=mesh
    )


def by_hand(model, variables):
    """Weights [images, links, c of a block], unreduced, as lists; labels."""
    stacked = {name: np.concatenate([batch[name] for batch in batches()]) for name in ("image", "label", "mask")}
    images, labels = stacked["image"][stacked["mask"]], stacked["label"][stacked["mask"]]
    x = (images / 255 - np.asarray(STATISTICS.mean)) / np.asarray(STATISTICS.std)
    apply = jax.jit(functools.partial(model.apply, train=False, mutable=["intermediates"]))
    _, sown = apply(variables, jnp.asarray(x, jnp.float32))
    weights, branch = [], []
    for i in range(9):
        junction = sown["intermediates"][f"blocks_{i}"]["junction"]
        weights += [np.asarray(junction["weights"][0][:, k]) for k in range(junction["weights"][0].shape[1])]
        branch.append(np.asarray(junction["branch"][0]))
    return weights, branch, labels


def test_the_sections_of_the_wirings():
    [first, second, third] = gates.find_sections(create_model("skip_resnet20"))
    assert first.seen == ((0,), (1, 0), (2, 1))
    assert second.first == 3 and list(second.blocks) == [3, 4, 5]
    assert second.links == ((3, 3), (4, 4), (4, 3), (5, 5), (5, 4))
    assert third.seen == ((6,), (7, 6), (8, 7))
    [_, _, deep] = gates.find_sections(create_model("skip_resnet110"))
    assert deep.seen[-1] == (53, 52, 50, 46, 38)
    [dense, *_] = gates.find_sections(create_model("dense_resnet110"))
    assert dense.seen[-1] == (17, 16, 15, 14, 13)


def test_sections_begin_where_the_states_change_their_size():
    model, variables = network()
    apply = functools.partial(model.apply, train=False, mutable=["intermediates"])
    _, sown = jax.eval_shape(apply, variables, jnp.zeros((1, 8, 8, 3)))
    links = [block for section in gates.find_sections(model) for block, _ in section.links]
    for i in range(9):
        assert sown["intermediates"][f"blocks_{i}"]["junction"]["weights"][0].shape[1] == links.count(i)


def test_a_plain_network_has_no_gates():
    with pytest.raises(ValueError, match=r"skip_ or dense_ before the name in --config\.model\.name"):
        gates.find_sections(create_model("resnet20"))


def test_means_over_all_images_and_classes_are_exact():
    model, variables = network()
    of = measured()
    weights, branch, labels = by_hand(model, variables)
    np.testing.assert_array_equal(of.counts, np.bincount(labels, minlength=CLASSES))
    assert of.counts[2] == 0 and of.by_class[2] is None
    np.testing.assert_allclose(of.overall.states, [w.mean() for w in weights], rtol=1e-5)
    np.testing.assert_allclose(of.overall.branch, [g.mean() for g in branch], rtol=1e-5)
    for k in (0, 1, 3):
        chosen = labels == k
        np.testing.assert_allclose(of.by_class[k].states, [w[chosen].mean() for w in weights], rtol=1e-5)
        np.testing.assert_allclose(of.by_class[k].branch, [g[chosen].mean() for g in branch], rtol=1e-5)
    np.testing.assert_allclose(of.spread, [w.std(axis=0).mean() for w in weights], rtol=1e-3, atol=1e-4)


def test_the_batches_do_not_matter():
    one, other = measured(size=8), measured(size=16)
    np.testing.assert_allclose(one.overall.states, other.overall.states, rtol=1e-5)
    np.testing.assert_array_equal(one.counts, other.counts)


def test_a_single_image():
    model, variables = network()
    image = next(iter(batches()))["image"][1]
    weights, branch, _ = by_hand(model, variables)
    single = gates.measure_image(model, variables, image, statistics=STATISTICS)
    np.testing.assert_allclose(single.states, [w[1].mean() for w in weights], rtol=1e-4)
    np.testing.assert_allclose(single.branch, [g[1].mean() for g in branch], rtol=1e-4)


@pytest.mark.parametrize(("name", "second_block"), [("mean_resnet20", [0.5, 0.5]), ("sum_resnet20", [1, 1])])
def test_junctions_without_parameters(name, second_block):
    of = measured(name)
    np.testing.assert_allclose(of.overall.states[1:3], second_block, rtol=1e-6)
    assert of.overall.branch is None and not of.spread.any()


@pytest.mark.parametrize("name", ["dense_resnet20", "dynamic_resnet20", "static_resnet20"])
def test_weights_of_a_block_add_up_to_1(name):
    of = measured(name)
    blocks = [block for section in of.sections for block, _ in section.links]
    np.testing.assert_allclose(np.bincount(blocks, of.overall.states), 1, rtol=1e-5)
    assert (of.overall.branch is not None) == (name == "dense_resnet20")
    assert (of.spread.max() > 1e-3) == (name != "static_resnet20")


def test_no_images():
    with pytest.raises(ValueError, match="no image with a label"):
        measure(*network(), [])
