"""Frame-exact random access to video files, by PyAV alone.

A frame is found by its presentation time: seek to a keyframe at or before it, decode forward, compare times. That is
exact on variable frame rates, where arithmetic with a frame rate is not. One `VideoReformatter` is kept per reader,
because making a scaler for each frame costs more than scaling it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8

from vdm_jax.errors import UserError
from vdm_jax.video.frame_index import FrameIndex, build_index

# Decoding this many frames forward is cheaper than seeking to a keyframe that lies between.
_DECODE_RATHER_THAN_SEEK = 8
# A seek may land behind the keyframe asked for (containers that index by decoding time): how many to try.
_KEYFRAMES_TO_TRY = 3


class VideoReader:
    """Reads frames of one video file by number.

    Not safe to share between threads; opening one with a known `index` is cheap. Use as a context manager or `close`.

    Args:
      file: a path, or a seekable binary file.
      index: the file's index, if known from before; else it is made now (see `frame_index`).

    Raises:
      UserError: the file is missing, is no video, or none of its frames decodes; the message names the file.
    """

    def __init__(self, file: str | os.PathLike | BinaryIO, index: FrameIndex | None = None):
        from av.video.reformatter import VideoReformatter

        self._file = file
        self.name = str(file) if isinstance(file, str | os.PathLike) else "video bytes"
        self._container = None
        self._reformatter = VideoReformatter()
        try:
            self._open()
            self.index = index if index is not None else self._build_index()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; the reader must not be used afterwards."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def __len__(self) -> int:
        """Number of frames that decode, whatever the header says."""
        return len(self.index)

    @property
    def fps(self) -> float:
        """Mean frames per second, from the timestamps."""
        return self.index.fps

    @property
    def duration(self) -> float:
        """Seconds, from the timestamps."""
        return self.index.duration

    def frames(
        self, indices: Sequence[int] | np.ndarray, height: int | None = None, width: int | None = None
    ) -> UInt8[np.ndarray, "frames height width 3"]:
        """The frames with these numbers, in this order (repeats allowed), as RGB.

        With `height` and `width` each frame is cut centrally to their aspect ratio and resized (area filter); without,
        frames keep the size they have. Display rotation, as phones record it, is applied; pixels are taken as square.

        Raises:
          UserError: an index outside the video, only one of height and width, or a frame that does not decode.
        """
        wanted = np.asarray(indices, np.int64).reshape(-1)
        if not len(wanted):
            raise UserError(f"{self.name}: indices=[]; permitted: at least one frame")
        if wanted.min() < 0 or wanted.max() >= len(self):
            outside = wanted.min() if wanted.min() < 0 else wanted.max()
            raise UserError(f"{self.name}: frame {outside}; permitted: 0 to {len(self) - 1}")
        if (height is None) != (width is None):
            raise UserError(f"{self.name}: height={height}, width={width}; permitted: both sizes or neither")
        unique, places = np.unique(wanted, return_inverse=True)
        pictures = [self._to_rgb(frame, height, width) for frame in self._decode(unique.tolist())]
        return np.stack(pictures)[places]

    # --- opening ----------------------------------------------------------------------------------------------------

    def _open(self):
        """(Re)opens the file at its start; returns the container."""
        import av

        self.close()
        if isinstance(self._file, str | os.PathLike):
            if not Path(self._file).is_file():
                raise UserError(f"{self.name}: no such file")
        else:
            self._file.seek(0)
        try:
            # Before release 19 PyAV refuses files whose tags are not UTF-8 unless told otherwise.
            tags = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
            self._container = av.open(self._file, "r", **tags)
        except (av.FFmpegError, OSError) as error:
            raise UserError(f"{self.name}: not a readable video ({_reason(error)})") from error
        if not self._container.streams.video:
            raise UserError(f"{self.name}: holds no video stream")
        return self._container

    def _build_index(self) -> FrameIndex:
        import av

        try:
            index = build_index(self._container, self._open)
        except (av.FFmpegError, OSError) as error:
            raise UserError(f"{self.name}: not a readable video ({_reason(error)})") from error
        if index is None:
            raise UserError(f"{self.name}: not a readable video (no frame decodes)")
        return index

    # --- decoding ---------------------------------------------------------------------------------------------------

    def _decode(self, numbers: list[int]) -> Iterator:
        """Yields the frames with these increasing numbers, seeking where that saves decoding."""
        import av

        running, at = None, -1
        for number in numbers:
            try:
                if running is None or self._keyframe_before(number) > at + _DECODE_RATHER_THAN_SEEK:
                    running = self._decode_from(number)
                at, frame = next((found for found in running if found[0] >= number), (-1, None))
            except (av.FFmpegError, OSError) as error:
                raise UserError(f"{self.name}: frame {number} does not decode ({_reason(error)})") from error
            if at != number:
                raise UserError(f"{self.name}: frame {number} does not decode")
            yield frame

    def _keyframe_before(self, number: int) -> int:
        keyframes = self.index.keyframes
        return int(keyframes[np.searchsorted(keyframes, number, side="right") - 1])

    def _decode_from(self, number: int) -> Iterator:
        """Yields (number, frame) from a keyframe at or before `number` on; from the start if no seek lands there."""
        keyframes = self.index.keyframes
        if self.index.timestamped:
            for key in keyframes[keyframes <= number][-1 : -_KEYFRAMES_TO_TRY - 1 : -1]:
                frames = self._seek(int(self.index.pts[key]))
                first = next(frames, None)
                if first is not None and first[0] <= number:
                    yield first
                    yield from frames
                    return
        container = self._open()
        yield from self._numbered(container.decode(video=0))

    def _seek(self, pts: int) -> Iterator:
        import av

        try:
            self._container.seek(pts, stream=self._container.streams.video[0])
        except av.FFmpegError:  # a format that cannot seek: the caller starts over from the beginning
            return iter(())
        return self._numbered(self._container.decode(video=0))

    def _numbered(self, frames: Iterator) -> Iterator:
        """Yields (number, frame) for the frames the index knows."""
        if not self.index.timestamped:
            yield from enumerate(frames)
            return
        pts = self.index.pts
        for frame in frames:
            if frame.pts is None:
                continue
            number = int(np.searchsorted(pts, frame.pts))
            if number < len(pts) and pts[number] == frame.pts:
                yield number, frame

    # --- pictures ---------------------------------------------------------------------------------------------------

    def _to_rgb(self, frame, height: int | None, width: int | None) -> np.ndarray:
        """RGB pixels, upright, cut to the aspect ratio and resized when a size is given."""
        from av.video.reformatter import Interpolation

        quarter_turns = round(frame.rotation / 90) % 4
        if height is None:
            scaled = (frame.height, frame.width)
        else:
            lying = quarter_turns % 2 == 1
            target = (width, height) if lying else (height, width)
            scaled = _covering(frame.height, frame.width, *target)
        # Scaling to cover the target and then cutting touches far fewer pixels than cutting first.
        rgb = self._reformatter.reformat(
            frame, width=scaled[1], height=scaled[0], format="rgb24", interpolation=Interpolation.AREA, threads=1
        ).to_ndarray()
        rgb = np.rot90(rgb, quarter_turns)
        if height is None:
            return rgb
        top, left = (rgb.shape[0] - height) // 2, (rgb.shape[1] - width) // 2
        return rgb[top : top + height, left : left + width]


def _covering(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """The smallest size of this aspect ratio (to a pixel) that covers the target."""
    if height * target_width > target_height * width:  # taller than the target
        return max(target_height, round(height * target_width / width)), target_width
    return target_height, max(target_width, round(width * target_height / height))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
