import argparse
import os
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from skipnet_jax.errors import UserError
from skipnet_jax.interop import checkpoint_files, torch_zip

STATE_DICT = {"stem.conv.weight": np.arange(6, dtype=np.float32).reshape(1, 2, 3), "stem.norm.bias": np.float32([7, 8])}


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def tensors(torch, prefix=""):
    return {prefix + key: torch.tensor(array) for key, array in STATE_DICT.items()}


def require_same(state_dict):
    assert state_dict.keys() == STATE_DICT.keys()
    for key, array in STATE_DICT.items():
        np.testing.assert_array_equal(state_dict[key], array, strict=True)


class Attack:
    """Its pickle asks to make a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("ending", ["safetensors", "pt", "pth", "ckpt"])
def test_a_state_dict_comes_back_from_a_file_of_each_ending(request, tmp_path, ending):
    if ending != "safetensors":
        request.getfixturevalue("torch")
    checkpoint_files.write(tmp_path / f"w.{ending}", STATE_DICT, "skip_resnet20")
    read = checkpoint_files.read(tmp_path / f"w.{ending}")
    require_same(read.state_dict)
    assert read.model == ("skip_resnet20" if ending == "ckpt" else None)
    with pytest.raises(UserError, match="got No such file or directory, expected a file that can be written"):
        checkpoint_files.write(tmp_path / "nowhere" / f"w.{ending}", STATE_DICT, "skip_resnet20")


@pytest.mark.parametrize("make_config", [dict, argparse.Namespace], ids=["dict", "Namespace"])
def test_a_lightning_checkpoint_names_its_network(torch, tmp_path, make_config):
    config = make_config(model="Dense-ResNet-110", lr=0.1)
    torch.save({"epoch": 3, "state_dict": tensors(torch, "model."), "config": config}, tmp_path / "w.ckpt")
    read = checkpoint_files.read(tmp_path / "w.ckpt")
    require_same(read.state_dict)
    assert read.model == "dense_resnet110"


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_is_widened(torch, tmp_path, dtype):
    halves = np.asarray([0.1, -3], dtype)
    safetensors.numpy.save_file({"a": halves}, tmp_path / "w.safetensors")
    tensor = torch.tensor(halves.astype(np.float32)).to(torch.float16 if dtype is np.float16 else torch.bfloat16)
    torch.save({"a": tensor}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        array = checkpoint_files.read(tmp_path / name).state_dict["a"]
        np.testing.assert_array_equal(array, halves.astype(np.float32), strict=True)


def test_files_that_are_missing_or_of_another_kind_are_refused(tmp_path):
    with pytest.raises(UserError, match="got no such file"):
        checkpoint_files.read(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"got the ending '.npz', expected one of .safetensors, .ckpt, .pt, .pth, "):
        checkpoint_files.read(tmp_path / "w.npz")
    with pytest.raises(UserError, match=r"got the ending '.h5'"):
        checkpoint_files.write(tmp_path / "w.h5", STATE_DICT, "resnet20")


@pytest.mark.parametrize(
    ("library", "ending", "kind"),
    [
        ("torch", "pth", "a file in torch's format of before 2020"),
        ("safetensors", "safetensors", "a .safetensors file"),
    ],
)
def test_a_missing_library_is_named(tmp_path, monkeypatch, library, ending, kind):
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / f"w.{ending}").write_bytes(
        b"\x80\x02" + torch_zip.LEGACY_MAGIC if library == "torch" else b"\2" + bytes(7) + b"{}"
    )
    expected = rf"got {kind}, expected the library {library}, which it needs. Run: pip install {library}"
    with pytest.raises(UserError, match=expected):
        checkpoint_files.read(tmp_path / f"w.{ending}")


def test_a_pickle_that_asks_to_run_code_is_refused_and_runs_nothing(torch, tmp_path):
    torch.save({"state_dict": tensors(torch), "callbacks": Attack(tmp_path / "made")}, tmp_path / "w.ckpt")
    refused = r"refused \(it asks for posix\.mkdir.*save its state dict"
    with pytest.raises(UserError, match=refused):
        checkpoint_files.read(tmp_path / "w.ckpt")
    assert not (tmp_path / "made").exists()
    torch.load(tmp_path / "w.ckpt", weights_only=False)  # the attack is a real one
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize("share", [0, 0.05, 0.5, 0.95])
def test_truncated_files_are_refused(torch, tmp_path, share):
    files = {name: tmp_path / name for name in ("zipped.pt", "legacy.pt", "w.safetensors")}
    for name in ("zipped.pt", "legacy.pt"):
        torch.save({"a": torch.ones(1000)}, files[name], _use_new_zipfile_serialization=name == "zipped.pt")
    checkpoint_files.write(files["w.safetensors"], STATE_DICT, "resnet20")
    for file in files.values():
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])
        # Cut inside the name of a class, a pickle seems to ask for an unknown one.
        with pytest.raises(
            UserError, match=r"damaged|an empty file|refused \(Unsupported global: GLOBAL torch\.FloatSto"
        ):
            checkpoint_files.read(file)


def test_a_file_without_a_state_dict_is_refused(torch, tmp_path):
    contents = {
        "got a list": [torch.ones(1)],
        "got a state_dict of type int": {"state_dict": 3},
        r"got 2 entries that are no tensors \('lr', 'epoch'\)": {"a": torch.ones(1), "lr": 0.1, "epoch": 2},
        "with and without 'model.'": {"state_dict": {"a": torch.ones(1), "model.a": torch.ones(1)}},
    }
    for message, content in contents.items():
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(UserError, match=message):
            checkpoint_files.read(tmp_path / "w.pt")
