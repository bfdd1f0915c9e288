"""Frames of one file in the size of a clip: of a video by frame numbers, or of a video, a picture, a folder of pictures
or a file of strokes from the beginning on; and the control maps that lie next to the videos of a folder."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vdm_jax.data.control_record import read_record
from vdm_jax.data.crops import crop_frames
from vdm_jax.data.image_folder import SUFFIXES as PICTURES
from vdm_jax.data.image_folder import fitted, opened
from vdm_jax.errors import UserError
from vdm_jax.video.strokes import read_strokes

_WHOLE_FRAMES = 8  # of the file's own size that are in memory at once


def decode_frames(
    path: Path, index: Any, numbers: np.ndarray, spec: Any, place: tuple[float, float]
) -> UInt8[np.ndarray, "T height width 3"]:
    """The frames of a video with these numbers, cut as `spec` (`VideoFolder`) says; `index` is a `FrameIndex`. Raises
    `UserError` where they do not decode."""
    from vdm_jax.video.reading import VideoReader

    try:
        with VideoReader(path, index) as reader:
            if spec.crop == "center":
                return reader.frames(numbers, spec.height, spec.width)
            parts = np.array_split(numbers, -(-len(numbers) // _WHOLE_FRAMES))  # whole frames are large
            return np.concatenate([crop_frames(reader.frames(part), spec.height, spec.width, spec.crop, place)
                                   for part in parts])
    except UserError:
        raise
    except Exception as error:  # a damaged file can fail in any way, and there are many formats
        raise UserError(f"{path}: does not decode ({type(error).__name__}: {error})") from error


def read_frames(path: Path, frames: int, height: int, width: int, fps: float) -> UInt8[np.ndarray, "T height width 3"]:
    """The first `frames` frames of a video at the rate `fps`; a picture for all of them; the pictures of a folder,
    one each, by the numbers in their names; or strokes drawn by hand (`video/strokes.py: read_strokes`) as pictures of
    their steps. They are cut centrally and resized; strokes are stretched.

    Raises `UserError` for what cannot be read, and a video, folder or file of strokes with too little.
    """
    if path.suffix.lower() == ".json" and not path.is_dir():
        strokes = read_strokes(path)
        if strokes.frames < frames:
            raise UserError(f"{path} has strokes of {strokes.frames} frames; permitted: at least {frames}",
                            "decoding.frames")
        return np.stack([*itertools.islice(strokes.pictures(height, width), frames)])
    if not path.is_dir() and path.suffix.lower() in PICTURES:
        return np.repeat(_picture(path, height, width)[None], frames, axis=0)
    if not path.is_dir():
        return _of_video(path, frames, height, width, fps)
    files = [file for file in path.iterdir() if file.suffix.lower() in PICTURES and not file.name.startswith(".")]
    if len(files) < frames:
        raise UserError(f"{path} has {len(files)} pictures ({', '.join(PICTURES)}); permitted: at least {frames}, one "
                        "for each frame", "decoding.frames")
    return np.stack([_picture(file, height, width) for file in sorted(files, key=_by_numbers)[:frames]])


def _of_video(path: Path, frames: int, height: int, width: int, fps: float) -> UInt8[np.ndarray, "T height width 3"]:
    from vdm_jax.video.reading import VideoReader

    with VideoReader(path) as reader:
        if reader.duration < (frames - 0.5) / fps:
            raise UserError(f"{path} lasts {reader.duration:.3g} s; permitted: at least {frames / fps:.3g} s, for "
                            f"{frames} frames at {fps:g} per second, or a folder of {frames} pictures",
                            "decoding.frames")
        return reader.frames(reader.index.at(np.arange(frames) / fps), height, width)


def _picture(path: Path, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    try:
        return fitted(path, height, width)
    except UserError as error:
        raise UserError(f"{path}: {error}", error.code) from error


def _by_numbers(path: Path) -> list[tuple[bool, int | str]]:
    """A key by which frame 10 comes after frame 9."""
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", path.name) if part]


class MapFolder:
    """The control maps of videos: for each a file of the same name but for its ending, a video of as many frames, or a
    picture for all of them.

    Args:
      folder: with these files, at the same places as the videos below theirs.
      suffixes: of videos.
      cache: folder for frame indexes.

    `record` says how they were made, where `vdm-jax annotate` made them. Raises `UserError` for a folder without such
    files.
    """

    def __init__(self, folder: str, suffixes: Sequence[str], cache: Path):
        from vdm_jax.video.index_cache import index_files

        root = Path(folder).expanduser()
        self.files = {stem(path.relative_to(root).as_posix()): path for path in sorted(root.rglob("*"))
                      if path.suffix.lower() in (*suffixes, *PICTURES) and not path.name.startswith(".")}
        if not self.files:
            raise UserError(f"VideoFolder.controls={folder!r} has no videos or pictures; permitted: a folder with "
                            "files named like the videos")
        self.record = read_record(root)
        videos = [path for path in self.files.values() if path.suffix.lower() not in PICTURES]
        digest = hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:16]
        self._indexes = dict(zip(videos, index_files(videos, cache / f"{digest}-controls.json"), strict=True))

    def problem(self, name: str, frames: int) -> str | None:
        """Why a video of so many frames has no map."""
        path = self.files.get(stem(name))
        if path is None:
            return f"no control map {stem(name)}.*"
        index = self._indexes.get(path)
        if isinstance(index, str):
            return f"control map {path}: {index}"
        if index is not None and len(index) != frames:
            return f"control map {path} of {len(index)} frames for {frames}"
        return None

    def check_stride(self, stride: int) -> None:
        """Raise `UserError` for optical flow to another frame than the next one of clips."""
        flow = self.record is not None and self.record.kind == "flow"
        if flow and (made := self.record.settings.get("stride")) != stride:
            raise UserError(f"VideoFolder.frame_stride={stride} with controls of flow with stride {made}; permitted: "
                            f"{made}, or vdm-jax annotate --kind flow --stride {stride}")

    def frames(
        self, name: str, numbers: np.ndarray, spec: Any, place: tuple[float, float]
    ) -> UInt8[np.ndarray, "T height width 3"]:
        """The maps of these frames of a video, cut like them. Raises `UserError` where they do not decode."""
        path = self.files[stem(name)]
        if path in self._indexes:
            return decode_frames(path, self._indexes[path], numbers, spec, place)
        with opened(path) as image:
            picture = np.asarray(image.convert("RGB"))[None]
        return np.repeat(crop_frames(picture, spec.height, spec.width, spec.crop, place), len(numbers), axis=0)


def stem(name: str) -> str:
    """A name without its ending."""
    return str(Path(name).with_suffix(""))
