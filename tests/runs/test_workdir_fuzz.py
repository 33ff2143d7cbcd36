"""Damaged files of a workdir: each is read, or refused with a UserError."""

import gc
import json
import pathlib
from collections.abc import Callable

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from etils import epath
from hypothesis import strategies as st

from configs import recipes
from skipnet_jax import config, models
from skipnet_jax.runs import checkpoint, weights, workdir
from tests.mutations import changed_bytes, json_files, own_error, settings

# Orbax's threads complain when a read breaks off: "Event loop is closed".
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CONFIG = config.to_dict(config.train_spec(recipes.digits()))
DATA = {"class_names": ["a", "b", "c"], "training_images": 100}
RESULT = {"data": "digits", "image_size": 16, "eval_classes": "all", "split": "test", "step": 11, "accuracy": 0.5}
METRICS = [{"step": 1, "epoch": 0.5, "train/loss": 1.0}, {"step": 2, "epoch": 1.0, "test/accuracy": 0.5}]
MODEL = {"name": "resnet20", "num_classes": 10, "source": "w.pt", "fresh": []}
STATE = {
    "step": jnp.zeros((), jnp.int32),
    "params": {"stem": {"kernel": jnp.arange(6.0).reshape(2, 3)}, "classifier": {"bias": jnp.ones(3)}},
    "batch_stats": {},
}
PROGRESS = {"window": [], "epoch": {"loss": 0.5, "correct": 1, "count": 2}}


def put(folder: pathlib.Path, name: str, content: bytes) -> epath.Path:
    (folder / name).write_bytes(content)
    return epath.Path(folder)


@settings(60)
@hypothesis.given(content=json_files(CONFIG))
def test_config(tmp_path_factory, content):
    path = put(tmp_path_factory.getbasetemp(), workdir.CONFIG, content)
    own_error(lambda: workdir.read_spec(path))


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), 2**63])
def test_config_with_a_number_beyond_all_bounds(tmp_path, value):
    content = json.loads(json.dumps(CONFIG))
    content["optim"]["lr"] = value
    path = put(tmp_path, workdir.CONFIG, json.dumps(content).encode())
    assert (own_error(lambda: workdir.read_spec(path)) is None) == (value == 2**63)


@settings(40)
@hypothesis.given(content=json_files(DATA))
def test_classes(tmp_path_factory, content):
    path = put(tmp_path_factory.getbasetemp(), workdir.DATA, content)
    refused = own_error(lambda: workdir.read_class_names(path))
    if not refused:
        assert all(isinstance(name, str) for name in workdir.read_class_names(path))
    own_error(lambda: workdir.require_same_data(path, class_names=["a", "b", "c"], training_images=100, started=True))


@settings(30)
@hypothesis.given(content=json_files([RESULT, RESULT | {"step": 3}]))
def test_results(tmp_path_factory, content):
    path = put(tmp_path_factory.getbasetemp(), workdir.RESULTS, content)
    own_error(lambda: workdir.add_results(path, RESULT | {"flip": False}))


@settings(30)
@hypothesis.given(contents=st.lists(st.one_of(json_files(METRICS[0]), json_files(METRICS[1])), max_size=3))
def test_metrics(tmp_path_factory, contents):
    path = put(tmp_path_factory.getbasetemp(), workdir.METRICS, b"".join(line + b"\n" for line in contents))
    if not own_error(lambda: workdir.read_metrics(path)):
        assert all(line["step"] >= 0 or line["step"] < 0 for line in workdir.read_metrics(path))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> epath.Path:
    """A folder of two checkpoints."""
    path = epath.Path(tmp_path_factory.mktemp("run") / "checkpoints")
    with checkpoint.open_manager(path) as manager:
        for step in (3, 5):
            checkpoint.save(manager, step, STATE, {"accuracy": step / 10, "epoch": step}, PROGRESS)
    return path


@pytest.fixture
def quiet():
    """Keeps Orbax's complaints about each damaged file off the screen."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    yield
    logging.set_verbosity(before)
    gc.collect()  # the rest of a broken read complains when it is freed: now, and not in another test


@pytest.mark.slow
@settings(60)
@hypothesis.given(data=st.data())
def test_checkpoints(run, quiet, data):
    """One file of the newest checkpoint is damaged: its numbers are right, or it is refused."""
    newest = pathlib.Path(run / "5")
    file = data.draw(st.sampled_from(sorted(path for path in newest.rglob("*") if path.is_file())))
    whole = file.read_bytes()
    try:
        spoilt = json_files(json.loads(whole))
    except ValueError:
        spoilt = changed_bytes(whole)
    file.write_bytes(data.draw(spoilt))
    try:
        own_error(lambda: read_checkpoint(run))
    finally:
        file.write_bytes(whole)


def read_checkpoint(run: epath.Path) -> None:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {name: STATE[name] for name in ("params", "batch_stats")}
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), wanted)
    with checkpoint.open_manager(run, read_only=True) as manager:
        for which in ("best", "latest"):
            step = checkpoint.find(manager, which)
            checkpoint.read_pending(manager, step)
            checkpoint.stored_shapes(manager, step, device)
            restored = checkpoint.restore(manager, step, target)
            jax.tree.map(np.testing.assert_array_equal, restored, wanted)


def test_the_checkpoint_of_this_test_can_be_read(run, quiet):
    assert own_error(lambda: read_checkpoint(run)) is None


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> epath.Path:
    path = epath.Path(tmp_path_factory.mktemp("converted") / "w")
    shapes = models.abstract_variables(models.create_model("resnet20", num_classes=10), 32)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    weights.save(path, weights.Origin("resnet20", 10, "w.pt"), variables)
    return path


@settings(20)
@hypothesis.given(content=json_files(MODEL))
def test_converted_weights(converted, quiet, content):
    (converted / workdir.MODEL).write_bytes(content)
    own_error(lambda: weights.load(converted))


NAMES: list[Callable[[], object]] = [
    lambda: workdir.read_spec("a" * 5000),
    lambda: workdir.read_spec("~no-such-user/run"),
    lambda: workdir.read_spec("a\0b"),
    lambda: workdir.read_spec("a/" * 5000),
    lambda: workdir.read_spec("\n"),
]


@pytest.mark.parametrize("read", NAMES)
def test_impossible_names_of_workdirs(read):
    assert own_error(read)
