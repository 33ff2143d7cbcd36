import argparse
import os
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from skipnet_jax.interop import checkpoint_files

STATE_DICT = {"stem.conv.weight": np.arange(6, dtype=np.float32).reshape(1, 2, 3), "stem.norm.bias": np.float32([7, 8])}


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def tensors(torch, prefix=""):
    return {prefix + key: torch.tensor(array) for key, array in STATE_DICT.items()}


def assert_same(state_dict):
    assert state_dict.keys() == STATE_DICT.keys()
    for key, array in STATE_DICT.items():
        np.testing.assert_array_equal(state_dict[key], array, strict=True)


class Attack:
    """A pickle of it asks to make a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_safetensors_go_out_and_in(tmp_path):
    checkpoint_files.write(tmp_path / "w.safetensors", STATE_DICT, "resnet20")
    weights = checkpoint_files.read(tmp_path / "w.safetensors")
    assert_same(weights.state_dict)
    assert weights.model is None


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_safetensors_are_widened(tmp_path, dtype):
    safetensors.numpy.save_file({"a": np.asarray([0.1, -3], dtype)}, tmp_path / "w.safetensors")
    array = checkpoint_files.read(tmp_path / "w.safetensors").state_dict["a"]
    np.testing.assert_array_equal(array, np.asarray([0.1, -3], dtype).astype(np.float32), strict=True)


@pytest.mark.parametrize("size", [0, 5, 100])
def test_truncated_safetensors_are_an_error(tmp_path, size):
    file = tmp_path / "w.safetensors"
    checkpoint_files.write(file, STATE_DICT, "resnet20")
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"w\.safetensors: got a broken file"):
        checkpoint_files.read(file)


def test_files_that_are_not_there_or_of_another_kind_are_errors(tmp_path):
    with pytest.raises(ValueError, match="got no such file"):
        checkpoint_files.read(tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"got the ending '.npz', expected one of .safetensors, .ckpt, .pt, .pth"):
        checkpoint_files.read(tmp_path / "w.npz")
    with pytest.raises(ValueError, match=r"got the ending '.h5'"):
        checkpoint_files.write(tmp_path / "w.h5", STATE_DICT, "resnet20")
    with pytest.raises(ValueError, match="expected a file that can be written"):
        checkpoint_files.write(tmp_path / "nowhere" / "w.safetensors", STATE_DICT, "resnet20")


@pytest.mark.parametrize(("library", "ending"), [("torch", "ckpt"), ("safetensors", "safetensors")])
def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch, library, ending):
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / f"w.{ending}").write_bytes(b"")
    with pytest.raises(
        ValueError, match=rf"expected the library {library} to be installed for it\. pip install {library}"
    ):
        checkpoint_files.read(tmp_path / f"w.{ending}")


@pytest.mark.parametrize("ending", ["pt", "pth", "ckpt"])
def test_pickles_go_out_and_in(torch, tmp_path, ending):
    checkpoint_files.write(tmp_path / f"w.{ending}", STATE_DICT, "skip_resnet20")
    weights = checkpoint_files.read(tmp_path / f"w.{ending}")
    assert_same(weights.state_dict)
    assert weights.model == ("skip_resnet20" if ending == "ckpt" else None)
    with pytest.raises(ValueError, match="expected a file that can be written"):
        checkpoint_files.write(tmp_path / "nowhere" / f"w.{ending}", STATE_DICT, "skip_resnet20")


@pytest.mark.parametrize("make_config", [dict, argparse.Namespace], ids=["dict", "Namespace"])
def test_a_lightning_checkpoint_tells_its_network(torch, tmp_path, make_config):
    config = make_config(model="Dense-ResNet-110", lr=0.1)
    torch.save({"epoch": 3, "state_dict": tensors(torch, "model."), "config": config}, tmp_path / "w.ckpt")
    weights = checkpoint_files.read(tmp_path / "w.ckpt")
    assert_same(weights.state_dict)
    assert weights.model == "dense_resnet110"


def test_half_precision_tensors_are_widened(torch, tmp_path):
    torch.save({"a": torch.tensor([0.5, -3], dtype=torch.bfloat16)}, tmp_path / "w.pt")
    array = checkpoint_files.read(tmp_path / "w.pt").state_dict["a"]
    np.testing.assert_array_equal(array, np.float32([0.5, -3]), strict=True)


def test_a_pickle_that_wants_to_run_code_is_refused_and_runs_nothing(torch, tmp_path):
    torch.save({"state_dict": tensors(torch), "callbacks": Attack(tmp_path / "made")}, tmp_path / "w.ckpt")
    with pytest.raises(
        ValueError, match=r"refused \(Trying to load unsupported GLOBAL posix\.mkdir.*save its state dict"
    ):
        checkpoint_files.read(tmp_path / "w.ckpt")
    assert not (tmp_path / "made").exists()
    torch.load(tmp_path / "w.ckpt", weights_only=False)  # the attack is a real one
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0, 0.05, 0.5, 0.95])
def test_truncated_pickles_are_an_error(torch, tmp_path, zipped, share):
    file = tmp_path / "w.pt"
    torch.save({"a": torch.ones(1000)}, file, _use_new_zipfile_serialization=zipped)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    # Cut inside the name of a class, a file seems to ask for an unknown one.
    with pytest.raises(
        ValueError, match=r"w\.pt: (got a broken file|refused \(Unsupported global: GLOBAL torch\.FloatSto)"
    ):
        checkpoint_files.read(file)


def test_what_is_no_state_dict_is_an_error(torch, tmp_path):
    contents = {
        "got a list": [torch.ones(1)],
        "got a state_dict of type int": {"state_dict": 3},
        r"got 2 entries that are no tensors \('lr', 'epoch'\)": {"a": torch.ones(1), "lr": 0.1, "epoch": 2},
        "both with and without 'model.'": {"state_dict": {"a": torch.ones(1), "model.a": torch.ones(1)}},
    }
    for message, content in contents.items():
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(ValueError, match=message):
            checkpoint_files.read(tmp_path / "w.pt")
