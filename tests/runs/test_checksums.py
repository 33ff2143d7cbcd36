"""Flipped bits in every file of a checkpoint: each is refused, or changes no restored number."""

import gc
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from etils import epath

from skipnet_jax import errors
from skipnet_jax.runs import checkpoint, checksums, recovery, workdir

# Orbax's threads complain when a read breaks off: "Event loop is closed".
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PENDING = {"window": [{"loss": 0.25, "count": 8}], "epoch": {"loss": 1.5, "correct": 3, "count": 16}}
RESULTS = {"accuracy": 0.625, "loss": 1.75, "epoch": 2}


def state_of(step):
    """Arrays of several types and sizes: OCDBT keeps small ones in its index, and large ones in files of their own."""
    draw = np.random.default_rng(step)
    return {
        "step": jnp.asarray(step, jnp.int32),
        "params": {
            "large": jnp.asarray(draw.normal(size=(40, 50)), jnp.float32),
            "zeros": jnp.zeros(3000),
            "small": jnp.asarray(draw.normal(size=3), jnp.float32),
            "half": jnp.asarray(draw.normal(size=70), jnp.bfloat16),
        },
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("flips")
    with checkpoint.open_manager(path / workdir.CHECKPOINTS) as manager:
        for step in (10, 20):
            checkpoint.save(manager, step, state_of(step), RESULTS | {"epoch": step // 10}, PENDING)
    return path


@pytest.fixture
def quiet():
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    yield
    logging.set_verbosity(before)
    gc.collect()  # the rest of a broken read complains when it is freed: now, and not in another test


TARGET = jax.tree.map(checkpoint.shape_of, state_of(0))


def read_all(path, step):
    """Every number of a checkpoint."""
    with checkpoint.open_manager(path / workdir.CHECKPOINTS, read_only=True) as manager:
        found = checkpoint.find(manager, str(step))
        state = checkpoint.restore(manager, found, TARGET)
        return (
            jax.tree.map(np.asarray, state),
            checkpoint.results(manager, found),
            checkpoint.read_pending(manager, found),
        )


def positions(folder, count):
    """Spreads `count` positions over all files, so that each has some, at its ends too."""
    files = sorted(file for file in pathlib.Path(folder).rglob("*") if file.is_file() and file.stat().st_size)
    each = max(count // len(files), 1)
    for file in files:
        size = file.stat().st_size
        for at in sorted({round(part * (size - 1) / max(each - 1, 1)) for part in range(each)}):
            yield file, at


def flip_and_read(path, count, seed):
    """Returns how many flips were refused, and how many changed nothing."""
    want = jax.tree.map(np.asarray, state_of(20)), RESULTS, PENDING
    draw, refused, harmless = np.random.default_rng(seed), 0, 0
    for file, at in positions(path / workdir.CHECKPOINTS / "20", count):
        before = file.read_bytes()
        damaged = bytearray(before)
        damaged[at] ^= 1 << int(draw.integers(8))
        file.write_bytes(damaged)
        try:
            got = read_all(path, 20)
        except errors.DamagedError:
            refused += 1
        else:
            harmless += 1
            jax.tree.map(np.testing.assert_array_equal, got, want)
        finally:
            file.write_bytes(before)
    assert jax.tree.all(jax.tree.map(np.array_equal, read_all(path, 20), want))
    return refused, harmless


@pytest.mark.slow
def test_no_flipped_bit_becomes_a_number(whole, tmp_path, quiet):
    path = shutil.copytree(whole, tmp_path / "run")
    refused, harmless = flip_and_read(path, 600, seed=0)
    print(f"{refused + harmless} flips: {refused} refused, {harmless} without effect")
    assert refused + harmless >= 500 and refused > 200


def test_a_few_flipped_bits(whole, tmp_path, quiet):
    path = shutil.copytree(whole, tmp_path / "run")
    refused, harmless = flip_and_read(path, 20, seed=1)
    assert refused >= 5 and harmless


def test_a_flipped_bit_within_an_array_is_named_and_the_checkpoint_before_is_taken(whole, tmp_path, quiet, capsys):
    path = epath.Path(shutil.copytree(whole, tmp_path / "run"))
    sums = path / workdir.CHECKPOINTS / "20" / "checksums" / "metadata"
    record = checksums.unseal(json.loads(sums.read_text()))
    record["arrays"]["params/large"][1] ^= 1  # the same as the bit in the array, which is compressed
    sums.write_text(json.dumps(checksums.seal(record)))
    with checkpoint.open_manager(path / workdir.CHECKPOINTS) as manager:
        state, step, _ = recovery.restore_newest(path, manager, state_of(0))
    jax.tree.map(np.testing.assert_array_equal, state, state_of(10))
    assert step == 10 and (path / workdir.DAMAGED / "20").is_dir()
    warning = capsys.readouterr().err
    assert "damaged (arrays that are not what was saved (wrong checksums: params/large))" in warning
    assert "resuming from step 10" in warning


def test_damaged_results_are_never_the_best(whole, tmp_path):
    path = shutil.copytree(whole, tmp_path / "run")
    file = path / workdir.CHECKPOINTS / "20" / "metrics" / "metrics"
    file.write_text(file.read_text().replace("0.625", "0.925"))
    with checkpoint.open_manager(path / workdir.CHECKPOINTS, read_only=True) as manager:
        assert checkpoint.find(manager, "best") == 10
        assert checkpoint.results(manager, 20) is None
        with pytest.raises(errors.DamagedError, match="a damaged metrics/metrics: its checksum is wrong"):
            checkpoint.find(manager, "latest")
