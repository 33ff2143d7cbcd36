"""Resuming from the newest checkpoint that can be read."""

import os
import pathlib
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from skipnet_jax import errors
from skipnet_jax.runs import checkpoint, recovery, workdir

STATE = {"params": {"kernel": jnp.zeros((64, 64))}}


def pending_of(step):
    return {"window": [], "epoch": {"count": step}}


def state_of(step):
    return {"params": {"kernel": jnp.asarray(np.random.default_rng(step).random((64, 64)), jnp.float32)}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("recovery")
    with checkpoint.open_manager(path / workdir.CHECKPOINTS) as manager:
        for step in (10, 20):
            checkpoint.save(manager, step, state_of(step), {"accuracy": 0.5}, pending_of(step))
    return path


@pytest.fixture
def run(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return epath.Path(tmp_path)


def restore(run):
    recovery.put_aside_incomplete(run)
    with checkpoint.open_manager(run / workdir.CHECKPOINTS) as manager:
        state, step, pending = recovery.restore_newest(run, manager, STATE)
        if step:
            jax.tree.map(np.testing.assert_array_equal, state, state_of(step))
            checkpoint.save(manager, step + 10, state, None, pending)  # its place is free, and Orbax knows it
            manager.wait_until_finished()
            assert manager.latest_step() == step + 10
    return step, pending


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def files(folder):
    return [file for file in pathlib.Path(folder / "state").rglob("*") if file.is_file()]


def largest(folder):
    return max(files(folder), key=lambda file: file.stat().st_size)


DAMAGES = {
    "an empty folder": empty,
    "no state": lambda folder: shutil.rmtree(folder / "state"),
    "no metadata": lambda folder: (folder / "state" / "_METADATA").unlink(),
    "metadata cut off": lambda folder: (folder / "state" / "_METADATA").write_text("{"),
    "other parts": lambda folder: (folder / "_CHECKPOINT_METADATA").write_text('{"item_handlers": 3}'),
    "no parts": lambda folder: (folder / "_CHECKPOINT_METADATA").write_text("[]"),
    "no file of results": lambda folder: (folder / "metrics" / "metrics").unlink(),
    "no progress": lambda folder: (folder / "progress" / "metadata").unlink(),
    "no results": lambda folder: [shutil.rmtree(folder / name) for name in ("metrics", "progress")],
    "results cut off": lambda folder: (folder / "metrics" / "metrics").write_text('{"accuracy": 0.'),
    "progress empty": lambda folder: (folder / "progress" / "metadata").write_text(""),
    "an array cut off": lambda folder: largest(folder).write_bytes(largest(folder).read_bytes()[:100]),
    "an array missing": lambda folder: largest(folder).unlink(),
    "no arrays": lambda folder: [file.write_bytes(b"") for file in files(folder)],
}


def test_the_newest_is_taken(run):
    assert restore(run) == (20, pending_of(20))
    assert not (run / workdir.DAMAGED).exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_put_aside_with_a_warning_and_the_one_before_is_taken(run, damage, capsys):
    DAMAGES[damage](run / workdir.CHECKPOINTS / "20")
    assert restore(run) == (10, pending_of(10))
    assert (run / workdir.DAMAGED / "20").is_dir()
    warning = capsys.readouterr().err
    assert warning.startswith("WARNING: checkpoint ") and "resuming from step 10" in warning


@pytest.mark.parametrize("damage", ["an empty folder", "no state", "no file of results", "an array missing"])
def test_a_damaged_old_checkpoint_does_not_stop_the_newest(run, damage):
    """`kill -9` in the middle of its removal may leave one."""
    DAMAGES[damage](run / workdir.CHECKPOINTS / "10")
    assert restore(run) == (20, pending_of(20))
    assert not (run / workdir.DAMAGED / "20").exists()


@pytest.mark.parametrize("damage", ["an empty folder", "an array cut off"])
def test_if_no_checkpoint_can_be_read_the_run_does_not_start_over(run, damage):
    for step in ("10", "20"):
        DAMAGES[damage](run / workdir.CHECKPOINTS / step)
    with pytest.raises(errors.DamagedError, match="and no whole checkpoint beside it"):
        restore(run)
    assert (run / workdir.CHECKPOINTS / "10").is_dir()


@pytest.mark.parametrize("content", [None, b"", b'{"item_han', b"{}"])
def test_orbax_s_list_of_parts_is_not_needed(run, content):
    """Without it the checkpoint is whole all the same, and stays."""
    file = run / workdir.CHECKPOINTS / "20" / "_CHECKPOINT_METADATA"
    file.unlink() if content is None else file.write_bytes(content)
    assert restore(run) == (20, pending_of(20))


def test_a_second_damaged_checkpoint_of_a_step_gets_another_name(run):
    for _ in range(2):
        (run / workdir.CHECKPOINTS / "30").mkdir()
        recovery.put_aside_incomplete(run)
    assert {path.name for path in (run / workdir.DAMAGED).iterdir()} == {"30", "30-again"}


def test_the_latest_is_the_highest_step_whatever_the_clocks_say(tmp_path, monkeypatch):
    """The clock jumps back by a day before each save, and somebody copies the files so that the oldest look newest."""
    days = iter(range(1000))
    clock = time.time
    run = epath.Path(tmp_path)
    with checkpoint.open_manager(run / workdir.CHECKPOINTS) as manager:
        for step in (10, 20, 30, 40):
            day = next(days)
            monkeypatch.setattr(time, "time", lambda day=day: clock() - 86_400 * day)
            monkeypatch.setattr(time, "time_ns", lambda day=day: int(1e9 * (clock() - 86_400 * day)))
            checkpoint.save(manager, step, state_of(step), {"accuracy": 0.5}, pending_of(step))
        manager.wait_until_finished()
        assert sorted(manager.all_steps()) == [30, 40]
    for step, seconds in (("30", 4e9), ("40", 0)):
        folder = tmp_path / workdir.CHECKPOINTS / step
        for path in [folder, *folder.rglob("*")]:
            os.utime(path, (seconds, seconds))
    assert restore(run) == (40, pending_of(40))
    assert not (run / workdir.DAMAGED).exists()


def test_another_network_is_no_damage(run):
    with (
        checkpoint.open_manager(run / workdir.CHECKPOINTS) as manager,
        pytest.raises(errors.UserError, match="another net"),
    ):
        recovery.restore_newest(run, manager, {"params": {"kernel": jnp.zeros((3, 3))}})
    assert not (run / workdir.DAMAGED).exists()


def test_a_new_run_has_nothing_to_restore(tmp_path):
    assert restore(epath.Path(tmp_path)) == (0, {})
