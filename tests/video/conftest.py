"""Videos whose frames say their number: eight vertical bars, one per bit, which survive any codec."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest


def numbered_frame(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    bits = [(number >> bit) & 1 for bit in range(8)]
    row = np.repeat(np.array(bits, np.uint8) * 255, width // 8)
    row = np.pad(row, (0, width - len(row)), mode="edge")
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def read_number(frame: np.ndarray) -> int:
    width = frame.shape[1] // 8
    bars = [frame[:, bit * width : (bit + 1) * width].mean() > 127 for bit in range(8)]
    return sum(int(on) << bit for bit, on in enumerate(bars))


def write_numbered(path, pts, *, codec="libx264", options=None, rate=30, size=(48, 64), rotation=None):
    """Writes frame i with presentation time `pts[i] / rate`."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number, time in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, *size), format="rgb24")
            frame.pts, frame.time_base = int(time), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def numbered():
    """Namespace of the helpers above (test folders are no packages)."""
    from types import SimpleNamespace

    return SimpleNamespace(frame=numbered_frame, read=read_number, write=write_numbered,
                           numbers=lambda frames: [read_number(frame) for frame in frames])
