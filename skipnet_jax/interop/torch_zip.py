"""Reads torch's files without torch, and runs nothing that they ask for.

Since 2020 torch.save writes a zip: `NAME/data.pkl`, a pickle of everything but the numbers, and `NAME/data/KEY`, the
numbers of each storage as they lie in memory. The unpickler here knows tensors, containers, numbers, texts and what
usually lies beside weights; it turns them into plain values, and refuses all else. It reads only the numbers that are
asked for, and never more than the file can hold.

Considered instead: torch's own weights-only loader, which needs torch, 200 MB to several GB to install.

Source: torch/serialization.py and torch/_utils.py of torch 2.13, for the format.
"""

import collections
import contextlib
import dataclasses
import io
import math
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from skipnet_jax.errors import UserError

MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of torch.save before 2020, after two bytes
_EXPANSION = 8  # a compressed archive holds at most this many times its size; torch does not compress at all
_LEAST = 64 * 2**20  # bytes that any archive may hold

_FETCH = "Fetch it again."
_SAVE_ALONE = (
    "If you trust its author, load it where it was made and save its state dict alone: "
    "torch.save(model.state_dict(), 'weights.pt')."
)

_DTYPES = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": jnp.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
    "ComplexDouble": np.complex128,
    "ComplexFloat": np.complex64,
}


class Record:
    """A value that is not needed, such as a Namespace of arguments; its attributes are kept."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """The numbers of one or several tensors.

    Args:
      dtype: None = of no type that NumPy has.
      key: the name of its file in the archive.
      count: of the numbers.
    """

    dtype: np.dtype[Any] | None
    key: str
    count: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage, not read yet.

    Args:
      offset, shape, strides: in numbers.
      conjugated, negated: the view shows the conjugate, or the negative.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    conjugated: bool = False
    negated: bool = False


class Archive:
    """An open file of torch's.

    Args:
      content: what was saved, with a `Tensor` for each tensor.
    """

    def __init__(self, path: pathlib.Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        self._limit = max(_EXPANSION * path.stat().st_size, _LEAST)
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name.endswith("data.pkl") and name.count("/") <= 1]
        if len(pickles) != 1:
            some = ", ".join(sorted(members)[:3]) or "nothing"
            expected = "an archive of torch.save, with one data.pkl"
            raise UserError(f"{path}", f"a zip without a pickle of torch's ({some})", expected, "Unpack it first.")
        self._root = pickles[0].removesuffix("data.pkl")
        self._members = members
        claimed = sum(info.file_size for info in members.values())
        if claimed > self._limit:
            size = path.stat().st_size
            raise UserError(f"{path}", f"{size:,} bytes that claim to hold {claimed:,}", "a whole checkpoint", _FETCH)
        order = self._read("byteorder") if f"{self._root}byteorder" in members else b"little"
        self._big = order == b"big"
        self.content = _Unpickler(io.BytesIO(self._read("data.pkl"))).load()

    def array(self, tensor: Tensor) -> np.ndarray:
        """Reads the numbers of a tensor.

        Raises:
          ValueError: they are of no type that NumPy has, or are not all there.
        """
        storage = tensor.storage
        if storage.dtype is None:
            raise ValueError("its numbers are of no type that NumPy has")
        size = math.prod(map(int, tensor.shape))
        if size > storage.count:
            raise ValueError(f"{tensor.shape} is more than the file holds")
        last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
        numbers = (tensor.offset, *tensor.shape, *tensor.strides)
        if min(numbers) < 0 or (size and last >= storage.count):
            raise ValueError("it reaches beyond its storage")
        data = self._read(f"data/{storage.key}")
        if len(data) < storage.count * storage.dtype.itemsize:
            raise ValueError("the file has too few of its numbers")
        dtype = storage.dtype.newbyteorder(">") if self._big else storage.dtype
        flat = np.frombuffer(data, dtype, storage.count).astype(storage.dtype, copy=False)
        strides = tuple(step * storage.dtype.itemsize for step in tensor.strides)
        if size:
            array = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides, writeable=False)
        else:
            array = np.zeros(tensor.shape, storage.dtype)
        array = np.conj(array) if tensor.conjugated else array
        return -array if tensor.negated else array

    def _read(self, name: str) -> bytes:
        info = self._members.get(self._root + name)
        if info is None:
            raise ValueError(f"{self._root}{name} is missing from it")
        return self._archive.read(info)


@contextlib.contextmanager
def open_archive(path: pathlib.Path) -> Iterator[Archive]:
    """Opens a file of torch's.

    Raises:
      UserError: it is damaged, or its pickle could run code. Damage found later, while its arrays are read, is
        reported the same way.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield Archive(path, archive)
    except UserError:
        raise
    except _Refused as error:
        raise UserError(
            f"{path}",
            f"a pickle that was refused ({error})",
            "weights and plain values, since anything else could run code",
            _SAVE_ALONE,
        ) from error
    except Exception as error:  # zipfile and pickle raise much, depending on the damaged place
        damage = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path}", f"a damaged file ({damage})", "a whole checkpoint", _FETCH) from error


class _Refused(Exception):
    """A pickle asks for something that plain weights do not need."""


def _rebuild_tensor(
    storage: Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    requires_grad: bool = False,
    hooks: Any = None,
    metadata: Mapping[str, bool] | None = None,
) -> Tensor:
    if not isinstance(storage, Storage) or not all(type(n) is int for n in (offset, *shape, *strides)):
        raise _Refused("a tensor of something other than numbers")
    if len(shape) != len(strides):
        raise _Refused("a tensor with more axes than strides")
    views = metadata or {}
    return Tensor(storage, offset, tuple(shape), tuple(strides), bool(views.get("conj")), bool(views.get("neg")))


def _rebuild_parameter(data: Any, *others: Any) -> Any:
    return data


def _numpy_scalar(dtype: Any, data: Any = b"") -> Any:
    return np.frombuffer(data, dtype)[0].item() if isinstance(dtype, np.dtype) and isinstance(data, bytes) else None


def _numpy_dtype(text: str, *others: Any) -> np.dtype[Any] | None:
    return np.dtype(text) if text[:1] in ("f", "i", "u", "b", "c") and text[1:].isdecimal() else None


def _record(*arguments: Any) -> Record:
    return Record()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


def _join_path(*parts: str) -> str:
    return str(pathlib.PurePosixPath(*parts))


def _factory(kind: Any = None, items: Any = ()) -> dict[Any, Any]:
    return dict(items)


# What a pickle may name -> what it gets. All others are refused.
_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): _factory,
    ("collections", "Counter"): dict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch.nn.parameter", "Parameter"): _rebuild_parameter,
    ("torch", "Size"): tuple,
    ("torch", "device"): _record,
    ("argparse", "Namespace"): _record,
    ("numpy", "dtype"): _numpy_dtype,
    ("numpy", "ndarray"): _record,
    ("_codecs", "encode"): _encode,
    **{(module, "scalar"): _numpy_scalar for module in ("numpy._core.multiarray", "numpy.core.multiarray")},
    **{(module, "_reconstruct"): _record for module in ("numpy._core.multiarray", "numpy.core.multiarray")},
    **{("pathlib", name): _join_path for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath")},
    **{("pathlib._local", name): _join_path for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath")},
    **{(module, "set"): set for module in ("builtins", "__builtin__")},
}
_CALLABLE = frozenset(_KNOWN.values())
# Opcodes that name classes in other ways, or claim memory before they have read anything.
_UNUSED = (
    *(pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID),
    *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
)


# Python's own unpickler: the one in C trusts the sizes that a pickle claims. Typeshed gives it no attributes.
_InPython: Any = pickle._Unpickler


class _Unpickler(_InPython):
    dispatch: ClassVar = {code: method for code, method in _InPython.dispatch.items() if bytes([code]) not in _UNUSED}

    def load(self) -> Any:
        try:
            return super().load()
        except KeyError as error:
            code = error.args[0] if error.args else None
            if isinstance(code, int) and bytes([code]) in _UNUSED:
                raise _Refused(f"instruction {code}") from error
            raise

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return Storage(_dtype(name.removesuffix("Storage")), "", 0)
        if module == "torch" and (name.startswith(("float", "int", "uint", "complex")) or name in ("bfloat16", "bool")):
            return f"{module}.{name}"  # a dtype, such as one that an optimiser keeps
        raise _Refused(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Storage:
        kind, storage, key, _, count = pid
        if kind != "storage" or not isinstance(storage, Storage) or type(count) is not int or not isinstance(key, str):
            raise _Refused("a reference to something other than numbers")
        return Storage(storage.dtype, key, count)

    def load_reduce(self) -> None:
        arguments, function = self.stack[-1], self.stack[-2]
        if not isinstance(arguments, tuple) or not callable(function) or function not in _CALLABLE:
            raise _Refused("a call of something that is no known function")
        super().load_reduce()

    def load_newobj(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(arguments, tuple) or not callable(kind) or kind not in _CALLABLE:
            raise _Refused("an object of no known kind")
        self.append(kind(*arguments))

    def load_build(self) -> None:
        """Sets attributes of values that keep them, and drops others, such as the versions in a state dict."""
        state, value = self.stack.pop(), self.stack[-1]
        if isinstance(value, Record) and isinstance(state, dict):
            value.__dict__.update({str(key): item for key, item in state.items()})

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.BUILD[0]] = load_build


def _dtype(name: str) -> np.dtype[Any] | None:
    return np.dtype(_DTYPES[name]) if name in _DTYPES else None


def is_tensor(value: Any) -> bool:
    """Whether a value stands for a tensor."""
    return isinstance(value, Tensor)
