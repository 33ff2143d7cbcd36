"""Checkpoints as people have them, made with the real torch, timm and torchvision, and read without them."""

import argparse
import collections
import json
import shutil
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from skipnet_jax.convert import convert_checkpoint
from skipnet_jax.errors import UserError
from skipnet_jax.exports import torch_files
from skipnet_jax.interop import checkpoint_files, recognition, torch_weights
from tests.interop.made_checkpoints import hub_folder
from tests.interop.test_timm_names import import_timm, import_torchvision

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PLAIN = (
    *("plain.pth", "ddp.pth", "ddp_in_state_dict.pth", "compiled.pth", "compiled_ddp.pth", "model_key.pth"),
    *("model_state_dict.pth", "net_key.pth", "timm_train_npmetric.pth", "pytorch_model.bin", "PLAIN.PTH"),
    *("ema_only.pth", "lightning_net.ckpt", "lightning_model.ckpt", "lightning_with_loss.ckpt", "cuda.pth"),
    *("model.safetensors", "hf", "sharded", "legacy.pth"),
)
CONFIG = {
    "architecture": "resnet18",
    "label_names": ["blue", "green", "red"],
    "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.95, "input_size": [3, 224, 224]},
}


@pytest.fixture(scope="module")
def weights():
    """timm's names -> torch's tensors of a network with 3 classes."""
    torch, timm = import_timm()
    torch.manual_seed(0)
    return timm.create_model("resnet18", num_classes=3).state_dict()


@pytest.fixture(scope="module")
def cases(weights, tmp_path_factory):
    torch, timm = import_timm()
    folder = tmp_path_factory.mktemp("cases")

    def put(prefix, state=weights):
        return collections.OrderedDict((prefix + key, value) for key, value in state.items())

    def cast(dtype):
        return {key: value.to(dtype) if value.is_floating_point() else value for key, value in weights.items()}

    averaged = {key: value + 1 if key == "fc.bias" else value for key, value in weights.items()}
    train = {
        "epoch": 1,
        "arch": "resnet18",
        "state_dict": weights,
        "args": argparse.Namespace(model="resnet18", lr=0.1),
    }
    loss = {"criterion.weight": torch.ones(3), "train_acc.tp": torch.ones(3)}
    contents = {
        "plain.pth": weights,
        "ddp.pth": put("module."),
        "ddp_in_state_dict.pth": {"state_dict": put("module."), "epoch": 3},
        "compiled.pth": put("_orig_mod."),
        "compiled_ddp.pth": put("_orig_mod.module."),
        "model_key.pth": {"model": weights, "epoch": 1, "optimizer": {"state": {}}},
        "model_state_dict.pth": {"model_state_dict": weights, "epoch": 1},
        "net_key.pth": {"net": weights, "acc": 91.0},
        "timm_train.pth": train | {"optimizer": {"state": {}}, "state_dict_ema": averaged, "metric": 93.1},
        "timm_train_npmetric.pth": train | {"metric": np.float64(93.1), "seen": np.int64(7)},
        "half.pth": cast(torch.float16),
        "bf16.pth": cast(torch.bfloat16),
        "ema_only.pth": {"model_ema": weights, "epoch": 1},
        "whole_module.pth": timm.create_model("resnet18", num_classes=3),
        "lightning_net.ckpt": {"state_dict": put("net."), "hyper_parameters": {"lr": 0.1}},
        "lightning_model.ckpt": {"state_dict": put("model."), "loops": {}},
        "lightning_with_loss.ckpt": {"state_dict": put("model.") | loss},
        "no_head.pth": timm.create_model("resnet18", num_classes=0).state_dict(),
        "in21k_head.pth": weights | {"fc.weight": torch.zeros(21843, 512), "fc.bias": torch.zeros(21843)},
        "one_channel.pth": timm.create_model("resnet18", num_classes=3, in_chans=1).state_dict(),
    }
    for name, content in contents.items():
        torch.save(content, folder / name)
    torch.save(weights, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    for copy, of in {
        "model_best.pth.tar": "timm_train.pth",
        "pytorch_model.bin": "plain.pth",
        "PLAIN.PTH": "plain.pth",
    }.items():
        shutil.copy(folder / of, folder / copy)
    with zipfile.ZipFile(folder / "plain.pth") as plain, zipfile.ZipFile(folder / "cuda.pth", "w") as cuda:
        for info in plain.infolist():  # as saved on a GPU: the location in the pickle
            cuda.writestr(info.filename, plain.read(info).replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
    arrays = {key: value.numpy() for key, value in weights.items()}
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    hub_folder(folder / "hf", arrays, CONFIG)
    hub_folder(folder / "sharded", arrays, {}, shards=2)
    return folder


@pytest.mark.parametrize("case", [*PLAIN, "half.pth", "bf16.pth", "timm_train.pth", "model_best.pth.tar"])
def test_weights_are_those_that_torch_loads(cases, weights, case):
    torch, _ = import_timm()
    found = checkpoint_files.read(cases / case, "raw" if "train.pth" in case or "best" in case else None)
    kind = {"half.pth": torch.float16, "bf16.pth": torch.bfloat16}.get(case, torch.float32)
    for key, tensor in weights.items():
        expected = tensor.to(kind).float() if tensor.is_floating_point() else tensor
        np.testing.assert_array_equal(found.state_dict[key], expected.numpy(), strict=True)
    assert found.state_dict.keys() == weights.keys()
    assert recognition.find_network(found.state_dict, found.model) == "resnet18"
    assert torch_weights.fill("resnet18", found.state_dict).num_classes == 3


@pytest.mark.parametrize("case", ["timm_train.pth", "model_best.pth.tar"])
def test_the_averaged_weights_come_first(cases, weights, case):
    bias = checkpoint_files.read(cases / case).state_dict["fc.bias"]
    np.testing.assert_array_equal(bias, weights["fc.bias"].numpy() + 1)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no_head.pth", "without a classifier"),
        ("one_channel.pth", "weights for images of 1 channel"),
        ("whole_module.pth", "a pickle that was refused"),
    ],
)
def test_the_others_are_refused_in_one_line(cases, tmp_path, case, message):
    with pytest.raises(UserError, match=message) as error:
        convert_checkpoint(str(tmp_path / "w"), source=str(cases / case))
    assert "\n" not in str(error.value) and not (tmp_path / "w").exists()


def test_a_folder_of_the_hub_and_a_huge_head_become_workdirs(cases, tmp_path, capsys):
    convert_checkpoint(str(tmp_path / "hf"), source=str(cases / "hf"))
    assert json.loads((tmp_path / "hf" / "data.json").read_text())["class_names"] == ["blue", "green", "red"]
    convert_checkpoint(str(tmp_path / "huge"), source=str(cases / "in21k_head.pth"))
    assert "21,843 classes" in capsys.readouterr().out


@pytest.mark.parametrize(("theirs", "name"), [("swin_t", "swin_tiny"), ("convnext_tiny", "convnext_tiny")])
def test_torchvision_s_files_are_recognised(tmp_path, theirs, name):
    torch, torchvision = import_torchvision()
    torch.save(torchvision.models.get_model(theirs, num_classes=3).state_dict(), tmp_path / "w.pth")
    found = checkpoint_files.read(tmp_path / "w.pth")
    assert recognition.find_network(found.state_dict) == name
    assert torch_weights.fill(name, found.state_dict).naming == "torchvision"


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_timm_loads_what_goes_out(cases, weights, tmp_path, ending):
    torch, timm = import_timm()
    convert_checkpoint(str(tmp_path / "w"), source=str(cases / "plain.pth"))
    torch_files.write(tmp_path / "w", str(tmp_path / f"out.{ending}"), naming="timm")
    peer = timm.create_model("resnet18", num_classes=3, checkpoint_path=str(tmp_path / f"out.{ending}"))
    for key, tensor in peer.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(tensor, weights[key]), key
