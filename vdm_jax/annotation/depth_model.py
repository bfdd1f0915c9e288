"""Depth of frames by a released network: a folder of `DPTForDepthEstimation` as transformers saves it.

It has `config.json`, safetensors files, and `preprocessor_config.json`, which says how pictures are resized and
normalised (`DPTImageProcessor`). The network is DPT (Ranftl et al. 2021, arXiv 2103.13413); see `networks/dpt.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from vdm_jax.annotation.frames import AT_A_TIME, frames_of
from vdm_jax.errors import UserError
from vdm_jax.networks.dpt import DPT, DPTNetwork
from vdm_jax.video.reading import VideoReader
from vdm_jax.weights.fields import Fields
from vdm_jax.weights.pretrained import Pretrained, load_pretrained, save_pretrained
from vdm_jax.weights.tensor_files import read_json

T = TypeVar("T")
PREPROCESSING = "preprocessor_config.json"
_FIXED = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_pad": False}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes what the network sees; the defaults are those of DPT-Large."""

    height: int = 384  # pixels
    width: int = 384
    keep_aspect_ratio: bool = False  # resize as little as one of the two sides permits, and the other by as much
    multiple: int = 1  # of pixels that sides are rounded to
    resample: int = int(Image.Resampling.BICUBIC)  # filter of Pillow
    scale: float = 1 / 255  # of levels
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # of scaled levels
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that a picture is resized to."""
        rows, columns = self.height / height, self.width / width
        if self.keep_aspect_ratio:
            rows = columns = columns if abs(1 - columns) < abs(1 - rows) else rows
        return tuple(max(round(scale * side / self.multiple), 1) * self.multiple
                     for scale, side in ((rows, height), (columns, width)))

    def __call__(self, frames: UInt8[np.ndarray, "B H W 3"]) -> Float[np.ndarray, "B H2 W2 3"]:
        """Frames as the network sees them."""
        size = self.size(*frames.shape[1:3])[::-1]
        resized = np.stack([np.asarray(Image.fromarray(frame).resize(size, self.resample)) for frame in frames])
        return ((resized * self.scale - np.array(self.mean)) / np.array(self.std)).astype(np.float32)


def read_preprocessing(fields: Mapping[str, Any], where: str) -> Preprocessing:
    """The preprocessing of a `preprocessor_config.json`. Raises `UserError` for steps that are not done here."""
    fields = {name: value for name, value in fields.items() if value is not None}
    found = Fields(fields, where)
    found.require(**_FIXED)
    size = fields.get("size", 384)
    size = {"height": size, "width": size} if isinstance(size, int) else size
    mean, std = (fields.get(name, [0.5] * 3) for name in ("image_mean", "image_std"))
    try:
        result = Preprocessing(
            int(size["height"]), int(size["width"]), found.get("keep_aspect_ratio", False),
            found.get("ensure_multiple_of", 1), int(Image.Resampling(found.get("resample", 3))),
            found.get("rescale_factor", 1 / 255), *(tuple(map(float, part)) for part in (mean, std)))
        if min(result.height, result.width, result.multiple, *result.std) <= 0 or {
                len(result.mean), len(result.std)} != {3}:
            raise ValueError("sides, a multiple or deviations that are not above 0, or no three channels")
    except (TypeError, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: size={size}, resample={fields.get('resample')}, image_mean={mean}, image_std={std} "
                        f"({error}); permitted: a height and a width in pixels, a filter of Pillow, and three numbers "
                        "each") from error
    return result


class DepthModel(NamedTuple):
    """A network with weights, and how it is shown pictures."""

    network: Pretrained  # of a `DPT`
    preprocessing: Preprocessing
    fields: dict[str, Any]  # of `preprocessor_config.json`


def load_depth_model(folder: str | os.PathLike) -> DepthModel:
    """The model of a folder, in the dtype of its files.

    Raises `UserError` for another model or folder, tensors that are missing, unexpected or misshapen, by name, pickles,
    and preprocessing that gives pictures of broken patches.
    """
    folder = Path(folder).expanduser()
    network = load_pretrained(folder, DPT)
    where, patch = folder / PREPROCESSING, network.config.patch
    fields = read_json(where)
    preprocessing = read_preprocessing(fields, str(where))
    sides = (preprocessing.multiple,) if preprocessing.keep_aspect_ratio else preprocessing.size(
        preprocessing.height, preprocessing.width)
    if any(side % patch for side in sides):
        raise UserError(f"{where}: size={preprocessing.height}x{preprocessing.width}, ensure_multiple_of="
                        f"{preprocessing.multiple}, keep_aspect_ratio={preprocessing.keep_aspect_ratio}; permitted: "
                        f"sides that are multiples of the {patch} pixels of a patch")
    if network.config.channels != 3:
        raise UserError(f"{folder / 'config.json'}: num_channels={network.config.channels}; permitted: 3")
    return DepthModel(network, preprocessing, fields)


def save_depth_model(folder: str | os.PathLike, model: DepthModel) -> None:
    """Writes a model as a folder that transformers loads; dtypes stay as they are. Fields that were read stay as they
    were. Raises `UserError` as `save_pretrained` does."""
    save_pretrained(folder, model.network)
    own = model.preprocessing
    fields = model.fields or {
        **_FIXED, "image_processor_type": "DPTImageProcessor", "size": {"height": own.height, "width": own.width},
        "keep_aspect_ratio": own.keep_aspect_ratio, "ensure_multiple_of": own.multiple, "resample": own.resample,
        "rescale_factor": own.scale, "image_mean": list(own.mean), "image_std": list(own.std)}
    (Path(folder) / PREPROCESSING).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


loaded = functools.lru_cache(maxsize=1)(load_depth_model)  # for the videos of a folder one after another


@functools.partial(jax.jit, static_argnums=0)
def _predicted(config: DPT, params: dict[str, Any], pictures: Float[Array, "B H W 3"]) -> Float[Array, "B H2 W2"]:
    return DPTNetwork(config).apply({"params": params}, pictures)


def predict(model: DepthModel, video: VideoReader) -> Iterator[Float[np.ndarray, "H2 W2"]]:
    """What the network says of each frame, in its own size, some frames at a time. Raises `UserError` for weights that
    give NaN."""
    waiting: list[np.ndarray] = []
    for number, frame in enumerate(frames_of(video), 1):
        waiting.append(frame)
        if len(waiting) == AT_A_TIME or number == len(video):
            batch = np.stack(waiting + [frame] * (AT_A_TIME - len(waiting)))  # of one shape, compiled once
            found = np.asarray(_predicted(model.network.config, model.network.params, model.preprocessing(batch)))
            if not np.isfinite(found).all():
                raise UserError(f"the depth of frame {number - 1} or one before it is NaN or infinite; permitted: "
                                "weights that give finite depth", "annotation.depth")
            yield from found[: len(waiting)]
            waiting = []


class Spilled:
    """Maps of one size in a temporary file: those of a long video do not fit into memory.

    Raises `UserError` where they do not fit into the temporary folder either.
    """

    def __init__(self, maps: Iterator[Float[np.ndarray, "H W"]]) -> None:
        self._file, self.count, self.shape = _with_space(tempfile.TemporaryFile), 0, (0, 0)
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            for one in maps:
                _with_space(functools.partial(self._file.write, np.ascontiguousarray(one, np.float32).data))
                self.shape, self.count = one.shape, self.count + 1
            _with_space(self._file.flush)
            stack.pop_all()

    def read(self, number: int) -> Float[np.ndarray, "H W"]:
        """One of them."""
        bytes_each = 4 * self.shape[0] * self.shape[1]
        self._file.seek(number * bytes_each)
        return np.frombuffer(self._file.read(bytes_each), np.float32).reshape(self.shape)

    def close(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):  # it is removed all the same
            self._file.close()


def _with_space(act: Callable[[], T]) -> T:
    try:
        return act()
    except OSError as error:
        raise UserError(f"depth does not fit into the temporary folder ({error}); permitted: one, named by "
                        "TMPDIR, with 4 bytes for each number that the network gives of a video",
                        "annotation.depth") from error


@contextlib.contextmanager
def spilled(folder: str, video: VideoReader) -> Iterator[Spilled]:
    """What the model of a folder says of each frame of a video."""
    with contextlib.closing(Spilled(predict(loaded(folder), video))) as maps:
        yield maps


def bicubic(values: Float[np.ndarray, "H W"], height: int, width: int) -> Float[np.ndarray, "H2 W2"]:
    """A map in another size, as transformers resizes depth: samples of Keys' cubic (1981, a = -0.75) at the centres of
    pixels, whose neighbours beyond the border are those at it; no averaging where it shrinks."""
    rows, columns = (_cubic(*sides) for sides in zip(values.shape, (height, width), strict=True))
    return rows @ values.astype(np.float32) @ columns.T


@functools.lru_cache(maxsize=4)
def _cubic(before: int, after: int) -> Float[np.ndarray, "after before"]:
    """Resampling of one axis as a matrix."""
    place = (np.arange(after) + 0.5) * before / after - 0.5
    left, a = np.floor(place).astype(int), -0.75
    matrix = np.zeros((after, before), np.float32)
    for tap in range(-1, 3):
        far = np.abs(place - left - tap)
        near = ((a + 2) * far - (a + 3)) * far**2 + 1
        beyond = a * (far**3 - 5 * far**2 + 8 * far - 4)
        np.add.at(matrix, (np.arange(after), np.clip(left + tap, 0, before - 1)), np.where(far <= 1, near, beyond))
    return matrix
