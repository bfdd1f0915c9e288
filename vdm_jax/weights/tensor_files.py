"""Safetensors files read and written one tensor at a time, so that a model passes through memory piece by piece.

A folder of a model in the layout of diffusers or transformers has `config.json` and its tensors in one file, or in
several with an index. Other formats (`.bin`, `.ckpt`) are pickles, which can run any code when read: they are refused.
"""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from vdm_jax.errors import UserError

CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
         "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL"}
DTYPES = {code: np.dtype(getattr(ml_dtypes, name, None) or name) for name, code in CODES.items()}
STEMS = ("diffusion_pytorch_model", "model")  # of diffusers, of transformers
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
MAX_JSON_BYTES = 2**28  # of a config, an index or the files of a tokenizer
SHARD_BYTES = 5 * 10**9  # of a file of a large model, as transformers writes it


class Tensor(NamedTuple):
    """A tensor that is not read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


def open_folder(folder: str | os.PathLike, variant: str | None = None) -> dict[str, Tensor]:
    """Name -> tensor of a model's folder; `variant` is that of the file names, such as `fp16`.

    Raises `UserError` for a folder without safetensors files, with an incomplete index, or with pickles only.
    """
    folder = pathlib.Path(folder)
    files = _files(folder, variant)
    tensors: dict[str, Tensor] = {}
    for path in files:
        for name, tensor in open_file(path).items():
            if name in tensors:
                raise UserError(f"{path}: tensor {name!r} is in another file of the folder too; permitted: once")
            tensors[name] = tensor
    return tensors


def open_file(path: str | os.PathLike) -> dict[str, Tensor]:
    """Name -> tensor of one safetensors file. Raises `UserError` for another or a damaged file."""
    header, data = _header(pathlib.Path(path))
    return {name: _tensor(pathlib.Path(path), name, entry, data) for name, entry in header.items()
            if name != "__metadata__"}


def file_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The text that a safetensors file says of itself. Raises `UserError` as `open_file` does."""
    return _header(pathlib.Path(path))[0].get("__metadata__") or {}


def _header(path: pathlib.Path) -> tuple[dict[str, Any], int]:
    """The header of a file, and the byte at which its numbers begin."""
    import safetensors

    if path.suffix in PICKLES:
        raise _pickle(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, framework="numpy"):  # checks the header and the length of the file
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return json.loads(file.read(length)), 8 + length
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is not a complete safetensors file: {error}") from error


def _tensor(path: pathlib.Path, name: str, entry: Mapping[str, Any], data: int) -> Tensor:
    """A tensor of a file whose numbers begin at byte `data`.

    It is read and not mapped into memory: pages of the file would stay there next to what they are turned into.
    """
    if entry["dtype"] not in DTYPES:
        raise UserError(f"{path}: tensor {name!r} has type {entry['dtype']}; permitted: {', '.join(DTYPES)}")
    shape, dtype, (start, end) = tuple(entry["shape"]), DTYPES[entry["dtype"]], entry["data_offsets"]

    def read() -> np.ndarray:
        numbers = np.fromfile(path, np.uint8, end - start, offset=data + start)
        if numbers.nbytes != end - start:
            raise UserError(f"{path} ends within tensor {name!r}; permitted: the whole file, unchanged while it is "
                            "read")
        return numbers.view(dtype).reshape(shape)

    return Tensor(shape, dtype, read)


def _files(folder: pathlib.Path, variant: str | None) -> list[pathlib.Path]:
    """The files that hold a model's tensors."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; permitted: a local folder with config.json and .safetensors files")
    dotted = f".{variant}" if variant else ""
    for stem in STEMS:
        for index in (f"{stem}.safetensors.index{dotted}.json", f"{stem}{dotted}.safetensors.index.json"):
            if (folder / index).is_file():
                return _indexed(folder / index)
        if (folder / f"{stem}{dotted}.safetensors").is_file():
            return [folder / f"{stem}{dotted}.safetensors"]
    there = sorted(path.name for path in folder.glob("*.safetensors"))
    if there:
        raise UserError(f"{folder} has {', '.join(there[:4])}; permitted with variant={variant!r}: "
                        f"{' or '.join(f'{stem}{dotted}.safetensors' for stem in STEMS)}, whole or with an index")
    for path in sorted(folder.iterdir()):
        if path.suffix in PICKLES:
            raise _pickle(path)
    raise UserError(f"{folder} has no .safetensors file; permitted: {' or '.join(f'{s}.safetensors' for s in STEMS)}")


def _indexed(index: pathlib.Path) -> list[pathlib.Path]:
    data = read_json(index)
    names = data.get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{index}: weight_map is not a table of file names")
    files = sorted(set(names.values()))
    for name in files:
        if pathlib.PurePath(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{index}: file {name!r}; permitted: .safetensors files of the same folder")
        if not (index.parent / name).is_file():
            raise UserError(f"{index} names {name}, which is not there; permitted: all {len(files)} files")
    return [index.parent / name for name in files]


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """An object from a JSON file. Raises `UserError` where it is missing or something else."""
    try:
        if path.is_file() and path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(f"{path} has more than {MAX_JSON_BYTES} bytes; permitted: at most so many")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} was not read: {error}; permitted: the files of a model's local folder, in the layout "
                        "of diffusers or transformers") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__}; permitted: an object")
    return data


def _pickle(path: pathlib.Path) -> UserError:
    return UserError(f"{path}: {path.suffix} files are pickles, which can run any code when read; permitted: "
                     ".safetensors. Most models are published in both formats; otherwise convert it with the library "
                     "of its authors, in a place you trust it (`save_pretrained(folder, safe_serialization=True)`)")


def write_file(path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors one by one; the file appears complete or not at all. Raises `UserError` where it cannot."""
    path, header, start = pathlib.Path(path), {"__metadata__": dict(metadata)}, 0
    for name, tensor in tensors.items():
        size = int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.itemsize
        header[name] = {"dtype": CODES[tensor.dtype.name], "shape": list(tensor.shape),
                        "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that numbers are aligned
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, tensor in tensors.items():
                array = tensor.read()
                if array.shape != tensor.shape or array.dtype != tensor.dtype:
                    raise UserError(f"tensor {name!r} is {array.dtype}{array.shape} and not what was announced")
                file.write(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise UserError(f"{path} was not written: {error}") from error
    finally:
        if temporary is not None:
            os.unlink(temporary)


def write_folder(
    folder: str | os.PathLike, stem: str, tensors: Mapping[str, Tensor], shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes the tensors of a model as one file, or as several with an index where they have more than `shard_bytes`.

    Raises `UserError` for a folder that has tensors already.
    """
    folder = pathlib.Path(folder)
    if there := sorted(folder.glob("*.safetensors*")):
        raise UserError(f"{folder} has {there[0].name} already; permitted: a new or empty folder")
    shards = _shards(tensors, shard_bytes)
    if len(shards) == 1:
        return write_file(folder / f"{stem}.safetensors", tensors, {"format": "pt"})
    weight_map, total = {}, 0
    for i, names in enumerate(shards):
        file = f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file, {name: tensors[name] for name in names}, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
        total += sum(_bytes(tensors[name]) for name in names)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _bytes(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.itemsize


def _shards(tensors: Mapping[str, Tensor], limit: int) -> list[list[str]]:
    """Names in their order, a new list whenever the limit would be passed."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + _bytes(tensor) > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _bytes(tensor)
    return shards


def lazy(arrays: Iterable[tuple[str, Any]]) -> dict[str, Tensor]:
    """Arrays in memory as tensors."""
    return {name: Tensor(tuple(array.shape), np.dtype(array.dtype), lambda array=array: np.asarray(array))
            for name, array in arrays}
