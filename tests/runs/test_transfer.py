"""Starting a run from another network's weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from skipnet_jax import config, errors, files
from skipnet_jax.runs import transfer, weights, workdir
from skipnet_jax.training import sharding, steps

MESH = sharding.make_mesh()
NAMES = tuple("0123456789")
SPEC = config.train_spec(digits.get_config())


def make_variables(value, *, classes=10, junction=True, width=4, norm=True):
    """The parts of a network, with one number in all arrays."""
    block = {"operation": {"conv1": {"kernel": jnp.full((3, 3, width, width), value)}}}
    if junction:
        block["junction"] = {"expand": {"bias": jnp.full(8, value)}}
    params = {
        "stem": {"conv": {"kernel": jnp.full((3, 3, 3, width), value)}},
        "blocks_0": block,
        "classifier": {"kernel": jnp.full((width, classes), value), "bias": jnp.full(classes, value)},
    }
    statistics = {"stem": {"norm": {"mean": jnp.full(width, value)}}} if norm else {}
    return {"params": params, "batch_stats": statistics}


def make_state(value, *, average=None, **shape):
    state = steps.TrainState(step=jnp.zeros((), jnp.int32), opt_state={}, **make_variables(value, **shape))
    return state if average is None else state.replace(average=make_variables(average, **shape))


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Makes the workdir of a finished run. Only reading the checkpoint is left out: that is `weights.load`'s work."""

    def make(variables, names=NAMES, averaged=False):
        (tmp_path / workdir.CHECKPOINTS).mkdir()
        if names:
            files.write_json(tmp_path / workdir.DATA, {"class_names": list(names), "training_images": 9})

        def load(path, which, *, sharding):
            placed = jax.tree.map(lambda leaf: jax.device_put(leaf, sharding), variables)
            return weights.Weights(SPEC, 5, placed, averaged)

        monkeypatch.setattr(weights, "load", load)
        return str(tmp_path)

    return make


def values(tree):
    """The number in each array, by name."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    assert all(np.ptp(leaf) == 0 for _, leaf in flat)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): float(np.ravel(leaf)[0]) for path, leaf in flat}


@pytest.mark.parametrize("averaged", [False, True])
def test_the_same_network_for_the_same_classes_is_taken_whole(source, averaged):
    path = source(make_variables(2.0), averaged=averaged)
    state, line = transfer.init_from_workdir(make_state(1.0), path, NAMES, MESH)
    assert set(values(state.variables).values()) == {2.0} and state.average == {}
    average = " (its moving average)" if averaged else ""
    assert line == f"from {path}/checkpoints/5{average}: 6 arrays; made anew: nothing; not used: nothing"


@pytest.mark.parametrize(
    ("stored_classes", "names"),
    [(7, "0123456"), (10, "abcdefghij"), (10, "1023456789")],
    ids=["another number", "other classes", "in another order"],
)
def test_for_other_classes_the_classifier_stays_random(source, stored_classes, names):
    path = source(make_variables(2.0, classes=stored_classes), names)
    state, line = transfer.init_from_workdir(make_state(1.0), path, NAMES, MESH)
    random = {name for name, value in values(state.variables).items() if value == 1.0}
    assert random == {"params/classifier/bias", "params/classifier/kernel"}
    assert line.endswith("4 arrays; made anew: classifier; not used: classifier")


@pytest.mark.parametrize("names", [None, "abcdefghij"], ids=["unknown classes", "other classes"])
def test_a_classifier_for_other_classes_is_kept_only_on_request(source, names):
    path = source(make_variables(2.0), names=names)
    state, line = transfer.init_from_workdir(make_state(1.0), path, NAMES, MESH)
    assert values(state.params)["classifier/kernel"] == 1.0 and "made anew: classifier" in line
    assert ("the weights name no classes" in line) == (names is None)
    state, line = transfer.init_from_workdir(make_state(1.0), path, NAMES, MESH, head="keep")
    assert set(values(state.variables).values()) == {2.0} and "made anew: nothing" in line


def test_a_classifier_of_another_width_cannot_be_kept(source):
    path = source(make_variables(2.0, classes=7), names=None)
    with pytest.raises(errors.UserError, match="init_head: got 'keep'"):
        transfer.init_from_workdir(make_state(1.0), path, NAMES, MESH, head="keep")


def test_a_plain_network_may_start_a_gated_one(source):
    path = source(make_variables(2.0, junction=False))
    state, line = transfer.init_from_workdir(make_state(1.0), path, NAMES, MESH)
    assert line.endswith("5 arrays; made anew: junctions; not used: nothing")
    assert values(state.params)["blocks_0/junction/expand/bias"] == 1.0
    assert values(state.params)["stem/conv/kernel"] == 2.0


def test_a_gated_network_may_start_a_plain_one(source):
    path = source(make_variables(2.0))
    state, line = transfer.init_from_workdir(make_state(1.0, junction=False), path, NAMES, MESH)
    assert set(values(state.variables).values()) == {2.0}
    assert line.endswith("5 arrays; made anew: nothing; not used: junctions")


def test_the_new_run_s_average_starts_there_too_in_memory_of_its_own(source):
    state, _ = transfer.init_from_workdir(make_state(1.0, average=1.0), source(make_variables(2.0)), NAMES, MESH)
    assert set(values(state.average).values()) == {2.0}
    pointers = [
        leaf.addressable_shards[0].data.unsafe_buffer_pointer()
        for leaf in jax.tree.leaves((state.variables, state.average))
    ]
    assert len(set(pointers)) == len(pointers)


def test_another_network_is_refused_with_the_arrays_that_do_not_fit(source):
    path = source(make_variables(2.0, width=8, norm=False))
    with pytest.raises(errors.UserError, match=r"init_from: got .*another one") as error:
        transfer.init_from_workdir(make_state(1.0), path, NAMES, MESH)
    assert "missing there: batch_stats/stem/norm/mean" in error.value.got
    assert "params/stem/conv/kernel (got [3, 3, 3, 8], expected [3, 3, 3, 4])" in error.value.got
    assert "classifier" not in error.value.got


def test_arrays_get_the_type_and_place_of_the_new_run(source, x64):
    path = source(make_variables(jnp.float32(2.0)))
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if leaf.ndim else leaf, make_state(1.0))
    state, _ = transfer.init_from_workdir(state, path, NAMES, MESH)
    leaves = jax.tree.leaves(state.variables)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float64)}
    assert all(len(leaf.addressable_shards) == MESH.size for leaf in leaves)


def test_a_folder_without_a_run_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(errors.UserError, match=r"init_from: got .*which has no checkpoints"):
            transfer.init_from_workdir(make_state(1.0), str(path), NAMES, MESH)
