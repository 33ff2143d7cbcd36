"""Checkpoints as people have them, written without torch."""

import sys
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.errors import UserError
from skipnet_jax.interop import checkpoint_files
from tests.interop.made_checkpoints import Call, hub_folder, torch_file

WEIGHTS = {"conv1.weight": np.arange(6, dtype=np.float32).reshape(1, 2, 3), "fc.bias": np.float32([7, 8])}
AVERAGED = {key: array + 1 for key, array in WEIGHTS.items()}
SCALAR = Call(
    "numpy._core.multiarray",
    "scalar",
    (Call("numpy", "dtype", ("f8", False, True), (3, "<")), Call("_codecs", "encode", ("\x00" * 8, "latin1"))),
)
ARGUMENTS = Call("argparse", "Namespace", (), {"model": "resnet18", "lr": 0.1})


def prefixed(prefix, state_dict=WEIGHTS):
    return {prefix + key: array for key, array in state_dict.items()}


def read(path, content, which=None):
    path.write_bytes(torch_file(content))
    return checkpoint_files.read(path, which)


def require_same(state_dict, expected=WEIGHTS):
    assert state_dict.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(state_dict[key], array, strict=True)


READ = {
    "plain": WEIGHTS,
    "ordered": Call(
        "collections", "OrderedDict", (list(map(list, WEIGHTS.items())),), {"_metadata": {"": {"version": 2}}}
    ),
    **{prefix: prefixed(prefix) for prefix in ("module.", "_orig_mod.", "model.", "net.", "backbone.")},
    "stacked prefixes": prefixed("model.module._orig_mod.net."),
    "compiled within": {"conv1._orig_mod.weight": WEIGHTS["conv1.weight"], "fc.bias": WEIGHTS["fc.bias"]},
    **{key: {key: prefixed("module."), "epoch": 3} for key in ("state_dict", "model", "model_state_dict", "net")},
    "the only average": {"model_ema": WEIGHTS, "epoch": 1},
    "nested": {"model_ema": {"module": prefixed("module."), "decay": 0.9}},
    "swa": {**prefixed("module."), "n_averaged": np.int64(3)},
    "timm": {
        "arch": "resnet18",
        "state_dict": WEIGHTS,
        "args": ARGUMENTS,
        "metric": SCALAR,
        "optimizer": {"state": {}},
    },
    "paths": {
        "state_dict": WEIGHTS,
        "out": Call("pathlib", "PosixPath", ("a", "b")),
        "kind": Call("torch", "device", ("cpu",)),
    },
}


@pytest.mark.parametrize("case", READ)
def test_weights_are_found_in_what_lies_around_them(tmp_path, case):
    require_same(read(tmp_path / "w.pth", READ[case]).state_dict)


@pytest.mark.parametrize("name", ["w.pth.tar", "w.bin", "W.PTH", "w.ckpt"])
def test_a_file_may_have_any_of_the_usual_endings(tmp_path, name):
    require_same(read(tmp_path / name, WEIGHTS).state_dict)


def test_reading_needs_no_torch(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "torch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert read(tmp_path / "w.pth", READ["timm"]).model == "resnet18"


@pytest.mark.parametrize("average", ["state_dict_ema", "model_ema"])
def test_averaged_weights_are_taken_unless_the_others_are_asked_for(tmp_path, average):
    both = {"state_dict": WEIGHTS, average: prefixed("module.", AVERAGED)}
    for which, expected in {None: AVERAGED, "ema": AVERAGED, "raw": WEIGHTS}.items():
        found = read(tmp_path / "w.pth", both, which)
        require_same(found.state_dict, expected)
        assert (f"under {average!r}" if which != "raw" else "not the averaged ones") in found.told[0]
    with pytest.raises(UserError, match=r"got 'ema', but .* has no averaged weights, expected 'raw'"):
        read(tmp_path / "w.pth", {"state_dict": WEIGHTS}, "ema")
    with pytest.raises(UserError, match=r"got 'raw', but .* has no weights beside the averaged ones, expected 'ema'"):
        read(tmp_path / "w.pth", {average: WEIGHTS}, "raw")


def test_averaged_weights_may_lie_among_the_others(tmp_path):
    mixed = {"state_dict": prefixed("net.") | prefixed("ema_model.module.", AVERAGED)}
    require_same(read(tmp_path / "w.pth", mixed).state_dict, AVERAGED)
    require_same(read(tmp_path / "w.pth", mixed, "raw").state_dict)


def test_what_is_not_of_the_network_is_left_out_and_named(tmp_path):
    mixed = {"state_dict": prefixed("model.") | {"criterion.weight": np.ones(3, np.float32)}}
    found = read(tmp_path / "w.ckpt", mixed)
    require_same(found.state_dict)
    assert found.told == ("1 entries outside the network are left out: criterion.weight",)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_folder_of_the_hub_is_read_with_what_its_config_says(tmp_path, shards):
    prepared = {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "crop_pct": 0.95,
        "input_size": [3, 192, 192],
        "interpolation": "bicubic",
    }
    config = {"architecture": "resnet18", "label_names": ["blue", "red"], "pretrained_cfg": prepared}
    folder = hub_folder(tmp_path / "hub", WEIGHTS, config, shards)
    found = checkpoint_files.read(folder)
    require_same(found.state_dict)
    assert (found.model, found.companion.class_names) == ("resnet18", ("blue", "red"))
    preparation = found.companion.preparation
    assert (preparation.image_size, preparation.crop, preparation.interpolation) == (192, 0.95, "bicubic")
    assert preparation.mean == preparation.std == (0.5, 0.5, 0.5)
    if shards == 1:
        assert checkpoint_files.read(folder / "model.safetensors").companion == found.companion
    else:
        (folder / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(UserError, match=r"1 of its 2 files missing \(model-00002-of-00002.safetensors\)"):
            checkpoint_files.read(folder)


def test_names_by_number_are_put_in_numeric_order(tmp_path):
    names = {str(number): f"class {number}" for number in (10, 0, 2, 1, *range(3, 10))}
    folder = hub_folder(tmp_path / "hub", WEIGHTS, {"id2label": names})
    assert checkpoint_files.read(folder).companion.class_names == tuple(f"class {k}" for k in range(11))
    for wrong in ({"0": "a", "2": "b"}, {"0": "a", "x": "b"}, {"0": "a", "1": "a"}):
        (folder / "config.json").write_text('{"id2label": ' + str(wrong).replace("'", '"') + "}")
        with pytest.raises(UserError, match=r"config.json: got (id2label|the class name 'a' twice)"):
            checkpoint_files.read(folder)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean": [0.5, 0.5]},
        {"std": [0, 0, 0]},
        {"crop_pct": 95},
        {"input_size": [1, 28, 28]},
        {"interpolation": "magic"},
        {"crop_mode": "squash"},  # as for timm's ConvNeXts at 384 pixels
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, wrong):
    settings = {"mean": [0.5] * 3, "std": [0.5] * 3} | wrong
    folder = hub_folder(tmp_path / "hub", WEIGHTS, {"pretrained_cfg": settings})
    with pytest.raises(UserError, match=f"config.json: got {next(iter(wrong))}="):
        checkpoint_files.read(folder)


def test_half_precision_and_shared_storages(tmp_path):
    halves = {"a": np.float16([0.1, -3]), "b": np.asarray([0.1, -3], jnp.bfloat16)}
    for key, array in read(tmp_path / "w.pt", halves).state_dict.items():
        np.testing.assert_array_equal(array, halves[key].astype(np.float32), strict=True)


BAD = {
    "empty": (b"", "an empty file"),
    "a web page": (b"\n<!DOCTYPE html><html>404</html>", "a web page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a pointer of Git LFS"),
    "noise": (b"\x17" * 1000, "a damaged file"),
    "truncated": (torch_file(WEIGHTS)[:300], "a damaged file"),
    "another pickle": (b"\x80\x04K\x01.", "a pickle that torch.save did not write"),
    "a module": (
        torch_file(Call("timm.models.resnet", "ResNet")),
        r"refused \(it asks for timm.models.resnet.ResNet\)",
    ),
    "omegaconf": (torch_file({"state_dict": WEIGHTS, "cfg": Call("omegaconf.dictconfig", "DictConfig")}), "refused"),
    "a program": (
        torch_file({"state_dict": WEIGHTS, "x": Call("builtins", "exec", ("1/0",))}),
        "asks for builtins.exec",
    ),
    "a call of a text": (torch_file({"a": Call("torch", "float32", ("x",))}), "no known function"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_end_with_one_line(tmp_path, case):
    content, message = BAD[case]
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=f"w.pth: got .*{message}") as error:
        checkpoint_files.read(tmp_path / "w.pth")
    assert "\n" not in str(error.value)


def test_a_zip_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match=r"got a zip without a pickle of torch's \(readme.txt\)"):
        checkpoint_files.read(tmp_path / "w.pth")


def test_sizes_that_a_header_only_claims_are_refused_without_the_memory(tmp_path):
    ten_gb = 10 * 2**30
    content = torch_file(WEIGHTS)
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 100 * 2**20)
    with pytest.raises(UserError, match="bytes that claim to hold 104,857,600"):
        checkpoint_files.read(tmp_path / "w.pth")
    place = content.rindex(b"PK\x01\x02")  # of the last entry in the directory; its sizes are at 20 and 24
    claimed = content[: place + 20] + (2**32 - 2).to_bytes(4, "little") * 2 + content[place + 28 :]
    (tmp_path / "w.pth").write_bytes(claimed)
    with pytest.raises(UserError, match="claim to hold"):
        checkpoint_files.read(tmp_path / "w.pth")
    wide = torch_file({"a": np.float32([1])}).replace(b"\x8a\x01\x01", b"\x8a\x01\x7f")
    (tmp_path / "w.pth").write_bytes(wide)
    with pytest.raises(UserError, match=r"damaged|no plain array"):
        checkpoint_files.read(tmp_path / "w.pth")
    header = b'{"a":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (ten_gb // 4, ten_gb)
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(UserError, match="damaged file"):
        checkpoint_files.read(tmp_path / "w.safetensors")


def test_a_checkpoint_without_weights_names_its_keys(tmp_path):
    with pytest.raises(UserError, match=r"got no weights \(its keys: epoch, generator\)"):
        read(tmp_path / "w.pth", {"epoch": 3, "generator": WEIGHTS})
