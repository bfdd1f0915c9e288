"""Parameter trees as safetensors files.

A safetensors file is a JSON header (name, dtype, shape, offset) followed by raw bytes: reading one cannot run
code, unlike a pickle. A nested dict of arrays becomes flat names, `{'down': {'kernel': x}}` -> `down/kernel`.
"""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.errors import UserError
from vdm_jax.weights.signatures import mismatch, signatures

Params = Mapping[str, Any]  # nested dict whose leaves are arrays

_PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl", ".pickle")
_STORED_DTYPES = ("float16", "bfloat16", "float32")


def save_params(path: str | os.PathLike, params: Params, metadata: Mapping[str, str] | None = None, *,
                dtype: str | None = None) -> None:
    """Writes `params` to `path` in one piece: the file appears complete or not at all.

    Args:
      path: ends in `.safetensors`; replaced if it exists.
      params: nested dict of arrays, all addressable by this process.
      metadata: text stored in the header.
      dtype: `float16`, `bfloat16` or `float32` for all floating-point arrays; None keeps each as it is.

    Raises:
      UserError: a wrong suffix, dtype, tree or metadata; a value too large for float16; no space left.
    """
    path = _checked_path(path)
    if dtype is not None and dtype not in _STORED_DTYPES:
        raise UserError(f"dtype={dtype!r} is not supported; permitted: None, {', '.join(_STORED_DTYPES)}")
    metadata = dict(metadata or {})
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise UserError(f"metadata[{key!r}]={value!r} is not text; permitted: str keys and values")
    arrays = {name: _stored(name, leaf, dtype) for name, leaf in flatten(params).items()}
    _write(path, arrays, metadata)


def load_params(path: str | os.PathLike, like: Params | None = None) -> tuple[dict, dict[str, str]]:
    """Reads what `save_params` wrote.

    Args:
      path: a `.safetensors` file.
      like: nested dict of `jax.ShapeDtypeStruct` (or arrays). Names and shapes must match exactly;
        floating-point arrays are converted to the dtype asked for, so a file stored in float16 restores into
        float32 parameters; any other difference of dtype is an error. Leaves with a sharding become
        `jax.Array`s placed by it. Without `like` the leaves are numpy arrays as stored.

    Returns:
      The nested dict, and the text metadata of the header.

    Raises:
      UserError: a pickle, a file that is missing, cut off or not safetensors, or does not match `like`.
    """
    path = _checked_path(path)
    arrays, metadata = _read(path)
    if like is not None:
        wanted = flatten(like)
        arrays = {name: _converted(array, wanted.get(name)) for name, array in arrays.items()}
        if listed := mismatch(signatures(arrays), signatures(wanted)):
            raise UserError(f"{path} does not match the parameters asked for: {listed}")
        arrays = {name: _placed(arrays[name], leaf) for name, leaf in wanted.items()}
    return _unflatten(path, arrays), metadata


def flatten(tree: Params) -> dict[str, Any]:
    """Nested dict -> `{'a/b/c': leaf}`; raises UserError for other containers and for names with a slash."""
    flat: dict[str, Any] = {}

    def visit(node, prefix):
        for key, value in node.items():
            if not isinstance(key, str) or not key or "/" in key:
                raise UserError(f"parameter name {key!r} under {prefix or '/'!r} is not permitted; "
                                "permitted: non-empty text without '/'")
            if isinstance(value, Mapping):
                visit(value, f"{prefix}{key}/")
            elif hasattr(value, "shape") and hasattr(value, "dtype"):
                flat[prefix + key] = value
            else:
                kind = type(value).__name__
                raise UserError(f"parameter {prefix + key!r} is a {kind}; permitted: dict, array")

    visit(tree, "")
    return flat


def _unflatten(path: pathlib.Path, flat: Mapping[str, Any]) -> dict:
    tree: dict = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"{path}: name {name!r} runs through the array {parent!r}; not a nested dict")
        if last in node:
            raise UserError(f"{path}: name {name!r} is both an array and a dict")
        node[last] = value
    return tree


def _checked_path(path: str | os.PathLike) -> pathlib.Path:
    path = pathlib.Path(path)
    if path.suffix in _PICKLES:
        raise UserError(f"{path}: {path.suffix} files are pickles, which can run any code when read; "
                        "convert it to .safetensors with the tool of its authors, in a place you trust it")
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: suffix {path.suffix!r} is not supported; permitted: '.safetensors'")
    return path


def _stored(name: str, leaf: Any, dtype: str | None) -> np.ndarray:
    """Host copy in the dtype to store, C order (the writer copies raw memory and ignores strides)."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise UserError(f"parameter {name!r} is a PRNG key; only numbers are stored")
    array = np.asarray(jax.device_get(leaf))
    if dtype is not None and jnp.issubdtype(array.dtype, jnp.floating):
        with np.errstate(over="ignore"):  # reported below, with the name
            converted = array.astype(jnp.dtype(dtype))
        overflow = np.isinf(converted) & ~np.isinf(array)
        if overflow.any():
            largest = np.abs(array[overflow]).max()
            raise UserError(f"parameter {name!r} has values up to {largest:.3g}, beyond the range of "
                            f"dtype={dtype!r}; permitted: 'bfloat16', 'float32', None")
        array = converted
    return np.require(array, requirements="C")


def _write(path: pathlib.Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    import safetensors.numpy

    # Written next to the target, so that the final rename stays within one file system and is atomic.
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        safetensors.numpy.save_file(arrays, temporary, metadata=metadata)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files only the owner can read
        os.replace(temporary, path)
        temporary = None
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} was not written: {error}") from error
    finally:
        if temporary is not None:
            os.unlink(temporary)


def _read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    import safetensors

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is not a complete safetensors file: {error}") from error


def _converted(array: np.ndarray, leaf: Any) -> np.ndarray:
    """Floating-point numbers in the dtype asked for, if that is one of them too; all else as it is."""
    floating = leaf is not None and all(jnp.issubdtype(x.dtype, jnp.floating) for x in (array, leaf))
    return array.astype(leaf.dtype, copy=False) if floating else array


def _placed(array: np.ndarray, leaf: Any) -> np.ndarray | jax.Array:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        return array
    # The callback form needs only the addressable shards, so it also serves meshes over several processes.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
