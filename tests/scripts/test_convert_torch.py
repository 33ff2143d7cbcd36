"""scripts/convert_torch.py, from file to workdir and back."""

import importlib.util
import json
import pathlib

import flax
import jax
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from skipnet_jax import config, files, specs
from skipnet_jax.interop import layouts, torch_weights
from skipnet_jax.runs import checkpoint, weights
from tests import tiny_runs

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "convert_torch.py"


@pytest.fixture(scope="module")
def convert():
    """The script's main."""
    spec = importlib.util.spec_from_file_location("convert_torch", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def state_dict():
    """Weights of a Static-ResNet-20 with 4 classes under the original's names."""
    rng = np.random.default_rng(0)
    shapes = layouts.variable_shapes("static_resnet20", 4)
    variables = {path: rng.uniform(0.5, 1, leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    return torch_weights.to_state_dict("static_resnet20", flax.traverse_util.unflatten_dict(variables))


@pytest.fixture
def file(tmp_path, state_dict):
    safetensors.numpy.save_file(state_dict, tmp_path / "in.safetensors")
    return str(tmp_path / "in.safetensors")


def test_a_file_becomes_a_workdir_and_a_file_again(convert, file, state_dict, tmp_path, capsys):
    workdir, back = str(tmp_path / "w"), str(tmp_path / "out.safetensors")
    assert convert([file, workdir, "--model=static_resnet20"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"static_resnet20 with 4 classes: {file} -> {workdir}"
    assert convert([back, workdir, "--to-torch"]) == 0
    returned = safetensors.numpy.load_file(back)
    assert returned.keys() == state_dict.keys()
    for key, array in state_dict.items():
        np.testing.assert_array_equal(returned[key], array, strict=True)


def test_weights_of_timm_fill_all_but_the_junctions(convert, tmp_path, capsys):
    shapes = layouts.variable_shapes("resnet18", 3)
    arrays = {path: np.zeros(leaf.shape, np.float32) for path, leaf in shapes.items()}
    theirs = torch_weights.to_state_dict("resnet18", flax.traverse_util.unflatten_dict(arrays), "timm")
    safetensors.numpy.save_file(theirs, tmp_path / "in.safetensors")
    arguments = [str(tmp_path / "in.safetensors"), str(tmp_path / "w"), "--model=static_resnet18", "--timm"]
    assert convert(arguments) == 0
    printed = "8 arrays are not in the file and have initial values (seed 0): blocks_0/junction, blocks_1/"
    assert printed in capsys.readouterr().out
    told = json.loads((tmp_path / "w" / "model.json").read_text())
    assert told["fresh"] == [f"params/blocks_{i}/junction/logits" for i in range(8)]
    variables = weights.load(tmp_path / "w").variables
    zero = [not np.any(leaf) for leaf in jax.tree.leaves(variables)]
    assert zero.count(False) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=no_such_net"], "error: --model: got 'no_such_net'"),
        (["--model=resnet20"], "not of this network: blocks.0.junction.logits"),
        (["--model=resnet18", "--timm"], "named as in the original: got"),
        (["--model=wide_resnet28_10", "--timm"], "state dict for wide_resnet28_10 with 4 classes"),
        (["--to-torch"], "has no config.json"),
        (["--to-torch", "--timm"], "--timm: got a value with --to-torch"),
        (["--to-torch", "--num_classes=5"], "--num_classes: got a value with --to-torch"),
        (["--naming=timm"], "--naming: got a value without --to-torch"),
        (["--checkpoint=latest"], "--checkpoint: got a value without --to-torch"),
    ],
)
def test_mistakes_end_with_one_line_and_leave_no_workdir(convert, file, tmp_path, capsys, arguments, message):
    assert convert([file, str(tmp_path / "w"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_the_moving_average_of_a_run_goes_out_unless_raw_weights_are_wanted(convert, state_dict, tmp_path, capsys):
    """As evaluation, prediction and exports do."""
    workdir, raw = tmp_path / "run", torch_weights.from_state_dict("static_resnet20", state_dict, num_classes=4)
    spec = tiny_runs.make_spec(model=specs.ModelSpec("static_resnet20", 4), ema_decay=0.9)
    workdir.mkdir()
    files.write_json(workdir / "config.json", config.to_dict(spec))
    state = {"step": np.int32(1), **raw, "average": jax.tree.map(lambda leaf: 2 * leaf, raw)}
    with checkpoint.open_manager(epath.Path(workdir / "checkpoints")) as manager:
        checkpoint.save(manager, 1, state, {"accuracy": 0.5})
    for flags, factor, told in (
        ([], 2, "moving average"),
        (["--weights=ema"], 2, ""),
        (["--weights=raw"], 1, "beside"),
    ):
        assert convert([str(tmp_path / "out.safetensors"), str(workdir), "--to-torch", *flags]) == 0
        assert told in capsys.readouterr().out
        written = safetensors.numpy.load_file(tmp_path / "out.safetensors")
        for key, array in state_dict.items():
            np.testing.assert_array_equal(written[key], factor * array)


def test_a_lightning_checkpoint_names_its_network_and_refuses_another(convert, state_dict, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    tensors = {f"model.{key}": torch.tensor(array) for key, array in state_dict.items()}
    file = str(tmp_path / "in.ckpt")
    torch.save({"state_dict": tensors, "config": {"model": "Static-ResNet-20"}}, file)
    assert convert([file, str(tmp_path / "other"), "--model=sum_resnet20"]) == 2
    assert "--model: got 'sum_resnet20', expected 'static_resnet20'" in capsys.readouterr().err
    assert convert([file, str(tmp_path / "w")]) == 0
    assert weights.load(tmp_path / "w").spec.model.name == "static_resnet20"
