import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from skipnet_jax.runs import checkpoint, checkpoint_damage, recovery, workdir

STATE = {"params": {"kernel": jnp.zeros((64, 64))}}


def state_of(step):
    return {"params": {"kernel": jnp.asarray(np.random.default_rng(step).random((64, 64)), jnp.float32)}}


@pytest.fixture
def run(tmp_path):
    with checkpoint.open_manager(tmp_path / workdir.CHECKPOINTS) as manager:
        for step in (10, 20):
            checkpoint.save(manager, step, state_of(step), {"accuracy": 0.5}, {"epoch": {"count": step}})
    return epath.Path(tmp_path)


def restore(run):
    recovery.put_aside_incomplete(run)
    with checkpoint.open_manager(run / workdir.CHECKPOINTS) as manager:
        state, step, carried = recovery.restore_newest(run, manager, STATE)
        if step:
            jax.tree.map(np.testing.assert_array_equal, state, state_of(step))
            checkpoint.save(manager, step + 10, state, None, {})  # its place is free, and Orbax knows it
            manager.wait_until_finished()
            assert manager.latest_step() == step + 10
    return step, carried


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
    assert restore(run) == (20, {"epoch": {"count": 20}})
    assert not (run / workdir.DAMAGED).exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_put_aside_loudly_and_the_one_before_is_taken(run, damage, capsys):
    DAMAGES[damage](run / workdir.CHECKPOINTS / "20")
    assert restore(run) == (10, {"epoch": {"count": 10}})
    assert (run / workdir.DAMAGED / "20").is_dir()
    warning = capsys.readouterr().err
    assert warning.startswith("WARNING: checkpoint ") and "resuming from step 10" in warning


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_old_one_that_is_damaged_does_not_stop_the_newest(run, damage):
    """As `kill -9` in the middle of its removal leaves it."""
    DAMAGES[damage](run / workdir.CHECKPOINTS / "10")
    assert restore(run) == (20, {"epoch": {"count": 20}})
    assert not (run / workdir.DAMAGED / "20").exists()


@pytest.mark.parametrize("damage", ["an empty folder", "an array cut off"])
def test_if_none_can_be_read_nothing_is_started_anew(run, damage):
    for step in ("10", "20"):
        DAMAGES[damage](run / workdir.CHECKPOINTS / step)
    with pytest.raises(checkpoint_damage.DamagedError, match="none beside it that is whole"):
        restore(run)
    assert (run / workdir.CHECKPOINTS / "10").is_dir()


@pytest.mark.parametrize("content", [None, b"", b'{"item_han', b"{}"])
def test_what_orbax_notes_for_itself_is_not_needed(run, content):
    """Nothing is put aside for its sake: the rest is whole."""
    file = run / workdir.CHECKPOINTS / "20" / "_CHECKPOINT_METADATA"
    file.unlink() if content is None else file.write_bytes(content)
    assert restore(run) == (20, {"epoch": {"count": 20}})


def test_damaged_again(run):
    for _ in range(2):
        (run / workdir.CHECKPOINTS / "30").mkdir()
        recovery.put_aside_incomplete(run)
    assert {path.name for path in (run / workdir.DAMAGED).iterdir()} == {"30", "30-again"}


def test_another_network_is_no_damage(run):
    with checkpoint.open_manager(run / workdir.CHECKPOINTS) as manager, pytest.raises(ValueError, match="another net"):
        recovery.restore_newest(run, manager, {"params": {"kernel": jnp.zeros((3, 3))}})
    assert not (run / workdir.DAMAGED).exists()


def test_a_new_run_has_nothing_to_restore(tmp_path):
    assert restore(epath.Path(tmp_path)) == (0, {})
