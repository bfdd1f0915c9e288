"""Decoded frames to RGB pixels: scaled, turned upright as players show them, cut to an aspect ratio."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from jaxtyping import UInt8

_DISPLAY_MATRIX = "DISPLAYMATRIX"
# FFmpeg takes every grey picture for full range (0 to 255), also one whose file says 16 to 235.
_FROM_LIMITED = np.clip(np.rint((np.arange(256) - 16) * (255 / 219)), 0, 255).astype(np.uint8)
_LIMITED = 1  # AVCOL_RANGE_MPEG
# Without these flags FFmpeg rounds down (white reads 253) and halves the width of the colour of what it scales.
_SCALER = "flags=area+accurate_rnd+full_chroma_int+full_chroma_inp"


class Painter:
    """Frames to RGB. One scaler is kept, because making one for each frame costs more than scaling it."""

    def __init__(self):
        self._graph, self._graph_of = None, None

    def upright_size(self, frame) -> tuple[int, int]:
        """Height and width of the frame as players show it."""
        lying, _ = display_turn(frame)
        return (frame.width, frame.height) if lying else (frame.height, frame.width)

    def paint(self, frame, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
        """The frame upright, cut centrally to the aspect ratio and area-averaged (bilinear where it is enlarged)."""
        lying, turn = display_turn(frame)
        target = (width, height) if lying else (height, width)
        # Scaling to cover the target and then cutting touches far fewer pixels than cutting first.
        scaled = _covering(frame.height, frame.width, *target)
        rgb = turn(self._rgb(frame, *scaled))
        top, left = (rgb.shape[0] - height) // 2, (rgb.shape[1] - width) // 2
        return rgb[top : top + height, left : left + width]

    def _rgb(self, frame, height: int, width: int) -> np.ndarray:
        described = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range, width, height)
        if described != self._graph_of:
            self._graph, self._graph_of = _scaler(frame, height, width), described
        self._graph.push(frame)
        rgb = self._graph.pull().to_ndarray()
        limited_grey = frame.format.name.startswith("gray") and frame.color_range == _LIMITED
        return _FROM_LIMITED[rgb] if limited_grey else rgb


def _scaler(frame, height: int, width: int):
    import av

    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 25)
    )
    scale, rgb = graph.add("scale", f"{width}:{height}:{_SCALER}"), graph.add("format", "pix_fmts=rgb24")
    sink = graph.add("buffersink")
    source.link_to(scale)
    scale.link_to(rgb)
    rgb.link_to(sink)
    graph.configure()
    return graph


def display_turn(frame) -> tuple[bool, Callable[[np.ndarray], np.ndarray]]:
    """Whether display exchanges height and width, and the function that turns pixels upright.

    The display matrix of ISO/IEC 14496-12, section 8.3.2, takes the place (x, y) of a pixel to (a x + c y, b x + d y).
    Quarter turns and mirrors are applied, other angles to the nearest quarter; a matrix that is no turn is ignored.
    """
    a, b, c, d = _display_matrix(frame)
    if a * d == b * c:
        return False, lambda pixels: pixels
    lying = abs(b * c) > abs(a * d)
    mirrored, flipped = (c < 0, b < 0) if lying else (a < 0, d < 0)

    def turn(pixels: np.ndarray) -> np.ndarray:
        pixels = pixels.swapaxes(0, 1) if lying else pixels
        return pixels[:: -1 if flipped else 1, :: -1 if mirrored else 1]

    return lying, turn


def _display_matrix(frame) -> tuple[float, float, float, float]:
    from av.sidedata.sidedata import SideDataContainer

    try:
        # Not `frame.side_data`, which frame and data keep for each other: pictures would stay until garbage in cycles
        # is looked for
        data = SideDataContainer(frame).get(_DISPLAY_MATRIX)
    except ValueError:  # other data of a kind that PyAV has no name for, such as EXIF: the angle is still to be had
        angle = math.radians(frame.rotation)  # counterclockwise
        return math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
    if data is None or data.buffer_size < 36:
        return 1.0, 0.0, 0.0, 1.0
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    return a, b, c, d


def _covering(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """The smallest size of this aspect ratio (to a pixel) that covers the target."""
    if height * target_width > target_height * width:  # taller than the target
        return max(target_height, round(height * target_width / width)), target_width
    return target_height, max(target_width, round(width * target_height / height))
