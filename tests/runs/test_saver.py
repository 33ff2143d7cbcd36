"""When a run saves, and a full disk."""

import contextlib
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from skipnet_jax.runs import checkpoint, saver

PENDING = {"window": [], "epoch": {}}


def state_of(step):
    return {"params": {"kernel": jnp.asarray(np.random.default_rng(step).random(400_000), jnp.float32)}}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MB; a state takes 1.6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("may not mount")
    yield epath.Path(folder)
    subprocess.run(["umount", folder], check=True)


def fill(file):
    with contextlib.suppress(OSError), file.open("wb") as stream:
        for _ in range(12_000):
            stream.write(bytes(1000))
            stream.flush()


@pytest.mark.parametrize("known", [True, False], ids=["known before", "found by the write"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax's threads
def test_a_full_disk_costs_a_warning_and_is_tried_again(small_disk, capsys, monkeypatch, known):
    clock = [0.0]
    if not known:  # as under a quota
        monkeypatch.setattr(saver, "_free", lambda directory: 10**15)
    monkeypatch.setattr(saver, "now", lambda: clock[0])
    with saver.Saver(small_disk / "checkpoints", every_minutes=10.0) as runs:
        runs.save(1, state_of(1), PENDING, None)
        assert runs.finish()
        fill(small_disk / "junk")
        for step in (2, 3):
            runs.save(step, state_of(step), PENDING, None)
            assert not runs.finish()
            warning = capsys.readouterr().err
            assert f"WARNING: step {step} could not be saved" in warning and "newest checkpoint is 1" in warning
            assert ("it takes 1.6 MB, and 0.0 MB are free" in warning) == known
        clock[0] += 59
        assert not runs.due(fetched=False)
        clock[0] += 2
        assert runs.due(fetched=False)
        (small_disk / "junk").unlink()
        runs.save(4, state_of(4), PENDING, None)
        assert runs.finish()
        assert list(runs.manager.all_steps()) == [1, 4]
        np.testing.assert_array_equal(
            checkpoint.restore(runs.manager, 4, {"params": {"kernel": jnp.zeros(400_000)}})["params"]["kernel"],
            state_of(4)["params"]["kernel"],
        )
        clock[0] += 61
        assert not runs.due(fetched=False)
    assert sorted(path.name for path in (small_disk / "checkpoints").iterdir()) == ["1", "4"]


def test_an_error_of_the_writer_is_reported_without_waiting_for_the_next_save(tmp_path, capsys, monkeypatch):
    with saver.Saver(epath.Path(tmp_path / "checkpoints"), every_minutes=10.0) as runs:

        def full(*args):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save", full)
            runs.save(1, state_of(1), PENDING, None)
        assert "step 1 could not be saved ([Errno 28] No space left on device)" in capsys.readouterr().err
        runs.save(2, state_of(2), PENDING, None)
        while runs._writing is not None:
            runs.poll()
        assert runs.finish() and runs.manager.latest_step() == 2


def test_training_does_not_wait_for_a_write(tmp_path):
    state = {"params": {"kernel": jnp.asarray(np.random.default_rng(0).random(5_000_000), jnp.float32)}}
    with saver.Saver(epath.Path(tmp_path / "checkpoints"), every_minutes=10.0) as runs:
        runs.save(1, state, PENDING, None)
        assert runs.manager.is_saving_in_progress()
        runs.poll()
        assert runs.finish() and not runs.manager.is_saving_in_progress() and runs.manager.latest_step() == 1


def test_zero_minutes_means_never(tmp_path, monkeypatch):
    clock = iter([0.0, 1e9])
    monkeypatch.setattr(saver, "now", lambda: next(clock))
    with saver.Saver(epath.Path(tmp_path / "checkpoints"), every_minutes=0.0) as runs:
        assert not runs.due(fetched=True)
