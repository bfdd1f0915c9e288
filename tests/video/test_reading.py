import gc
import io
import logging
import os
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.video import index_cache
from vdm_jax.video.frame_index import FrameIndex
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import encode_mp4, write_video

FRAMES = 90
STEPS = np.random.default_rng(0).integers(1, 12, FRAMES)
VARIABLE_PTS = np.cumsum(STEPS) - STEPS[0]


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("mp4", "libx264", {"g": "12", "bf": "0"}),
        ("mp4", "libx264", {"g": "250", "bf": "3"}),
        ("mov", "mpeg4", {"g": "10", "bf": "2"}),
        ("mkv", "libx264", {"g": "30", "bf": "2"}),
        ("webm", "libvpx-vp9", {"g": "15", "deadline": "realtime", "cpu-used": "8"}),
        ("webm", "libvpx", {"g": "15", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5"}),
    ],
)
def test_every_frame_of_a_variable_rate_file_is_the_right_one(tmp_path, numbered, suffix, codec, options):
    path = numbered.write(tmp_path / f"variable.{suffix}", VARIABLE_PTS, codec=codec, options=options)
    wanted = np.random.default_rng(1).permutation(FRAMES)
    with VideoReader(path) as reader:
        assert len(reader) == FRAMES and reader.index.timestamped
        assert numbered.numbers(reader.frames(wanted)) == wanted.tolist()
        for single in (0, 89, 41, 40):
            assert numbered.numbers(reader.frames([single])) == [single]
        assert numbered.numbers(reader.frames([7, 80, 7, 0, 80])) == [7, 80, 7, 0, 80]
        times = VARIABLE_PTS / 30
        np.testing.assert_array_equal(reader.index.at(times), np.arange(FRAMES))  # also where times are rounded
        np.testing.assert_array_equal(reader.index.at(times[1:] - 0.01), np.arange(FRAMES - 1))
        assert reader.duration == pytest.approx((VARIABLE_PTS[-1] + np.median(STEPS[1:])) / 30, abs=0.01)
        assert reader.fps == pytest.approx(FRAMES / reader.duration)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("reordered.avi", "libx264", {"bf": "3", "g": "30"}),  # AVI stores no display order
        ("offset.avi", "mpeg4", {"bf": "2", "g": "12"}),  # where seeks land behind the keyframe asked for
        ("bare.h264", "libx264", {"g": "30"}),  # no timestamps at all
        ("stream.mpg", "mpeg2video", {"g": "10"}),  # no index to seek by
    ],
)
def test_files_with_bad_or_no_timestamps_are_still_exact(tmp_path, numbered, name, codec, options):
    path = numbered.write(tmp_path / name, range(FRAMES), codec=codec, options=options)
    wanted = np.random.default_rng(2).permutation(FRAMES)
    with VideoReader(path) as reader:
        assert len(reader) == FRAMES
        assert numbered.numbers(reader.frames(wanted)) == wanted.tolist()


def test_gif_is_exact_although_every_packet_claims_to_be_a_keyframe(tmp_path, numbered):
    video = np.stack([numbered.frame(n) for n in range(30)])
    path = write_video(tmp_path / "a.gif", video, fps=10)
    with VideoReader(path) as reader:
        assert reader.index.keyframes.tolist() == [0]
        assert numbered.numbers(reader.frames([29, 3, 17])) == [29, 3, 17]


def test_frame_count_in_the_header_is_not_believed(tmp_path, numbered):
    path = numbered.write(tmp_path / "a.avi", range(20), codec="mpeg4")
    data = bytearray(path.read_bytes())
    for field in (data.index(b"avih") + 8 + 16, data.index(b"strh") + 8 + 32):  # dwTotalFrames, dwLength
        data[field : field + 4] = (444).to_bytes(4, "little")
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 444
    with VideoReader(path) as reader:
        assert len(reader) == 20
        assert numbered.numbers(reader.frames([19])) == [19]


def test_a_file_cut_short_gives_the_frames_that_are_left(tmp_path, numbered):
    path = numbered.write(tmp_path / "a.mkv", range(60), options={"g": "10", "bf": "0"})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.6)])
    with VideoReader(path) as reader:
        assert 10 < len(reader) < 60
        last = len(reader) - 1
        assert numbered.numbers(reader.frames([last, 0])) == [last, 0]


def test_damage_in_the_middle_is_an_error_and_never_another_frame(tmp_path, numbered):
    path = numbered.write(tmp_path / "a.mp4", range(60), options={"g": "20", "bf": "0"})
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    position, size = packets[25]
    data[position : position + size] = b"\xff" * size
    path.write_bytes(data)
    with VideoReader(path) as reader:
        with refused("containers.failure", "a.mp4", "25"):
            reader.frames([25])
        assert numbered.numbers(reader.frames([45, 3])) == [45, 3]


def test_center_crop_to_the_aspect_ratio_then_area(tmp_path):
    video = np.zeros((2, 40, 80, 3), np.uint8)
    video[:, :, 20:60] = [200, 40, 90]  # what a square crop keeps
    video[:, 10:20, 30:40] = 255
    path = write_video(tmp_path / "a.mp4", video, lossless=True)
    with VideoReader(path) as reader:
        small = reader.frames([0, 1], 20, 20)
        assert small.shape == (2, 20, 20, 3)
        expected = video[:, :, 20:60].reshape(2, 20, 2, 20, 2, 3).mean((2, 4))
        assert np.abs(small - expected).max() <= 3
        assert reader.frames([0], 30, 10).shape == (1, 30, 10, 3)
        assert reader.frames([0], 80, 200).shape == (1, 80, 200, 3)


def test_display_rotation_is_applied(tmp_path, numbered):
    path = numbered.write(tmp_path / "phone.mp4", range(3), rotation=90)
    with VideoReader(path) as reader:
        upright = reader.frames([2])[0]
        assert upright.shape == (64, 48, 3)
        assert numbered.read(np.rot90(upright, -1)) == 2  # it was turned counterclockwise for display
        assert reader.frames([2], 32, 24).shape == (1, 32, 24, 3)


def test_decoded_pictures_are_freed_at_once(tmp_path, numbered):
    """Not when garbage in cycles is looked for, which commands do rarely: pictures may have megabytes each."""
    path = numbered.write(tmp_path / "phone.mp4", range(12), rotation=90)
    gc.collect()
    gc.disable()
    try:
        before = sum(type(thing) is av.VideoFrame for thing in gc.get_objects())
        with VideoReader(path) as reader:
            reader.frames(range(12), 32, 24)
        assert sum(type(thing) is av.VideoFrame for thing in gc.get_objects()) == before
    finally:
        gc.enable()


def test_reading_from_memory(numbered):
    file = io.BytesIO()
    encode_mp4(file, np.stack([numbered.frame(n) for n in range(12)]), fps=10)
    with VideoReader(file) as reader:
        assert numbered.numbers(reader.frames(range(12))) == list(range(12))
    with VideoReader(file, FrameIndex.counted(12)) as reader:
        assert numbered.numbers(reader.frames([11, 4])) == [11, 4]


def test_unreadable_files_are_named(tmp_path):
    text = tmp_path / "notes.mp4"
    text.write_text("not a video" * 100)
    audio = tmp_path / "audio.mp4"
    with av.open(str(audio), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    for path, reason in [(text, "reading.VideoReader._open"), (audio, "containers.Media.video_stream"),
                         (tmp_path / "none.mp4", "reading.VideoReader._open"), (tmp_path, "reading.VideoReader._open")]:
        with refused(reason) as error:
            VideoReader(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(([90],), ("reading.VideoReader.frames", "90", "4")), (([-1],), ("reading.VideoReader.frames",)),
    (([],), ("reading.VideoReader.frames",)),
     (([0], 8), ("reading.VideoReader.frames", "height=8", "width=None"))],
)
def test_bad_requests(tmp_path, numbered, arguments, message):
    path = numbered.write(tmp_path / "a.mp4", range(5))
    with VideoReader(path) as reader, refused(*message):
        reader.frames(*arguments)


def test_index_survives_json():
    index = FrameIndex(np.array([5, 6, 7, 9, 11, 12]), np.array([0, 3]), Fraction(1, 30))
    data = index.to_json()
    assert data["steps"] == [[1, 2], [2, 2], [1, 1]]
    again = FrameIndex.from_json(data)
    np.testing.assert_array_equal(again.pts, index.pts)
    np.testing.assert_array_equal(again.keyframes, index.keyframes)
    assert (again.time_base, again.timestamped) == (index.time_base, True)
    single = FrameIndex.from_json(FrameIndex.counted(1, Fraction(24)).to_json())
    assert len(single) == 1 and single.fps == 24 and not single.timestamped


def test_cached_index_is_used_until_the_file_changes(tmp_path, numbered, monkeypatch, caplog):
    good, bad = numbered.write(tmp_path / "a.mp4", range(9)), tmp_path / "b.mp4"
    bad.write_text("no")
    cache = tmp_path / "cache" / "index.json"

    def lengths():
        return [x if isinstance(x, str) else len(x) for x in index_cache.index_files([good, bad], cache)]

    first = lengths()
    assert first[0] == 9 and "not a readable video" in first[1]
    with monkeypatch.context() as patch:
        patch.setattr(index_cache, "_index_entry", lambda path: pytest.fail(f"{path} was read again"))
        assert lengths() == first
    numbered.write(good, range(12))
    assert lengths()[0] == 12
    cache.write_text("{")
    with caplog.at_level(logging.WARNING):
        assert lengths()[0] == 12
    assert "is unreadable" in caplog.text


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path, numbered, caplog):
    path = numbered.write(tmp_path / "a.mp4", range(5))
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        index, = index_cache.index_files([path], tmp_path / "file" / "index.json")
    assert len(index) == 5 and "cannot be written" in caplog.text


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert str(index_cache.default_cache_folder()) == os.path.join(tmp_path, "vdm_jax", "video_index")
