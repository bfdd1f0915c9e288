"""Decoded frames to RGB against float arithmetic in NumPy, and the display matrices of ISO/IEC 14496-12."""

import struct
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.sidedata import sidedata

from vdm_jax.video.pictures import Painter, display_turn
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import write_video

LIMITED, FULL = 1, 2  # AVColorRange
MATRICES = {"BT.601": (6, 0.299, 0.114), "BT.709": (1, 0.2126, 0.0722), "unspecified": (2, 0.299, 0.114)}
SUBSAMPLED = {"yuv420p": (2, 2), "yuvj420p": (2, 2), "nv12": (2, 2), "yuv420p10le": (2, 2), "yuv422p": (1, 2),
              "yuv422p10le": (1, 2), "yuv444p": (1, 1), "yuv444p10le": (1, 1), "gray": None, "gray10le": None}
RGB = ("rgb24", "bgr24", "rgba", "bgr0", "gbrp", "rgb48le")
TARGETS = [(96, 128), (48, 64), (12, 16), (37, 41), (150, 200)]  # as it is, down, far down, odd with a cut, up
COLOURS = [(0, 0, 0), (255, 255, 255), (128, 128, 128), (200, 30, 60), (20, 60, 220), (30, 220, 40)]


def smooth(height, width, grey=False):
    """A picture whose neighbouring pixels differ by less than one level, at any resolution."""
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    picture = 127 + 60 * np.stack([np.sin(1.5 * x + y), np.cos(1.2 * x - y), np.sin(1.2 * y - x)], -1)
    return picture.mean(-1, keepdims=True).repeat(3, -1) if grey else picture


def seen(picture, height, width):
    """`smooth` of 96 x 128 pixels as a smaller or larger size shows it: cut centrally, a point for each pixel."""
    rows, columns = picture.shape[:2]
    step = min(rows / height, columns / width)
    y = (np.arange(height) + 0.5 - height / 2) * step + rows / 2 - 0.5
    x = (np.arange(width) + 0.5 - width / 2) * step + columns / 2 - 0.5
    lines = np.stack([[np.interp(x, np.arange(columns), line) for line in channel]
                      for channel in np.moveaxis(picture, -1, 0)])
    return np.stack([[np.interp(y, np.arange(rows), line) for line in channel.T] for channel in lines], -1
                    ).swapaxes(0, 1)


def planes_of(picture, pixels, matrix, limited):
    """Y, Cb and Cr of RGB by ITU-R BT.601 and BT.709; chroma lies on the left of its pixels (H.264, figure E-1)."""
    _, red, blue = MATRICES[matrix]
    r, g, b = np.moveaxis(picture / 255, -1, 0)
    luma = red * r + (1 - red - blue) * g + blue * b
    chroma = (b - luma) / (2 - 2 * blue), (r - luma) / (2 - 2 * red)
    bits = 10 if "10" in pixels else 8
    unit, top = 2 ** (bits - 8), 2**bits - 1
    found = [(16 + 219 * luma) * unit if limited else luma * top]
    if SUBSAMPLED[pixels]:
        down, across = SUBSAMPLED[pixels]
        found += [((128 + 224 * c) * unit if limited else 128 * unit + c * top).reshape(-1, down, picture.shape[1])
                  .mean(1)[:, ::across] for c in chroma]
    return [np.rint(plane).astype(np.uint16 if bits == 10 else np.uint8) for plane in found]


def frame_of(picture, pixels, matrix="unspecified", limited=True):
    height, width = picture.shape[:2]
    if pixels in RGB:
        frame = av.VideoFrame.from_ndarray(np.rint(picture).astype(np.uint8), format="rgb24")
        return frame if pixels == "rgb24" else frame.reformat(format=pixels)
    frame = av.VideoFrame(width, height, pixels)
    planes = planes_of(picture, pixels, matrix, limited)
    if pixels == "nv12":
        planes = [planes[0], np.stack(planes[1:], -1).reshape(height // 2, -1)]
    for plane, values in zip(frame.planes, planes, strict=True):
        room = plane.line_size // values.itemsize
        plane.update(np.pad(values, ((0, 0), (0, room - values.shape[1]))))
    frame.colorspace, frame.color_range = MATRICES[matrix][0], LIMITED if limited else FULL
    return frame


CASES = [(pixels, matrix, limited) for pixels in SUBSAMPLED for matrix in MATRICES
         for limited in ((False,) if pixels == "yuvj420p" else (True, False))]
CASES += [(pixels, "unspecified", False) for pixels in RGB]


@pytest.mark.parametrize(("pixels", "matrix", "limited"), CASES)
def test_pixels_equal_float_arithmetic(pixels, matrix, limited):
    """8-bit chroma of limited range alone leaves blue uncertain by 1.6 levels."""
    painter, grey = Painter(), pixels.startswith("gray")
    for height, width in TARGETS:
        picture = smooth(96, 128, grey)
        error = painter.paint(frame_of(picture, pixels, matrix, limited), height, width) - seen(picture, height, width)
        assert np.abs(error).max() <= 2.3 and np.abs(error).mean() < 0.9 and abs(error.mean()) < 0.7
        for colour in COLOURS[: 3 if grey else None]:
            flat = np.broadcast_to(np.array(colour, float), (96, 128, 3))
            found = painter.paint(frame_of(flat, pixels, matrix, limited), height, width)
            assert found.shape == (height, width, 3) and np.abs(found - flat[0, 0]).max() <= 2


@pytest.mark.parametrize("size", [(49, 64), (49, 65), (97, 33)])
@pytest.mark.parametrize("pixels", ["yuv444p", "gray", "rgb24"])
def test_odd_sizes_equal_float_arithmetic(pixels, size):
    picture = smooth(96, 128, pixels == "gray")[: size[0], : size[1]]
    for height, width in [size, (24, 32), (31, 17)]:
        found = Painter().paint(frame_of(picture, pixels), height, width)
        inner = np.s_[1:-1, 1:-1]
        assert np.abs(found - seen(picture, height, width))[inner].max() <= 2.5


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(("codec", "pixels", "suffix"), [("ffv1", "yuv420p", "mkv"), ("ffv1", "gray", "mkv"),
                                                         ("libx264", "yuv420p", "mp4"), ("libx264", "nv12", "mp4"),
                                                         ("ffv1", "yuv422p10le", "mkv"), ("png", "rgba", "mov")])
def test_a_file_says_its_range_and_matrix(tmp_path, codec, pixels, suffix, own):
    grey = pixels == "gray"
    for matrix in ("BT.709", "BT.601"):
        for limited in (True, False):
            path, picture = tmp_path / f"a.{suffix}", smooth(96, 128, grey)
            with av.open(str(path), "w") as container:
                stream = container.add_stream(codec, rate=25, options={"qp": "2"} if codec == "libx264" else {})
                stream.height, stream.width, stream.pix_fmt = 96, 128, pixels
                context = stream.codec_context
                context.colorspace, context.color_range = MATRICES[matrix][0], LIMITED if limited else FULL
                frame = frame_of(picture, pixels, matrix, limited)
                frame.pts, frame.time_base = 0, Fraction(1, 25)
                container.mux(stream.encode(frame))
                container.mux(stream.encode())
            with VideoReader(path) as reader:
                size = () if own else (48, 64)
                error = reader.frames([0], *size)[0] - seen(picture, *(size or (96, 128)))
            assert np.abs(error).max() <= (4 if codec == "libx264" else 2.3) and abs(error.mean()) < 0.8


def test_colours_keep_their_width_when_a_video_is_read_smaller(tmp_path):
    """Stripes as wide as a pixel that is read: half the width of the colours would make them purple."""
    stripes = np.where((np.arange(320) // 10 % 2)[None, :, None], (220, 30, 30), (30, 30, 220)).astype(np.uint8)
    path = write_video(tmp_path / "a.mp4", np.stack([stripes.repeat(80, 0)] * 2), crf=0)
    with VideoReader(path) as reader:
        small = reader.frames([0], 8, 32)[0].astype(int)
    assert np.abs(small[:, 1:-1] - stripes[:, 5::10][:, 1:-1]).max() <= 4


# Matrices of a track header (a, b, c, d, x, y), and the corners that are then shown: upper left, upper right, lower
# left, lower right of a picture whose own are R, G, B, Y.
DISPLAYS = {
    "plain": ((1, 0, 0, 1, 0, 0), "RGBY"), "mirrored": ((-1, 0, 0, 1, 64, 0), "GRYB"),
    "upside down": ((1, 0, 0, -1, 0, 48), "BYRG"), "turned 90": ((0, 1, -1, 0, 48, 0), "BRYG"),
    "turned 180": ((-1, 0, 0, -1, 64, 48), "YBGR"), "turned 270": ((0, -1, 1, 0, 0, 64), "GYRB"),
    "turned 90 and mirrored": ((0, 1, 1, 0, 0, 0), "RBGY"), "turned 270 and mirrored": ((0, -1, -1, 0, 48, 64), "YGBR"),
    "nothing but zeros": ((0, 0, 0, 0, 0, 0), "RGBY"),
}
CORNERS = {"R": (220, 30, 30), "G": (30, 200, 30), "B": (30, 30, 220), "Y": (220, 220, 30)}


@pytest.mark.parametrize(("angle", "shown"), [(0, "RG/BY"), (90, "GY/RB"), (180, "YB/GR"), (-90, "BR/YG")])
def test_pictures_with_data_that_pyav_cannot_name_are_read_and_turned(angle, shown, monkeypatch):
    """FFmpeg 8 gives pictures their EXIF data, and PyAV then raises ValueError for all data of the frame."""
    def unnamed(frame):
        raise ValueError("31 is not a valid Type")

    monkeypatch.setattr(sidedata, "SideDataContainer", unnamed)
    lying, turn = display_turn(SimpleNamespace(rotation=angle))
    assert lying == (abs(angle) == 90)
    assert "/".join("".join(row) for row in turn(np.array([["R", "G"], ["B", "Y"]]))) == shown


@pytest.mark.parametrize("name", DISPLAYS)
def test_display_matrices_are_applied(tmp_path, name):
    (a, b, c, d, x, y), shown = DISPLAYS[name]
    picture = np.full((48, 64, 3), 128, np.uint8)
    for corner, place in zip("RGBY", [np.s_[:16, :16], np.s_[:16, -16:], np.s_[-16:, :16], np.s_[-16:, -16:]],
                             strict=True):
        picture[place] = CORNERS[corner]
    path = write_video(tmp_path / "a.mp4", np.stack([picture] * 2))
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44  # past the version, times, numbers, layer and volume of version 0
    matrix = [a << 16, b << 16, 0, c << 16, d << 16, 0, x << 16, y << 16, 1 << 30 if any((a, b, c, d)) else 0]
    data[place : place + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)
    lies = bool(b)
    with VideoReader(path) as reader:
        own = reader.frames([1])[0]
        assert own.shape == ((64, 48, 3) if lies else (48, 64, 3))
        small = reader.frames([1], *((32, 24) if lies else (24, 32)))[0]
    for frame, edge in ((own, 6), (small, 3)):
        spots = frame[edge, edge], frame[edge, -edge], frame[-edge, edge], frame[-edge, -edge]
        near = [min(CORNERS, key=lambda k, s=spot: np.abs(np.array(CORNERS[k]) - s).sum()) for spot in spots]
        assert "".join(near) == shown
