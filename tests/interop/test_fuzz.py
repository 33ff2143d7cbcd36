"""Damaged and hostile weight files: they are read, or refused with a UserError, and never run code."""

import io
import json
import os
import pickle
import struct
import warnings
import zipfile

import flax
import hypothesis
import jax
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import strategies as st

from skipnet_jax.interop import checkpoint_files, layouts, torch_weights
from tests.mutations import VALUES, changed_bytes, changed_json, own_error, settings

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float16)}
SAFETENSORS = safetensors.numpy.save(ARRAYS)
LENGTH = struct.unpack("<Q", SAFETENSORS[:8])[0]
TYPES = ("F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "C64", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "X")


def with_header(header: object) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + SAFETENSORS[8 + LENGTH :]


@st.composite
def other_types(draw: st.DrawFn) -> bytes:
    header = json.loads(SAFETENSORS[8 : 8 + LENGTH])
    array = header[draw(st.sampled_from(sorted(ARRAYS)))]
    array["dtype"] = draw(st.sampled_from(TYPES))
    array["shape"] = draw(st.sampled_from([array["shape"], [3], [24], [12], [48], [4], [0], [2**40, 0], [2**62]]))
    return with_header(header)


@settings(300)
@hypothesis.given(
    content=st.one_of(
        changed_bytes(SAFETENSORS),
        other_types(),
        changed_json(json.loads(SAFETENSORS[8 : 8 + LENGTH])).map(with_header),
    )
)
def test_damaged_safetensors(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "w.safetensors"
    path.write_bytes(content)
    own_error(lambda: checkpoint_files.read(path))


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_pickles(torch, tmp_path_factory, zipped):
    file = io.BytesIO()
    tensors = {name: torch.tensor(array) for name, array in ARRAYS.items()}
    torch.save({"state_dict": tensors}, file, _use_new_zipfile_serialization=zipped)

    @settings(150)
    @hypothesis.given(content=changed_bytes(file.getvalue()))
    def read_or_refuse(content):
        path = tmp_path_factory.getbasetemp() / "w.pt"
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols that do not exist
            own_error(lambda: checkpoint_files.read(path))

    read_or_refuse()


CALLS = {
    "system": (os.system, "touch {}"),
    "mkdir": (os.mkdir, "{}"),
    "exec": (exec, "open({!r}, 'w')"),
    "eval": (eval, "open({!r}, 'w')"),
}


class Hostile:
    """Its pickle asks for a call that leaves a trace."""

    def __init__(self, kind, trace):
        function, text = CALLS[kind]
        self.call = function, (text.format(str(trace)),)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("wrapped", ["zip", "legacy", "bare pickle", "as safetensors"])
def test_hostile_pickles_leave_no_trace(torch, tmp_path, kind, wrapped):
    hostile = {"state_dict": {"a": torch.ones(2)}, "config": Hostile(kind, tmp_path / "trace")}
    path = tmp_path / ("w.safetensors" if wrapped == "as safetensors" else "w.pt")
    if wrapped in ("zip", "legacy"):
        torch.save(hostile, path, _use_new_zipfile_serialization=wrapped == "zip")
    else:
        path.write_bytes(pickle.dumps(hostile["config"]))
    assert own_error(lambda: checkpoint_files.read(path))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("member", ["../../trace", "/tmp/trace"])
def test_paths_in_a_zipped_pickle_are_not_followed(torch, tmp_path, member):
    path = tmp_path / "w.pt"
    torch.save({"a": torch.ones(2)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member, b"x")
    before = sorted(tmp_path.parent.rglob("*"))
    own_error(lambda: checkpoint_files.read(path))
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_tensors_that_are_no_plain_arrays_are_refused_and_views_are_read(torch, tmp_path):
    ones = torch.ones(2)
    tensors = {
        "sparse": torch.eye(2).to_sparse(),
        "eight bits": ones.to(torch.float8_e4m3fn),
        "without data": torch.ones(2, device="meta"),
        "a terabyte from one stored number": torch.ones(1, dtype=torch.float16).expand(2**40),
        "list": [1.0, 2.0],
    }
    for name, tensor in tensors.items():
        torch.save({name: tensor}, tmp_path / "w.pt")
        assert own_error(lambda: checkpoint_files.read(tmp_path / "w.pt")), name
    views = {"parameter": torch.nn.Parameter(ones), "conjugate": (1j * ones).conj(), "negative": torch._neg_view(ones)}
    torch.save(views, tmp_path / "w.pt")
    arrays = checkpoint_files.read(tmp_path / "w.pt").state_dict
    np.testing.assert_array_equal(arrays["parameter"], [1, 1])
    np.testing.assert_array_equal(arrays["conjugate"], [-1j, -1j])
    np.testing.assert_array_equal(arrays["negative"], [-1, -1])


@pytest.fixture(scope="module")
def state_dict():
    return make_state_dict()


def make_state_dict() -> dict[str, np.ndarray]:
    shapes = layouts.variable_shapes("resnet20", 10)
    zeros = flax.traverse_util.unflatten_dict({path: np.zeros(leaf.shape, np.float32) for path, leaf in shapes.items()})
    return torch_weights.to_state_dict("resnet20", zeros)


ODD_ARRAYS = {
    "complex": lambda array: array.astype(complex),
    "text": lambda array: array.astype(str),
    "bytes": lambda array: array.astype("S4"),
    "objects": lambda array: array.astype(object),
    "dates": lambda array: array.astype("M8[s]"),
    "records": lambda array: np.zeros(array.shape, [("a", "f4")]),
    "empty": lambda array: array[:0],
    "transposed": lambda array: array.T,
    "lists": lambda array: array.tolist(),
    "ragged": lambda array: [[1], [2, 3]],
    "halves": lambda array: array.astype(np.float16),
    "integers": lambda array: array.astype(int),
}


@settings(20)
@hypothesis.given(data=st.data())
def test_damaged_state_dicts(state_dict, data):
    changed: dict[object, object] = dict(state_dict)
    key = data.draw(st.sampled_from(sorted(state_dict)))
    what = data.draw(st.sampled_from([*ODD_ARRAYS, "value", "missing", "new"]))
    if what == "missing":
        del changed[key]
    elif what == "new":
        changed[data.draw(st.one_of(st.text(), st.integers(), st.none(), st.tuples(st.text())))] = np.zeros(2)
    else:
        changed[key] = data.draw(VALUES) if what == "value" else ODD_ARRAYS[what](state_dict[key])
    variables = []
    own_error(lambda: variables.append(torch_weights.from_state_dict("resnet20", changed, num_classes=10)))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))


def test_arrays_without_real_numbers_are_named(state_dict):
    for kind in ("complex", "text", "bytes", "objects", "dates", "records", "ragged"):
        key = "stem.conv.weight"
        changed = state_dict | {key: ODD_ARRAYS[kind](state_dict[key])}
        error = own_error(lambda changed=changed: torch_weights.from_state_dict("resnet20", changed, num_classes=10))
        assert f"type: {key} is no array of real numbers" in str(error), kind


@settings(200)
@hypothesis.given(value=VALUES)
def test_damaged_classifiers(state_dict, value):
    own_error(lambda: torch_weights.fill("resnet20", state_dict | {"classifier.conv.weight": value, 3: value}))
