"""Pictures for people: sample grids with captions, and grids of videos."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from vdm_jax.configuration import Count, check_value
from vdm_jax.errors import UserError

_LEAST_PIXELS = 64  # smaller frames are enlarged, for people to see anything
_GAP = 2  # pixels between frames
_BACKGROUND = 255
_FONT_PIXELS = 12
_LINE_PIXELS = 16


def sample_grid(
    videos: UInt8[np.ndarray, "B T H W 3"], captions: Sequence[str] | None = None, title: str = ""
) -> UInt8[np.ndarray, "height width 3"]:
    """A sample grid: a row per video, a column per frame, the caption above its row, the title above all.

    Frames under 64 pixels are enlarged by a whole factor, without smoothing. Long captions are wrapped.

    Raises:
      UserError: videos that are not uint8 [B, T, H, W, 3], or another number of captions than of videos.
    """
    videos = enlarged(_checked("sample_grid", videos))
    if captions is not None and len(captions) != len(videos):
        raise UserError(f"sample_grid: {len(captions)} captions for {len(videos)} videos; permitted: one for each")
    rows = [_grid(video, columns=len(video)) for video in videos]
    if captions is not None:
        strips = [text_strip(caption, rows[0].shape[1]) for caption in captions]
        rows = [np.concatenate(pair) for pair in zip(strips, rows, strict=True)]
    gap = np.full((_GAP, rows[0].shape[1], 3), _BACKGROUND, np.uint8)
    top = [text_strip(title, rows[0].shape[1])] if title else []
    return np.concatenate([*top, *[part for row in rows for part in (row, gap)][:-1]])


def tile_frames(video: UInt8[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """The frames of one video in a near-square grid, read like text."""
    video = enlarged(_checked("tile_frames", np.asarray(video)[None]))[0]
    return _grid(video, columns=math.ceil(math.sqrt(len(video))))


def tile_videos(
    videos: UInt8[np.ndarray, "B T H W 3"], columns: int | None = None
) -> UInt8[np.ndarray, "T height width 3"]:
    """Several videos as one, side by side in `columns` columns (default: near square).

    Raises:
      UserError: videos that are not uint8 [B, T, H, W, 3], or fewer than one column.
    """
    videos = _checked("tile_videos", videos)
    columns = math.ceil(math.sqrt(len(videos))) if columns is None else columns
    check_value(columns, Count, "columns")
    return np.stack([_grid(frames, columns) for frames in videos.swapaxes(0, 1)])


def tiled_size(count: int, height: int, width: int, columns: int | None = None) -> tuple[int, int]:
    """Height and width that `tile_videos` gives to `count` videos of this size."""
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    return math.ceil(count / columns) * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP


def _grid(images: np.ndarray, columns: int) -> np.ndarray:
    """[N, H, W, 3] to one picture, `_GAP` pixels between neighbours; unused places stay blank."""
    count, height, width, _ = images.shape
    picture = np.full((*tiled_size(count, height, width, columns), 3), _BACKGROUND, np.uint8)
    for number, image in enumerate(images):
        top, left = (number // columns) * (height + _GAP), (number % columns) * (width + _GAP)
        picture[top : top + height, left : left + width] = image
    return picture


def enlarged(videos: UInt8[np.ndarray, "B T H W 3"]) -> UInt8[np.ndarray, "B T H2 W2 3"]:
    """Videos of at least 64 pixels a side, by a whole factor, without smoothing."""
    factor = math.ceil(_LEAST_PIXELS / min(videos.shape[2:4]))
    return videos.repeat(factor, axis=2).repeat(factor, axis=3) if factor > 1 else videos


def text_strip(caption: str, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """The caption in black on white, `width` pixels wide, on as many lines as it needs; words too long for a line are
    cut into pieces."""
    font = ImageFont.load_default(size=_FONT_PIXELS)
    lines = [""]
    for word in (piece for whole in caption.split() for piece in _pieces(whole, font, width)):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    strip = Image.new("RGB", (width, _LINE_PIXELS * len(lines)), (_BACKGROUND,) * 3)
    draw = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        draw.text((0, number * _LINE_PIXELS), line, fill=(0, 0, 0), font=font)
    return np.asarray(strip)


def _pieces(word: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The word in pieces that fit into `width` pixels, or of one letter each."""
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _checked(name: str, videos: np.ndarray) -> np.ndarray:
    videos = np.asarray(videos)
    if videos.dtype != np.uint8 or videos.ndim != 5 or videos.shape[-1] != 3 or 0 in videos.shape:
        raise UserError(f"{name}: {videos.dtype} {list(videos.shape)}; permitted: uint8 [B, T, H, W, 3], none empty")
    return videos
