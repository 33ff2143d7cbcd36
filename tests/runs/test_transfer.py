import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax import files
from skipnet_jax.runs import checkpoint, transfer, weights, workdir
from skipnet_jax.training import sharding, steps

MESH = sharding.make_mesh()
NAMES = tuple("0123456789")


def make_variables(value, *, classes=10, junction=True, width=4, norm=True):
    """The parts of a network whose arrays all hold one number."""
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
def source(tmp_path):
    """Makes the workdir of a run that has ended with a state."""

    def make(state, names=NAMES):
        path = tmp_path / "source"
        path.mkdir()
        files.write_json(workdir.locate(path) / workdir.DATA, {"class_names": list(names), "training_images": 9})
        with checkpoint.open_manager(path / workdir.CHECKPOINTS) as manager:
            checkpoint.save(manager, 5, state, {"accuracy": 0.5, "epoch": 1})
        return str(path)

    return make


def values(tree):
    """The number that each array is full of, by name."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    assert all(np.ptp(leaf) == 0 for _, leaf in flat)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): float(np.ravel(leaf)[0]) for path, leaf in flat}


def test_the_same_network_for_the_same_classes_is_taken_whole(source):
    path = source(make_state(2.0))
    state, taken = transfer.start_from(make_state(1.0), path, NAMES, MESH)
    assert set(values(state.variables).values()) == {2.0}
    assert len(taken.taken) == 6 and taken.fresh == taken.unused == () and not taken.averaged
    assert "6 arrays; made anew: nothing; not used: nothing" in str(taken)
    assert taken.source.endswith("checkpoints/5")


@pytest.mark.parametrize(
    ("stored_classes", "names"),
    [(7, "0123456"), (10, "abcdefghij"), (10, "1023456789")],
    ids=["another number", "other classes", "in another order"],
)
def test_for_other_classes_the_classifier_is_made_anew(source, stored_classes, names):
    path = source(make_state(2.0, classes=stored_classes), names)
    state, taken = transfer.start_from(make_state(1.0), path, NAMES, MESH)
    got = values(state.variables)
    assert {name for name, value in got.items() if value == 1.0} == {
        "params/classifier/kernel",
        "params/classifier/bias",
    }
    assert taken.fresh == taken.unused == ("params/classifier/bias", "params/classifier/kernel")
    assert "4 arrays; made anew: classifier; not used: classifier" in str(taken)


def test_a_plain_networks_weights_start_a_gated_one(source):
    path = source(make_state(2.0, junction=False))
    state, taken = transfer.start_from(make_state(1.0), path, NAMES, MESH)
    assert taken.fresh == ("params/blocks_0/junction/expand/bias",) and "made anew: junctions" in str(taken)
    assert values(state.params)["blocks_0/junction/expand/bias"] == 1.0
    assert values(state.params)["stem/conv/kernel"] == 2.0


def test_a_gated_networks_weights_start_a_plain_one(source):
    path = source(make_state(2.0))
    state, taken = transfer.start_from(make_state(1.0, junction=False), path, NAMES, MESH)
    assert set(values(state.variables).values()) == {2.0}
    assert taken.unused == ("params/blocks_0/junction/expand/bias",) and "not used: junctions" in str(taken)


def test_the_average_is_taken_where_there_is_one(source):
    path = source(make_state(2.0, average=3.0))
    state, taken = transfer.start_from(make_state(1.0), path, NAMES, MESH)
    assert taken.averaged and "(its moving average)" in str(taken)
    assert set(values(state.variables).values()) == {3.0}
    assert state.average == {}


def test_the_new_runs_average_starts_there_too_in_memory_of_its_own(source):
    path = source(make_state(2.0))
    state, _ = transfer.start_from(make_state(1.0, average=1.0), path, NAMES, MESH)
    assert set(values(state.average).values()) == {2.0}
    pointers = [
        leaf.addressable_shards[0].data.unsafe_buffer_pointer()
        for leaf in jax.tree.leaves((state.variables, state.average))
    ]
    assert len(set(pointers)) == len(pointers)


def test_another_network_is_refused_with_what_does_not_fit(source):
    path = source(make_state(2.0, width=8, norm=False))
    with pytest.raises(ValueError, match=r"init_from: got .*another one") as error:
        transfer.start_from(make_state(1.0), path, NAMES, MESH)
    message = str(error.value)
    assert "missing there: batch_stats/stem/norm/mean" in message
    assert "params/stem/conv/kernel (got [3, 3, 3, 8], expected [3, 3, 3, 4])" in message
    assert "classifier" not in message.split("\n  Only")[0].replace("params/classifier", "")
    assert "--config.init_from" in message


def test_converted_weights_are_taken_with_their_classifier(tmp_path):
    variables = make_variables(2.0)
    weights.save(tmp_path / "converted", weights.Origin("skip_resnet20", 10, "file"), variables)
    state, taken = transfer.start_from(make_state(1.0), str(tmp_path / "converted"), NAMES, MESH)
    assert set(values(state.variables).values()) == {2.0} and taken.fresh == ()


def test_arrays_get_the_type_and_place_of_the_new_run(source, x64):
    path = source(make_state(jnp.float32(2.0)))
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if leaf.ndim else leaf, make_state(1.0))
    state, _ = transfer.start_from(state, path, NAMES, MESH)
    leaves = jax.tree.leaves(state.variables)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float64)}
    assert all(len(leaf.addressable_shards) == MESH.size for leaf in leaves)


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_a_run_is_refused(tmp_path, exists):
    path = tmp_path if exists else tmp_path / "nothing"
    with pytest.raises(ValueError, match=r"init_from: got .*which has no checkpoints.*--config\.init_from"):
        transfer.start_from(make_state(1.0), str(path), NAMES, MESH)
