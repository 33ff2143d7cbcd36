import dataclasses
import json

import flax
import jax
import numpy as np
import pytest

from configs import digits
from skipnet_jax import config
from skipnet_jax.interop import torch_weights
from skipnet_jax.runs import checkpoint, weights, workdir


def make_variables(name, num_classes=4):
    rng = np.random.default_rng(0)
    shapes = torch_weights.variable_shapes(name, num_classes)
    return flax.traverse_util.unflatten_dict(
        {path: jax.numpy.asarray(rng.standard_normal(leaf.shape), "float32") for path, leaf in shapes.items()}
    )


@pytest.mark.parametrize(
    ("name", "which"),
    [
        ("skip_resnet20", "best"),
        ("resnet20", "latest"),
        ("resnet20", "0"),
        ("convnext_tiny", "best"),  # without running statistics
    ],
)
def test_weights_come_back(tmp_path, name, which):
    variables = make_variables(name)
    weights.save(tmp_path / "w", weights.Origin(name, 4, "some.pt"), variables)
    read = weights.load(tmp_path / "w", which)
    assert (read.spec.model.name, read.step, read.averaged) == (name, 0, False)
    jax.tree.map(np.testing.assert_array_equal, read.variables, {"batch_stats": {}} | variables)


def test_the_folder_tells_where_its_weights_are_from(tmp_path):
    origin = weights.Origin("resnet20", 4, "some.pt", fresh=("params/blocks_0/junction/logits",))
    weights.save(tmp_path / "w", origin, make_variables("resnet20"))
    told = json.loads((tmp_path / "w" / weights.MODEL).read_text())
    assert told == {**dataclasses.asdict(origin), "fresh": list(origin.fresh)}


def test_a_run_s_weights_are_read_too(tmp_path):
    spec = config.train_spec(digits.get_config())
    spec = dataclasses.replace(spec, model=dataclasses.replace(spec.model, name="resnet20", num_classes=4))
    workdir.open_for_training(tmp_path, spec)
    variables = make_variables("resnet20")
    with checkpoint.open_manager(tmp_path / workdir.CHECKPOINTS) as manager:
        checkpoint.save(manager, 7, {**variables, "opt_state": {"m": np.zeros(3)}}, {"accuracy": 0.5})
    read = weights.load(tmp_path)
    assert (read.spec, read.step, read.averaged) == (spec, 7, False)
    jax.tree.map(np.testing.assert_array_equal, read.variables, variables)


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"workdir: got .* which exists"):
        weights.save(tmp_path, weights.Origin("resnet20", 4, "some.pt"), {})
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_without_weights_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"--workdir: got .* which has no config\.json"):
        weights.load(tmp_path)


def test_weights_of_another_network_are_an_error(tmp_path):
    weights.save(tmp_path / "w", weights.Origin("static_resnet20", 4, "x"), make_variables("resnet20"))
    with pytest.raises(ValueError, match="missing in the checkpoint: params/blocks_0/junction/logits"):
        weights.load(tmp_path / "w")
