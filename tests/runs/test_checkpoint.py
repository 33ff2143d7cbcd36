"""Writing and reading checkpoints."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from skipnet_jax import errors
from skipnet_jax.runs import array_mismatch, checkpoint
from skipnet_jax.training import sharding, steps

PENDING = {"window": [{"loss": 0.1}], "epoch": {"count": 5}}


def make_state(value, *, classes=4, extra=False):
    params = {"stem": {"kernel": jnp.full((3, 2), value)}, "classifier": {"bias": jnp.full(classes, value)}}
    if extra:
        params["gate"] = {"bias": jnp.full(5, value)}
    return steps.TrainState(
        step=jnp.asarray(int(value), jnp.int32),
        params=params,
        batch_stats={"stem": {"mean": jnp.full(2, value)}},
        opt_state=({}, {"trace": jax.tree.map(jnp.zeros_like, params)}),
    )


def target(state):
    return jax.tree.map(checkpoint.shape_of, state)


def assert_equal(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.fixture
def manager(tmp_path):
    with checkpoint.open_manager(tmp_path / "checkpoints") as manager:
        yield manager


def save_all(manager, accuracies):
    for step, accuracy in accuracies.items():
        checkpoint.save(manager, step, make_state(float(step)), {"accuracy": accuracy, "epoch": step // 10})
    manager.wait_until_finished()


def test_keeps_the_two_newest_and_the_best(manager, tmp_path):
    save_all(manager, {10: 0.5, 20: 0.9, 30: 0.8, 40: 0.7})
    assert sorted(manager.all_steps()) == [20, 30, 40]
    manager.close()
    with checkpoint.open_manager(tmp_path / "checkpoints") as again:  # a restarted run still knows its best
        save_all(again, {50: 0.6})
        assert sorted(again.all_steps()) == [20, 40, 50]
        assert [checkpoint.find(again, which) for which in ("best", "latest", "20")] == [20, 50, 20]
        assert checkpoint.results(again, 20) == {"accuracy": 0.9, "epoch": 2}


def test_an_unevaluated_checkpoint_is_the_best_only_if_nothing_is_evaluated(manager):
    checkpoint.save(manager, 5, make_state(5.0), None, PENDING)
    manager.wait_until_finished()
    assert checkpoint.find(manager, "best") == 5
    save_all(manager, {10: 0.5})
    for step in (15, 20, 25):
        checkpoint.save(manager, step, make_state(float(step)), None, PENDING)
    manager.wait_until_finished()
    assert sorted(manager.all_steps()) == [10, 20, 25]
    assert (checkpoint.find(manager, "best"), checkpoint.find(manager, "latest")) == (10, 25)
    assert (checkpoint.read_pending(manager, 25), checkpoint.read_pending(manager, 10)) == (PENDING, {})


def test_an_earlier_step_than_the_newest_is_refused(manager):
    save_all(manager, {10: 0.5})
    with pytest.raises(RuntimeError, match="step 5 was not saved; there is 10 already"):
        checkpoint.save(manager, 5, make_state(5.0), None, PENDING)


def test_results_that_come_later_do_not_touch_what_is_saved(manager, tmp_path):
    """Otherwise `kill -9` or a full disk at that moment would cost the step."""
    checkpoint.save(manager, 10, make_state(10.0), None, PENDING)
    manager.wait_until_finished()
    folder = tmp_path / "checkpoints" / "10"
    before = {file: file.stat() for file in folder.rglob("*") if file.is_file()}
    (folder / "metrics").mkdir()
    (folder / "metrics" / ".metrics.new").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        save_all(manager, {10: 0.5})
    (folder / "metrics" / ".metrics.new").unlink()
    with checkpoint.open_manager(tmp_path / "checkpoints", read_only=True) as reader:
        assert reader.latest_step() == 10 and checkpoint.results(reader, 10) is None
    save_all(manager, {10: 0.5})
    checkpoint.save(manager, 10, make_state(10.0), None, PENDING)  # as after a second signal: nothing is lost
    assert checkpoint.results(manager, 10) == {"accuracy": 0.5, "epoch": 1}
    after = {file: file.stat() for file in before}
    assert [(stat.st_ino, stat.st_mtime_ns) for stat in after.values()] == [
        (stat.st_ino, stat.st_mtime_ns) for stat in before.values()
    ]
    assert_equal(checkpoint.restore(manager, 10, target(make_state(0.0))), make_state(10.0))
    save_all(manager, {20: 0.1, 30: 0.2, 40: 0.3})
    assert sorted(manager.all_steps()) == [10, 30, 40]  # the late results made it the best


def test_restores_every_array_exactly_even_if_the_next_step_overwrites_the_state(manager):
    state = make_state(1.0)
    state = state.replace(params=jax.tree.map(lambda x: jnp.tile(x[None], (4000,) + (1,) * x.ndim), state.params))
    want = jax.tree.map(np.array, state)
    shapes = target(state)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    checkpoint.save(manager, 1, state, {"accuracy": 0.5})
    for _ in range(5):
        state = overwrite(state)
    manager.wait_until_finished()
    restored = checkpoint.restore(manager, 1, shapes)
    assert isinstance(restored, steps.TrainState)
    assert_equal(restored, want)


def test_restores_some_fields_to_the_given_sharding(manager):
    save_all(manager, {10: 0.5})
    everywhere = sharding.replicated(sharding.make_mesh())
    fields = {"params": make_state(0.0).params, "batch_stats": make_state(0.0).batch_stats}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), fields)
    restored = checkpoint.restore(manager, 10, shapes)
    assert restored.keys() == fields.keys()
    assert_equal(restored["params"], make_state(10.0).params)
    kernel = restored["params"]["stem"]["kernel"]
    assert kernel.sharding == NamedSharding(everywhere.mesh, PartitionSpec())
    assert len(kernel.devices()) == jax.device_count() > 1


def test_another_network_is_refused_array_by_array(manager):
    save_all(manager, {10: 0.5})
    with pytest.raises(errors.UserError, match="another network") as error:
        checkpoint.restore(manager, 10, target(make_state(0.0, classes=7, extra=True)))
    assert "missing in the checkpoint: opt_state/1/trace/gate/bias, params/gate/bias" in str(error.value)
    assert "params/classifier/bias (got float32[4], expected float32[7])" in str(error.value)
    less = {"params": flax.core.copy(make_state(0.0).params)}
    del less["params"]["stem"]
    with pytest.raises(errors.UserError, match="unknown to the network: params/stem/kernel"):
        checkpoint.restore(manager, 10, target(less))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), {"params": make_state(0.0).params})
    with pytest.raises(errors.UserError, match=r"got float32\[4\], expected bfloat16\[4\]"):
        checkpoint.restore(manager, 10, target(half))


def test_of_many_problems_an_error_names_the_first_few():
    problems = {"missing": [f"new/{i}" for i in range(7)], "different": [], "unknown": ["old"]}
    assert array_mismatch.describe(problems) == "missing: new/0, new/1, new/2, new/3, new/4, and 2 more; unknown: old"


def test_an_unknown_step_lists_the_known_ones(manager):
    with pytest.raises(errors.UserError, match="got no checkpoint"):
        checkpoint.find(manager, "latest")
    save_all(manager, {10: 0.5, 20: 0.4})
    for which in ("15", "newest", "-1"):
        with pytest.raises(errors.UserError, match=f"got '{which}', expected best, latest or one of .*: 10, 20"):
            checkpoint.find(manager, which)


def test_an_incomplete_checkpoint_is_an_error_that_names_its_folder(tmp_path):
    with checkpoint.open_manager(tmp_path / "checkpoints") as manager:
        save_all(manager, {10: 0.5})
    (tmp_path / "checkpoints" / "20" / "state").mkdir(parents=True)
    with checkpoint.open_manager(tmp_path / "checkpoints") as manager:
        with pytest.raises(errors.DamagedError, match="checkpoints/20: got no state/_METADATA, expected"):
            checkpoint.find(manager, "latest")
        with pytest.raises(errors.DamagedError, match="checkpoints/20: got no state/_METADATA, expected"):
            checkpoint.restore(manager, 20, target(make_state(0.0)))
        assert checkpoint.find(manager, "best") == 10


@pytest.mark.parametrize("left", ["all", "half"])
def test_a_checkpoint_that_the_run_removes_under_a_reader_s_hands_is_looked_for_again(
    manager, tmp_path, monkeypatch, left
):
    save_all(manager, {10: 0.5, 20: 0.9})
    folder, found = tmp_path / "checkpoints", []

    def find(reader, which):
        found.append(original(reader, which))
        if len(found) == 1:
            save_all(manager, {30: 0.95, 40: 0.6})  # removes steps 10 and 20
            (folder / "30" / "state" / "_METADATA").unlink()
            (folder / "30").rename(tmp_path / "gone")
            if left == "half":
                (folder / "20" / "state").mkdir(parents=True)
        return found[-1]

    original = checkpoint.find
    monkeypatch.setattr(checkpoint, "find", find)
    step, read = checkpoint.read(epath.Path(folder), "latest", target(make_state(0.0)))
    assert (step, found) == (40, [20, 40])
    assert_equal(read, make_state(40.0))


def test_a_damaged_checkpoint_that_nobody_removes_is_an_error(manager, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_REMOVAL_SECONDS", 0.0)
    save_all(manager, {10: 0.5})
    (tmp_path / "checkpoints" / "10" / "state" / "_METADATA").unlink()
    with pytest.raises(errors.DamagedError, match="no state/_METADATA"):
        checkpoint.read(epath.Path(tmp_path) / "checkpoints", "latest", target(make_state(0.0)))


def test_reading_leaves_an_unfinished_write_alone(manager, tmp_path):
    save_all(manager, {10: 0.5, 20: 0.9, 30: 0.8})
    unfinished = tmp_path / "checkpoints" / "40.orbax-checkpoint-tmp"
    unfinished.mkdir()
    with checkpoint.open_manager(tmp_path / "checkpoints", read_only=True) as reader:
        assert (checkpoint.find(reader, "best"), checkpoint.find(reader, "latest")) == (20, 30)
    assert unfinished.exists()
