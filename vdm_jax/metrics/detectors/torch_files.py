"""Arrays from PyTorch's files without PyTorch: pickles, of which only what describes tensors is understood. The weights
of the two Inception networks, of RIFE and of GMFlow are published in no other form.

A file is a zip archive (`data.pkl` next to a file per storage) or, as PyTorch wrote before version 1.6, a row of
pickles followed by the storages.
The pickles name functions to call. The few names that describe tensors stand for functions of ours, which only note
what was asked for; all others are refused.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from vdm_jax.errors import UserError

MAX_UNPACKED = 2**26  # bytes that a zip archive may unpack to beyond its own size
_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of the older files
_DTYPES = {"FloatStorage": np.dtype("f4"), "DoubleStorage": np.dtype("f8"), "HalfStorage": np.dtype("f2"),
           "BFloat16Storage": np.dtype(ml_dtypes.bfloat16), "LongStorage": np.dtype("i8"),
           "IntStorage": np.dtype("i4"), "ShortStorage": np.dtype("i2"), "CharStorage": np.dtype("i1"),
           "ByteStorage": np.dtype("u1"), "BoolStorage": np.dtype("?")}


class _Storage(NamedTuple):
    """Numbers that are elsewhere in the file."""

    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    """A view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # elements


def read_torch(data: bytes, where: str) -> dict[str, np.ndarray]:
    """The tensors of a file by names joined with '.'; everything else in it is left out.

    Raises `UserError` for a file that is damaged, or asks for anything but tensors.
    """
    try:
        tree, storages = (_read_zip if data[:2] == b"PK" else _read_older)(data)
        found: dict[str, np.ndarray] = {}
        _flatten(tree, "", found, storages)
    except UserError as error:
        raise UserError(f"{where} {error}", error.code) from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(f"{where} cannot be read: {error}; permitted: a whole file of tensors that PyTorch wrote"
                        ) from error
    return found


def _read_zip(data: bytes) -> tuple[Any, Callable[[_Storage], bytes]]:
    archive = zipfile.ZipFile(io.BytesIO(data))
    total = sum(member.file_size for member in archive.infolist())
    if total > MAX_UNPACKED + len(data):  # PyTorch stores tensors as they are
        raise UserError(f"unpacks to {total} bytes; permitted: at most {MAX_UNPACKED} more than the file has")
    (place,) = (name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"])
    root = place.removesuffix("data.pkl")
    return _Reader(io.BytesIO(archive.read(place))).load(), lambda storage: archive.read(f"{root}data/{storage.key}")


def _read_older(data: bytes) -> tuple[Any, Callable[[_Storage], bytes]]:
    file = io.BytesIO(data)
    if _Reader(file).load() != _MAGIC:
        raise UserError("is no file of PyTorch; permitted: a whole file of tensors that PyTorch wrote")
    for _ in ("version", "about the machine"):
        _Reader(file).load()
    reader = _Reader(file)
    tree = reader.load()
    places = {}
    for key in _Reader(file).load():
        size = int.from_bytes(file.read(8), "little")
        places[key] = file.read(size * reader.storages[key].dtype.itemsize)
    return tree, lambda storage: places[storage.key]


def _flatten(tree: Any, name: str, found: dict[str, np.ndarray], storages: Callable[[_Storage], bytes]) -> None:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            _flatten(value, f"{name}.{key}" if name else str(key), found, storages)
    elif isinstance(tree, _Tensor):
        found[name] = _array(tree, storages)


def _array(tensor: _Tensor, storages: Callable[[_Storage], bytes]) -> np.ndarray:
    storage, offset, shape, strides = tensor
    numbers = np.frombuffer(storages(storage), storage.dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if (min((offset, *shape, *strides)) < 0 or math.prod(shape) > len(numbers)
            or (0 not in shape and last >= len(numbers))):
        raise UserError(f"has a tensor of shape {list(shape)} beyond its {len(numbers)} numbers; permitted: whole "
                        "files")
    steps = [stride * storage.dtype.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps, writeable=False).copy()


def _tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *rest: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise UserError("has a tensor without a storage; permitted: tensors")
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _first(value: Any, *rest: Any) -> Any:
    """Stands for a parameter around its tensor."""
    return value


_NAMES = {("collections", "OrderedDict"): OrderedDict,
          ("torch._utils", "_rebuild_tensor_v2"): _tensor, ("torch._utils", "_rebuild_tensor"): _tensor,
          ("torch._utils", "_rebuild_parameter"): _first}


class _Reader(pickle.Unpickler):
    """Reads pickles of tensors."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file, encoding="latin1")
        self.file, self.storages = file, {}

    def load(self) -> Any:
        """The next pickle. One that numbers more objects than it could hold is refused, since the table of numbered
        objects is as long as the largest number."""
        start, end = self.file.tell(), len(self.file.getbuffer())
        for operation, argument, _ in pickletools.genops(self.file):
            if operation.name in ("LONG_BINPUT", "PUT") and int(argument) > end:
                raise UserError(f"has a pickle that numbers an object {argument}; permitted: up to {end}")
        self.file.seek(start)
        return super().load()

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return name
        try:
            return _NAMES[module, name]
        except KeyError:
            raise UserError(f"asks for {module}.{name}; permitted: tensors") from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, name, key, _, size, *_ = pid
        if kind != "storage" or name not in _DTYPES:
            raise UserError(f"refers to a {kind} of {name}; permitted: storages of numbers")
        return self.storages.setdefault(key, _Storage(str(key), _DTYPES[name], int(size)))
