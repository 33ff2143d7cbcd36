"""From disk to weights: runs and converted weights."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from skipnet_jax import config, errors, models
from skipnet_jax.interop.hub_config import Preparation
from skipnet_jax.runs import checkpoint, weights, workdir

SPEC = config.train_spec(digits.get_config())


class TinyNet(nn.Module):
    """Stands for a network; without norm it has no running statistics, like a ConvNeXt."""

    norm: bool = True

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(images) if self.norm else images
        return nn.Dense(10, name="classifier")(x.mean((1, 2)))


@pytest.fixture
def network(monkeypatch):
    """Makes `weights` believe that every network is this one, and returns variables for it."""

    def make(norm=True):
        monkeypatch.setattr(weights, "build_network", lambda _: TinyNet(norm))
        return random_variables(models.abstract_variables(TinyNet(norm), 32))

    return make


def random_variables(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), shapes)


@pytest.mark.parametrize("which", ["best", "latest", "0"])
@pytest.mark.parametrize("norm", [True, False])
def test_converted_weights_come_back(network, tmp_path, which, norm):
    variables = network(norm)
    weights.save(tmp_path / "w", weights.Origin("resnet20", 10, "some.pt"), variables)
    loaded = weights.load(tmp_path / "w", which)
    assert (loaded.spec.model.name, loaded.step, loaded.averaged) == ("resnet20", 0, False)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, {"batch_stats": {}} | variables)


def test_weights_of_a_network_of_the_project_come_back_and_fit_no_other(tmp_path):
    name = "static_resnet20"
    variables = random_variables(models.abstract_variables(models.create_model(name, num_classes=4), 32))
    weights.save(tmp_path / "w", weights.Origin(name, 4, "x"), variables)
    jax.tree.map(np.testing.assert_array_equal, weights.load(tmp_path / "w").variables, variables)
    file = tmp_path / "w" / workdir.MODEL
    file.write_text(file.read_text().replace(name, "resnet20"))
    with pytest.raises(errors.UserError, match="unknown to the network: params/blocks_0/junction/logits"):
        weights.load(tmp_path / "w")


def test_the_folder_says_where_its_weights_come_from(network, tmp_path):
    names = tuple("abcdefghij")
    known = Preparation(64, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 0.95, "bicubic")
    fresh = ("params/blocks_0/junction/logits",)
    origin = weights.Origin("resnet20", 10, "some.pt", fresh, known, names)
    weights.save(tmp_path / "w", origin, network())
    record = json.loads((tmp_path / "w" / workdir.MODEL).read_text())
    assert (record["name"], record["num_classes"], record["source"], record["fresh"]) == (
        "resnet20",
        10,
        "some.pt",
        list(fresh),
    )
    path = workdir.locate(tmp_path / "w")
    assert workdir.read_class_names(path) == names
    data = workdir.read_spec(path).data
    assert (data.image_size, data.mean, data.std, data.eval_crop, data.interpolation) == dataclasses.astuple(known)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_run_s_weights_and_their_average_are_read(network, tmp_path, ema_decay):
    spec = dataclasses.replace(SPEC, ema_decay=ema_decay)
    workdir.open_for_training(tmp_path, spec)
    variables = network()
    average = jax.tree.map(lambda leaf: leaf + 1, variables)
    state = {**variables, "opt_state": {"m": np.zeros(3)}, **({"average": average} if ema_decay else {})}
    with checkpoint.open_manager(tmp_path / workdir.CHECKPOINTS) as manager:
        checkpoint.save(manager, 7, state, {"accuracy": 0.5})
    loaded = weights.load(tmp_path)
    assert (loaded.spec, loaded.step, loaded.averaged) == (spec, 7, bool(ema_decay))
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, average if ema_decay else variables)
    loaded = weights.load(tmp_path, averaged=False)
    assert not loaded.averaged
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(errors.UserError, match=r"workdir: got .* which exists"):
        weights.save(tmp_path, weights.Origin("resnet20", 4, "some.pt"), {})
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
