import av
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.video import writing
from vdm_jax.video.grids import sample_grid, tile_frames, tile_videos
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import write_png, write_video


def smooth_video(frames=10, height=49, width=65):
    y, x = np.mgrid[:height, :width]
    waves = [np.stack([127 + 120 * np.sin(x / 9 + t / 3), 127 + 120 * np.cos(y / 7 + t / 5), 0 * x + 100], -1)
             for t in range(frames)]
    return np.stack(waves).astype(np.uint8)


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def test_mp4_with_odd_sizes_keeps_pictures_times_and_rate(tmp_path):
    video = smooth_video()
    path = write_video(tmp_path / "new" / "a.mp4", video, fps=12.5)
    with VideoReader(path) as reader:
        assert reader.fps == pytest.approx(12.5)
        frames = reader.frames(range(10))
        assert frames.shape == (10, 50, 66, 3)
        assert psnr(frames[:, :49, :65], video) > 33
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
        times = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    np.testing.assert_allclose(times, np.arange(10) / 12.5, atol=1e-4)
    assert list(path.parent.iterdir()) == [path]


def test_lossless_mp4_is_exact(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (5, 33, 47, 3), np.uint8)
    with VideoReader(write_video(tmp_path / "a.mp4", noise, lossless=True)) as reader:
        np.testing.assert_array_equal(reader.frames(range(5)), noise)


def test_quality_follows_crf(tmp_path):
    video = smooth_video()
    sizes = [write_video(tmp_path / f"{crf}.mp4", video, crf=crf).stat().st_size for crf in (10, 40)]
    assert sizes[0] > 1.5 * sizes[1]


@pytest.mark.parametrize(("fps", "frames"), [(10, 10), (8, 10), (30, 10), (5, 1)])
def test_gif_keeps_pictures_and_rate(tmp_path, fps, frames):
    video = smooth_video(frames)
    with VideoReader(write_video(tmp_path / "a.gif", video, fps=fps)) as reader:
        assert len(reader) == frames
        assert psnr(reader.frames(range(frames)), video) > 31
        if frames > 1:  # times are whole hundredths of a second
            np.testing.assert_allclose(np.diff(reader.index.pts * float(reader.index.time_base)), 1 / fps, atol=0.0101)
            assert np.all(np.diff(reader.index.pts) > 0)


def test_png_holds_every_frame_pixel_by_pixel(tmp_path):
    from PIL import Image

    video = smooth_video(5, 70, 80)
    with Image.open(write_video(tmp_path / "a.png", video)) as image:
        picture = np.asarray(image)
    assert picture.shape == (2 * 70 + 2, 3 * 80 + 4, 3)
    np.testing.assert_array_equal(picture[72:, 82:162], video[4])
    assert (picture[72:, 164:] == 255).all()


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.png"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, name):
    path = write_video(tmp_path / name, smooth_video(3, 64, 64))
    before = path.read_bytes()

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(writing.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_video(path, smooth_video(6, 64, 64))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("a.webm", {}, ("writing.check_output", "'.webm'", "a.webm")),
        ("a", {}, ("writing.check_output", "''")),
        ("a.gif", {"lossless": True}, ("writing.write_video", "lossless=True", "a.gif")),
        ("a.mp4", {"fps": 0}, ("writing.check_output", "fps=0")),
        ("a.mp4", {"fps": float("nan")}, ("writing.check_output", "fps=nan")),
        ("a.mp4", {"crf": 52}, ("crf", "=52", "51")),
        ("a.mp4", {"video": np.zeros((2, 8, 8, 3), np.float32)}, ("writing._checked", "vdm_jax.video.arrays.to_uint8")),
        ("a.mp4", {"video": np.zeros((2, 8, 8, 1), np.uint8)}, ("writing._checked", "[T, H, W, 3]")),
        ("a.mp4", {"video": np.zeros((0, 8, 8, 3), np.uint8)}, ("writing._checked", "[0, 8, 8, 3]")),
    ],
)
def test_bad_requests(tmp_path, name, change, message):
    with refused(*message):
        write_video(**{"path": tmp_path / name, "video": smooth_video(2), **change})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "fps", "size", "permitted"),
    [("a.gif", 100, (8, 8), None), ("a.gif", 101, (8, 8), ("writing.check_output", "fps=101", "0.01", "100")),
     ("a.gif", 0.001, (8, 8), ("writing.check_output", "fps=0.001")), ("a.mp4", 1000, (8, 8), None),
     ("a.mp4", 1001, (8, 8), ("writing.check_output", "fps=1001", "0.01", "1000")), ("a.mp4", 8, (8, 16384), None),
     ("a.mp4", 8, (8, 16386), ("writing.check_output", "16386", "16384")),
     ("a.gif", 8, (65536, 1), ("writing.check_output", "65536", "1", "65535")), ("a.png", 1000, (8, 8), None)])
def test_what_a_format_cannot_hold_is_refused_and_all_else_is_written(tmp_path, name, fps, size, permitted):
    video = np.random.default_rng(0).integers(0, 256, (4, *size, 3), np.uint8)
    if permitted is None:
        write_video(tmp_path / name, video, fps=fps)
        if name != "a.png":
            with VideoReader(tmp_path / name) as reader:
                assert len(reader) == 4 and reader.fps == pytest.approx(fps)
    else:
        with refused(*permitted):
            write_video(tmp_path / name, video, fps=fps)
        assert not list(tmp_path.iterdir())


def test_write_png_refuses_other_arrays_and_suffixes(tmp_path):
    with refused("writing.write_png"):
        write_png(tmp_path / "a.jpg", np.zeros((4, 4, 3), np.uint8))
    with refused("writing.write_png", "[H, W, 3]"):
        write_png(tmp_path / "a.png", np.zeros((4, 4), np.uint8))


def test_sheet_has_a_row_per_video_and_a_column_per_frame():
    videos = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 20, 3), np.uint8)
    picture = sample_grid(videos)
    assert picture.shape == (2 * 64 + 2, 3 * 80 + 2 * 2, 3)  # enlarged four times
    np.testing.assert_array_equal(picture[66::4, 82:162:4], videos[1, 1])


def test_captions_are_drawn_above_their_rows_and_wrapped():
    videos = np.zeros((2, 2, 64, 64, 3), np.uint8)
    plain, captioned = sample_grid(videos), sample_grid(videos, ["short", "many words " * 10])
    extra = captioned.shape[0] - plain.shape[0]
    assert extra >= 16 + 3 * 16 and extra % 16 == 0
    strip = captioned[:16]
    assert strip.min() < 100 and (strip == 255).mean() > 0.5
    assert (captioned[16:80, :64] == 0).all()
    assert (sample_grid(videos, ["", "x"])[:16] == 255).all()


def test_tiling():
    videos = np.random.default_rng(0).integers(0, 256, (5, 4, 8, 10, 3), np.uint8)
    wide = tile_videos(videos, columns=3)
    assert wide.shape == (4, 2 * 8 + 2, 3 * 10 + 4, 3)
    np.testing.assert_array_equal(wide[:, 10:, 12:22], videos[4])
    assert tile_videos(videos).shape == wide.shape
    assert tile_frames(videos[0, :, :, :]).shape == (2 * 64 + 2, 2 * 80 + 2, 3)


def test_sheet_errors():
    videos = np.zeros((2, 2, 8, 8, 3), np.uint8)
    with refused("grids.sample_grid", "1", "2"):
        sample_grid(videos, ["one"])
    with refused("grids._checked", "[B, T, H, W, 3]"):
        sample_grid(videos.astype(np.float32))
    with refused("columns", "=0"):
        tile_videos(videos, columns=0)
