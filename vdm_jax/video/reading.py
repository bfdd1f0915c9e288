"""Frame-exact random access to video files, by PyAV alone.

A frame is found by its presentation time: seek to a keyframe at or before it, decode forward, compare times. That is
exact on variable frame rates, where arithmetic with a frame rate is not. Files in which a seek cannot be shown to be
exact are decoded from the start (see `frame_index`); the decoder stays open, so that reading forward is linear.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8

from vdm_jax.configuration import Size, check_value
from vdm_jax.errors import UserError
from vdm_jax.video.containers import Media, display_name, failure, readable_errors
from vdm_jax.video.frame_index import FrameIndex, build_index, frames_from
from vdm_jax.video.pictures import Painter

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
        self._file = file
        self.name = display_name(file)
        self._media: Media | None = None
        self._painter = Painter()
        self._size: tuple[int, int] | None = None
        self._running: Iterator | None = None
        self._at, self._frame = -1, None
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
        self._running, self._at, self._frame = None, -1, None
        if self._media is not None:
            self._media.close()
            self._media = None

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
        frames have the size of the file's first, also where pictures change their size on the way. Display rotation
        and mirroring, as phones record them, are applied; pixels are taken as square.

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
        if height is None:
            height, width = self._first_size()
        check_value((height, width), tuple[Size, Size], "size")
        unique, places = np.unique(wanted, return_inverse=True)
        pictures = [self._paint(number, frame, height, width) for number, frame in self._decode(unique.tolist())]
        return np.stack(pictures)[places]

    # --- opening ----------------------------------------------------------------------------------------------------

    def _open(self) -> Media:
        """(Re)opens the file at its start."""
        self.close()
        try:
            self._media = Media(self._file)
        except UserError as error:
            raise type(error)(str(error).replace("not a readable media file", "not a readable video")) from error
        self._media.video_stream()
        return self._media

    def _build_index(self) -> FrameIndex:
        try:
            index = build_index(self._media, self._open)
        except readable_errors() as error:
            raise failure(f"{self.name}: not a readable video", error) from error
        if index is None:
            raise UserError(f"{self.name}: not a readable video (no frame decodes)")
        return index

    # --- decoding ---------------------------------------------------------------------------------------------------

    def _decode(self, numbers: list[int]) -> Iterator:
        """Yields (number, frame) for these increasing numbers, seeking where that saves decoding."""
        for number in numbers:
            try:
                self._advance(number)
            except readable_errors() as error:
                self._running, self._at = None, -1
                raise failure(f"{self.name}: frame {number} does not decode", error) from error
            if self._at != number:
                self._running = None
                raise UserError(f"{self.name}: frame {number} does not decode")
            yield number, self._frame

    def _advance(self, number: int) -> None:
        if self._running is not None and self._at == number:
            return
        behind = self._running is None or number < self._at
        if behind or self._keyframe_before(number) > self._at + _DECODE_RATHER_THAN_SEEK:
            self._running = self._decode_from(number)
        self._at, self._frame = next((found for found in self._running if found[0] >= number), (-1, None))

    def _keyframe_before(self, number: int) -> int:
        keyframes = self.index.keyframes
        return int(keyframes[np.searchsorted(keyframes, number, side="right") - 1])

    def _decode_from(self, number: int) -> Iterator:
        """Yields (number, frame) from a keyframe at or before `number` on; from the start if no seek lands there."""
        keyframes = self.index.keyframes
        if self.index.timestamped:
            for key in keyframes[keyframes <= number][-1 : -_KEYFRAMES_TO_TRY - 1 : -1]:
                frames = self._numbered(frames_from(self._media, int(self.index.pts[key])))
                first = next(frames, None)
                if first is not None and first[0] <= number:
                    yield first
                    yield from frames
                    return
        running = self._running
        media = self._open()
        self._running = running
        yield from self._numbered(media.container.decode(media.video_stream()))

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

    def _first_size(self) -> tuple[int, int]:
        """Height and width of the first frame, upright."""
        if self._size is None:
            (_, frame), = self._decode([0])
            self._size = self._painter.upright_size(frame)
        return self._size

    def _paint(self, number: int, frame, height: int, width: int) -> np.ndarray:
        try:
            return self._painter.paint(frame, height, width)
        except readable_errors() as error:
            raise failure(f"{self.name}: frame {number} cannot be converted to RGB", error) from error
