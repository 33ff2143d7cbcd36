"""Writes files as torch.save does, without torch: a pickle, instruction by instruction, and the numbers beside it."""

import io
import json
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

KINDS = {"float32": "Float", "float64": "Double", "int64": "Long", "float16": "Half", "bfloat16": "BFloat16"}


class Call(NamedTuple):
    """A call that the reader is asked to make; `state` is given to its result."""

    module: str
    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None


class _Writer:
    def __init__(self) -> None:
        self.code = bytearray(b"\x80\x02")
        self.storages: list[bytes] = []

    def write(self, value: Any) -> None:
        if value is None or isinstance(value, bool):
            self.code += {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value]
        elif isinstance(value, int):
            data = pickle.encode_long(value)
            self.code += pickle.LONG1 + bytes([len(data)]) + data
        elif isinstance(value, float):
            self.code += pickle.BINFLOAT + struct.pack(">d", value)
        elif isinstance(value, str):
            self.code += pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()
        elif isinstance(value, Call):
            self._call(value)
        elif isinstance(value, tuple | list):
            self.code += pickle.MARK
            for item in value:
                self.write(item)
            self.code += pickle.TUPLE if isinstance(value, tuple) else pickle.LIST
        elif isinstance(value, Mapping):
            self.code += pickle.EMPTY_DICT + pickle.MARK
            for key, item in value.items():
                self.write(key)
                self.write(item)
            self.code += pickle.SETITEMS
        else:
            self._tensor(np.asarray(value))

    def _call(self, call: Call) -> None:
        self.code += pickle.GLOBAL + f"{call.module}\n{call.name}\n".encode()
        self.write(call.arguments)
        self.code += pickle.REDUCE
        if call.state is not None:
            self.write(call.state)
            self.code += pickle.BUILD

    def _tensor(self, array: np.ndarray) -> None:
        strides = tuple(step // array.itemsize for step in np.ascontiguousarray(array).strides)
        self.code += pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n" + pickle.MARK
        self.code += pickle.MARK
        self.write("storage")
        self.code += pickle.GLOBAL + f"torch\n{KINDS[array.dtype.name]}Storage\n".encode()
        for item in (str(len(self.storages)), "cuda:0", array.size):
            self.write(item)
        self.code += pickle.TUPLE + pickle.BINPERSID
        self.storages.append(array.tobytes())
        for item in (0, array.shape, strides if array.ndim else (), False):
            self.write(item)
        self.write(Call("collections", "OrderedDict"))
        self.code += pickle.TUPLE + pickle.REDUCE


def torch_file(content: Any, *, name: str = "archive", compression: int = zipfile.ZIP_STORED) -> bytes:
    """What torch.save would write, from dicts, lists, tuples, numbers, texts, arrays and `Call`s."""
    writer = _Writer()
    writer.write(content)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr(f"{name}/data.pkl", bytes(writer.code) + pickle.STOP)
        for number, data in enumerate(writer.storages):
            archive.writestr(f"{name}/data/{number}", data)
        archive.writestr(f"{name}/version", b"3\n")
    return stream.getvalue()


def hub_folder(
    folder: pathlib.Path, state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any], shards: int = 1
) -> pathlib.Path:
    """A folder as the Hugging Face hub has it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        safetensors.numpy.save_file(dict(state_dict), folder / "model.safetensors")
        return folder
    files = {f"model-{k + 1:05}-of-{shards:05}.safetensors": list(state_dict)[k::shards] for k in range(shards)}
    for file, keys in files.items():
        safetensors.numpy.save_file({key: state_dict[key] for key in keys}, folder / file)
    index = {"metadata": {}, "weight_map": {key: file for file, keys in files.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
