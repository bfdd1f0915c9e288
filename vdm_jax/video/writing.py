"""Writing videos and pictures. Every file appears whole or not at all: it is written next to its place, then
renamed."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import UInt8

from vdm_jax.configuration import Range, check_value
from vdm_jax.errors import UserError
from vdm_jax.video.containers import display_name
from vdm_jax.video.sound import SoundCopy

SUFFIXES = (".mp4", ".gif", ".png")
# Pixels of a side that the encoders take: H.264 of x264, the 16-bit sizes of GIF, and what viewers open as PNG.
MOST_PIXELS = {".mp4": 16384, ".gif": 65535, ".png": 65535}
# GIF counts in hundredths of a second, 655 seconds at most.
RATES = {".mp4": (0.01, 1000), ".gif": (0.01, 100), ".png": (0.01, 1000)}


class Sound(NamedTuple):
    """The sound that a video is written with."""

    path: Path  # of the file that has it
    start: float  # seconds of that file at which the video begins
    seconds: float  # how long the video lasts


def check_output(path: str | os.PathLike, fps: float, size: tuple[int, int] | None = None) -> None:
    """Raises `UserError` where the format that a path's suffix names cannot hold such a video; touches no file.

    Meant for commands, before they sample; `write_video` asks again.

    Args:
      fps: frames per second.
      size: height and width of a frame in pixels, where they are known.
    """
    suffix, name = Path(path).suffix.lower(), display_name(Path(path).name)
    if suffix not in SUFFIXES:
        raise UserError(f"write_video: suffix {suffix!r} of {name}; permitted: {', '.join(SUFFIXES)}")
    least, most = RATES[suffix]
    if not least <= fps <= most:
        raise UserError(f"write_video: {name}: fps={fps}; permitted: {least} to {most} frames per second")
    limit = MOST_PIXELS[suffix]
    if size is not None and not (1 <= min(size) and max(size) <= limit):
        raise UserError(f"write_video: {name}: {size[0]} x {size[1]} pixels; permitted: 1 to {limit} a side")


def write_video(
    path: str | os.PathLike,
    video: UInt8[np.ndarray, "T H W 3"],
    fps: float = 8.0,
    *,
    crf: int = 18,
    lossless: bool = False,
) -> Path:
    """Writes a video in the format its suffix names; returns the path. Missing folders are made.

    .mp4: H.264 that every player shows (yuv420p; odd sizes are padded by repeating the last row or column), or with
    `lossless` the exact RGB values (libx264rgb, for which fewer players exist). .gif: one palette made for the whole
    video, endless loop. .png: a sample grid of the frames in a near-square grid.

    Args:
      fps: frames per second.
      crf: mp4 quality, 0 (best) to 51; 18 cannot be determined from the original by eye.

    Raises:
      UserError: an unknown suffix, an array that is not uint8 [T, H, W, 3], a rate or quality out of range,
        `lossless` with a suffix other than .mp4 (a .png is always lossless).
    """
    path = Path(path)
    check_output(path, fps)
    if lossless and path.suffix.lower() == ".gif":
        raise UserError(f"write_video: lossless=True with {path.name}; permitted: .mp4, .png")
    video = _checked(video, crf)
    check_output(path, fps, video.shape[1:3])
    if path.suffix.lower() == ".png":
        from vdm_jax.video.grids import tile_frames

        return write_png(path, tile_frames(video))
    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".gif":
            _encode_gif(temporary, video, fps)
        else:
            encode_mp4(temporary, video, fps, crf=crf, lossless=lossless)
    return path


def write_frames(
    path: str | os.PathLike, frames: Iterable[UInt8[np.ndarray, "H W 3"]], fps: float = 8.0, *, lossless: bool = False,
    sound: Sound | None = None,
) -> Path:
    """Writes a video of frames of one size that come one after another; returns the path. An .mp4 keeps few of them in
    memory, a .gif or .png all; it alone holds `sound`. Raises `UserError` as `write_video`, for no frames, a frame of
    another size, and sound that cannot be read."""
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise UserError(f"write_frames: no frames for {Path(path).name}; permitted: one or more")
    if Path(path).suffix.lower() != ".mp4":
        return write_video(path, np.stack([first, *frames]), fps, lossless=lossless)
    _checked(first[None], 18)
    check_output(path, fps, first.shape[:2])

    def checked() -> Iterator[np.ndarray]:
        for number, frame in enumerate(itertools.chain([first], frames)):
            if frame.dtype != np.uint8 or frame.shape != first.shape:
                raise UserError(f"write_frames: frame {number} is {frame.dtype} {list(frame.shape)}; permitted: uint8 "
                                f"{list(first.shape)}, as the first")
            yield frame

    with atomic_path(path) as temporary:
        _encode_frames(temporary, checked(), first.shape[:2], fps, crf=18, lossless=lossless, sound=sound)
    return Path(path)


def write_png(path: str | os.PathLike, image: UInt8[np.ndarray, "H W 3"]) -> Path:
    """Writes one RGB image as PNG; returns the path. Raises `UserError` on another suffix or array."""
    from PIL import Image

    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"write_png: suffix {path.suffix!r} of {path.name}; permitted: .png")
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise UserError(f"write_png: {image.dtype} {list(image.shape)}; permitted: uint8 [H, W, 3]")
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")
    return path


def encode_mp4(
    file: Path | BinaryIO, video: UInt8[np.ndarray, "T H W 3"], fps: float, *, crf: int = 18, lossless: bool = False
) -> None:
    """Writes mp4 to a path or a seekable binary file; see `write_video`. The padding of odd sizes stays in the file."""
    _encode_frames(file, video, video.shape[1:3], fps, crf=crf, lossless=lossless)


def _encode_frames(
    file: Path | BinaryIO, frames: Iterable[np.ndarray], size: tuple[int, ...], fps: float, *, crf: int, lossless: bool,
    sound: Sound | None = None,
) -> None:
    """mp4 of frames of `size` (height, width), one after another."""
    import av

    codec, pixels = ("libx264rgb", "rgb24") if lossless else ("libx264", "yuv420p")
    options = {"qp": "0"} if lossless else {"crf": str(crf)}
    rate = _rate(fps)
    # The table of contents goes to the front, for the web; FFmpeg reopens the file by name to do that.
    with _destination(file) as place, av.open(
        place, "w", format="mp4", options={"movflags": "+faststart"} if isinstance(place, str) else {}
    ) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = size if lossless else (side + side % 2 for side in size)
        stream.pix_fmt = pixels
        stream.codec_context.time_base = 1 / rate
        if not lossless:  # say which matrix was used, or players guess another one for large pictures
            stream.codec_context.colorspace = av.video.reformatter.Colorspace.SMPTE170M
        with _sounding(sound, container) as until:
            for number, frame in enumerate(frames):
                container.mux(stream.encode(_frame(frame if lossless else _padded_to_even(frame), number, rate)))
                until(float(number / rate))
            container.mux(stream.encode())
            until(math.inf)


@contextlib.contextmanager
def _sounding(sound: Sound | None, container: Any) -> Iterator[Callable[[float], None]]:
    """What writes the sound up to a time, seconds."""
    if sound is None:
        yield lambda seconds: None
        return
    copy = SoundCopy(sound.path, container, sound.start, sound.seconds)
    try:
        yield copy.until
    finally:
        copy.close()


def _encode_gif(path: Path, video: np.ndarray, fps: float) -> None:
    """GIF by one palette for all frames: split -> palettegen -> paletteuse, far better than the codec's fixed one."""
    import av

    rate = _rate(fps)
    height, width = video.shape[1:3]
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=1 / rate)
    split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=full")
    paint, sink = graph.add("paletteuse", "dither=sierra2_4a"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(paint, 1, 0)
    palette.link_to(paint, 0, 1)
    paint.link_to(sink)
    graph.configure()
    with _destination(path) as place, av.open(place, "w", format="gif") as container:
        stream = container.add_stream("gif", rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "pal8"
        stream.codec_context.time_base = 1 / rate
        for number, frame in enumerate(video):
            graph.push(_frame(frame, number, rate))
        graph.push(None)
        for number in range(len(video)):
            painted = graph.pull()
            painted.pts, painted.time_base = number, 1 / rate
            container.mux(stream.encode(painted))
        container.mux(stream.encode())


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path next to `path`, made `path` at the end and removed if the body fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{uuid.uuid4().hex[:8]}.partial")  # short: names may be at their limit
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _destination(file: Path | BinaryIO) -> Iterator[str | BinaryIO]:
    """What FFmpeg writes to: a name it takes for nothing but a file, or a binary file where its name is not UTF-8."""
    if not isinstance(file, Path):
        yield file
        return
    try:
        name = os.fspath(file.absolute())
        name.encode()
    except UnicodeEncodeError:
        with open(file, "wb") as opened:
            yield _Nameless(opened)
        return
    yield f"file:{name}"


class _Nameless:
    def __init__(self, file: BinaryIO):
        self.write, self.seek, self.tell = file.write, file.seek, file.tell


def _frame(pixels: np.ndarray, number: int, rate: Fraction):
    """A frame stamped with its time: without a stamp an encoder may give every frame time 0."""
    import av

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    frame.pts, frame.time_base = number, 1 / rate
    return frame


def _padded_to_even(frame: np.ndarray) -> np.ndarray:
    """Chroma at half resolution needs even sizes."""
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


def _checked(video: np.ndarray, crf: int) -> np.ndarray:
    video = np.asarray(video)
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        hint = " (see vdm_jax.video.arrays.to_uint8)" if np.issubdtype(video.dtype, np.floating) else ""
        raise UserError(f"write_video: {video.dtype} {list(video.shape)}; permitted: uint8 [T, H, W, 3]{hint}")
    check_value(crf, Annotated[int, Range(least=0, most=51)], "crf")
    return video
