"""Random access equals decoding from the start, over the encoders and containers that PyAV carries."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest

from vdm_jax.video import containers
from vdm_jax.video.pictures import Painter
from vdm_jax.video.reading import VideoReader

FRAMES = 40
# (codec, pixel format, containers); codecs that this build of FFmpeg lacks are passed over.
CODECS = [
    ("libx264", "yuv420p", ("mp4", "mkv", "ts", "avi", "h264", "flv")),
    ("libx265", "yuv420p", ("mp4", "ts")),
    ("mpeg4", "yuv420p", ("mp4", "avi", "ts", "m4v")),
    ("mpeg2video", "yuv420p", ("mpg", "ts", "mkv")),
    ("mpeg1video", "yuv420p", ("mpg", "mp4")),
    ("libvpx", "yuv420p", ("webm",)),
    ("libvpx-vp9", "yuv420p", ("webm", "mp4")),
    ("mjpeg", "yuvj420p", ("avi", "mov")),
    ("prores_ks", "yuv422p10le", ("mov",)),
    ("ffv1", "yuv420p", ("mkv", "avi")),
    ("qtrle", "rgb24", ("mov",)),
    ("png", "pal8", ("mov", "mkv")),
    ("rawvideo", "yuv420p", ("avi", "nut")),
    ("msmpeg4v2", "yuv420p", ("avi",)),
    ("wmv2", "yuv420p", ("asf",)),
    ("flv", "yuv420p", ("flv",)),
    ("zmbv", "bgr0", ("avi",)),
    ("snow", "yuv420p", ("avi",)),
]
SUITE = [(codec, pixels, suffix) for codec, pixels, suffixes in CODECS for suffix in suffixes]
OPTIONS = {"libx264": {"g": "9", "bf": "2", "x264-params": "open-gop=1", "preset": "ultrafast"},
           "libx265": {"preset": "ultrafast", "x265-params": "keyint=9:log-level=none"},
           "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "g": "9"},
           "libvpx": {"auto-alt-ref": "1", "lag-in-frames": "10", "cpu-used": "5", "g": "9"},
           "mpeg4": {"g": "9", "bf": "2"}, "mpeg2video": {"g": "9", "bf": "2"}, "mpeg1video": {"g": "9", "bf": "2"}}


def encoded(path, numbered, codec, pixels, options, frames=FRAMES, size=(48, 64), form=None):
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = Fraction(1, 25)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered.frame(number, *size), format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("codec", "pixels", "suffix"), SUITE)
def test_random_access_equals_decoding_from_the_start(tmp_path, numbered, codec, pixels, suffix):
    try:
        path = encoded(tmp_path / f"a.{suffix}", numbered, codec, pixels, OPTIONS.get(codec, {"g": "9"}))
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"this FFmpeg does not write it: {error}")
    with av.open(str(path)) as container:
        painter = Painter()
        truth = [painter.paint(frame, 48, 64) for frame in container.decode(video=0)]
    with VideoReader(path) as reader:
        assert len(reader) == len(truth) >= FRAMES - 1
        wanted = np.random.default_rng(0).permutation(len(truth))[:16]
        for number in wanted:
            np.testing.assert_array_equal(reader.frames([number])[0], truth[number])
        np.testing.assert_array_equal(reader.frames(wanted), np.stack([truth[number] for number in wanted]))


HARDWARE = ("amf", "cuvid", "d3d12va", "mediacodec", "mf", "nvenc", "omx", "qsv", "v4l2m2m", "vaapi", "videotoolbox",
            "vulkan")


def encoders():
    """Names and first pixel formats of the software encoders of video that PyAV carries.

    SVT-AV1, which is also what "av1" stands for, is left out: as root it gives the thread that calls it real-time
    priority, which then starves all other programs.
    """
    for name in sorted(av.codecs_available):
        try:
            codec = av.codec.Codec(name, "w")
        except (av.FFmpegError, ValueError):  # decodes only
            continue
        if codec.type == "video" and not codec.name.endswith((*HARDWARE, "svtav1")):
            yield name, codec.video_formats[0].name if codec.video_formats else "yuv420p"


@pytest.mark.parametrize("form", ["matroska", "mov", "avi", "nut"])
def test_random_access_equals_decoding_from_the_start_for_all_encoders(tmp_path, numbered, form):
    compared = []
    for codec, pixels in encoders():
        path = tmp_path / codec
        try:
            encoded(path, numbered, codec, pixels, {"g": "5"}, frames=14, form=form)
            with av.open(str(path)) as container:
                truth = [numbered.read(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
        except (av.FFmpegError, ValueError, OSError):  # not for this container, this size or this pixel format
            continue
        numbers, _ = exact(path, numbered)
        assert numbers == truth, codec
        compared.append(codec)
    assert len(compared) >= 10


def vops(data):
    """The places of the pictures (VOP start codes) of an MPEG-4 packet."""
    return [i for i in range(len(data) - 4) if data[i : i + 4] == b"\0\0\1\xb6"]


def test_packed_bframes_are_read_frame_by_frame(tmp_path, numbered):
    """DivX packs a P picture and the B picture shown before it in one packet; an empty picture takes the B's place."""
    source = encoded(tmp_path / "a.mp4", numbered, "mpeg4", "yuv420p", {"g": "12", "bf": "1"}, form="mp4")
    with av.open(str(source)) as container:
        header = container.streams.video[0].codec_context.extradata
        packets = [(bytes(p), p.is_keyframe) for p in container.demux(video=0) if p.size]
    bidirectional = [data[vops(data)[0] + 4] >> 6 == 2 for data, _ in packets]
    nothing = b"\0\0\1\xb6\x51\x00\x00"  # a P picture, time as before, not coded
    packed, place = [], 0
    marker = header + b"\0\0\1\xb2DivX503b1393p"
    while place < len(packets):
        data, key = packets[place]
        if place + 1 < len(packets) and bidirectional[place + 1]:
            packed += [(data + packets[place + 1][0], key), (nothing, False)]
            place += 2
        else:
            packed.append((data, key))
            place += 1
    assert any(bidirectional)
    path = tmp_path / "packed.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.extradata = marker
        for number, (data, key) in enumerate(packed):
            packet = av.Packet(marker + data if key else data)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 25), stream, key
            container.mux(packet)
    with av.open(str(path)) as container:
        truth = [numbered.read(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert len(truth) > FRAMES // 2
    with VideoReader(path) as reader:
        assert len(reader) == len(truth)
        order = np.random.default_rng(1).permutation(len(truth))
        assert [numbered.numbers(reader.frames([n]))[0] for n in order] == [truth[n] for n in order]


def copied(source, path, unit):
    """The packets of a file in another container, as `ffmpeg -c copy` puts them there; AVI counts units of time."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        stream.time_base = unit
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    return path


def exact(path, numbered):
    """The numbers that frames show, read in order; reading them at random must give the same. And the rate."""
    with VideoReader(path) as reader:
        found = numbered.numbers(reader.frames(range(len(reader))))
        order = np.random.default_rng(5).permutation(len(reader))
        assert [numbered.numbers(reader.frames([n]))[0] for n in order] == [found[n] for n in order]
        return found, reader.fps


@pytest.mark.parametrize(("codec", "suffix", "units"), [("libx264", "avi", 50), ("libx264", "avi", 25),
                                                        ("libx264", "mkv", 1000), ("libx264", "ts", 90000),
                                                        ("mpeg4", "avi", 25), ("mpeg4", "avi", 50)])
def test_copied_bframes_keep_frames_and_rate(tmp_path, numbered, codec, suffix, units):
    """The header of an AVI file counts twice the frames where its unit is half a frame."""
    form = "ts" if codec == "libx264" and suffix == "avi" else "mp4"  # AVI wants start codes
    source = numbered.write(tmp_path / f"a.{form}", range(30), codec=codec, options={"bf": "2", "g": "9"}, rate=25)
    numbers, fps = exact(copied(source, tmp_path / f"b.{suffix}", Fraction(1, units)), numbered)
    assert numbers == list(range(30)) and fps == pytest.approx(25, rel=0.04)


@pytest.mark.parametrize("cut", [0, 3, 10, 14])
def test_edit_lists_that_cut_the_beginning(tmp_path, numbered, cut):
    """An edit may begin between keyframes: what lies before it is decoded and not shown (ISO/IEC 14496-12, 8.6.6)."""
    path = numbered.write(tmp_path / "a.mp4", range(40), options={"bf": "2", "g": "9"}, rate=25)
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") + 16  # past version, flags, number of edits and the first one's length: its beginning
    with av.open(str(path)) as container:
        unit = int(Fraction(1, 25) / container.streams.video[0].time_base)
    begin = int.from_bytes(data[place : place + 4], "big")
    data[place : place + 4] = (begin + cut * unit).to_bytes(4, "big")
    path.write_bytes(data)
    with av.open(str(path)) as container:
        truth = [numbered.read(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    numbers, fps = exact(path, numbered)
    assert numbers == truth and numbers[0] == cut and numbers[-1] == 39 and fps == pytest.approx(25)


@pytest.mark.parametrize("suffix", ["h264", "ts", "mpg"])
def test_parameters_that_change_in_the_middle(tmp_path, numbered, suffix):
    """Two streams joined byte by byte, the second with other parameters of the encoder."""
    codec = "mpeg2video" if suffix == "mpg" else "libx264"
    options = ({"bf": "0", "g": "9"}, {"bf": "2", "g": "250"})
    if codec == "libx264":
        options = (options[0] | {"x264-params": "cabac=0:ref=1"}, options[1] | {"x264-params": "8x8dct=1:ref=4"})
    parts = [numbered.write(tmp_path / f"{n}.{suffix}", range(20), codec=codec, options=o, rate=25)
             for n, o in enumerate(options)]
    path = tmp_path / f"both.{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    numbers, _ = exact(path, numbered)
    assert len(numbers) >= 38 and numbers[:19] == list(range(19)) and numbers[-10:] == list(range(10, 20))


def test_ordinary_files_are_still_sought_and_not_decoded_from_the_start(tmp_path, numbered):
    path = numbered.write(tmp_path / "a.mp4", range(60), options={"g": "10", "bf": "2", "sc_threshold": "0"})
    with VideoReader(path) as reader:
        assert reader.index.keyframes.tolist() == [0, 10, 20, 30, 40, 50]
        reader._open = lambda: pytest.fail("decoded from the start")
        assert numbered.numbers(reader.frames([55, 12])) == [55, 12]


def test_reading_forward_without_seeks_decodes_every_frame_once(tmp_path, numbered, monkeypatch):
    path = numbered.write(tmp_path / "a.ts", range(60), codec="mpeg2video", options={"g": "10"})
    with VideoReader(path) as reader:
        reader.frames([0])
        monkeypatch.setattr(reader, "_open", lambda: pytest.fail("began again"))
        assert [numbered.numbers(reader.frames([n]))[0] for n in range(1, 60, 7)] == list(range(1, 60, 7))


NAMES = ["12:30.mp4", "2024-01-01T12:30:00.mp4", "[x].mp4", "100%d.mp4", "-i.mp4", "a\\b.mp4", "a\nb.mp4",
         "concat:a.mp4", os.fsdecode(b"caf\xe9.mp4"), "x" * 250 + ".mp4"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
def test_names_mean_nothing_to_ffmpeg(tmp_path, monkeypatch, numbered, name, suffix):
    from vdm_jax.video.writing import write_video

    monkeypatch.chdir(tmp_path)
    name = name[:-4] + suffix
    write_video(name, np.stack([numbered.frame(n) for n in range(3)]), fps=10)
    assert os.listdir(tmp_path) == [name]
    with VideoReader(name) as reader:
        assert "\n" not in reader.name and reader.name.encode()
        if suffix != ".png":
            assert numbered.numbers(reader.frames([2, 0])) == [2, 0]


def test_playlists_open_no_other_file(tmp_path, numbered):
    numbered.write(tmp_path / "secret.ts", range(3))
    for text in (f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/secret.ts\n#EXT-X-ENDLIST\n",
                 "ffconcat version 1.0\nfile secret.ts\n"):
        (tmp_path / "list.mp4").write_text(text)
        with pytest.raises(containers.UserError, match=r"list\.mp4"):
            VideoReader(tmp_path / "list.mp4")


def test_pictures_that_change_size_have_the_size_of_the_first(tmp_path, numbered):
    small = numbered.write(tmp_path / "a.ts", range(10))
    large = numbered.write(tmp_path / "b.ts", range(10), size=(96, 128))
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    with VideoReader(both) as reader:
        frames = reader.frames(range(len(reader)))
        assert frames.shape[1:] == (48, 64, 3) and numbered.numbers(frames)[:10] == list(range(10))
        np.testing.assert_array_equal(reader.frames([len(reader) - 1])[0], frames[-1])


def test_streams_without_a_decoder_and_limits_are_said(tmp_path, numbered, monkeypatch):
    path = numbered.write(tmp_path / "a.mp4", range(5))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"avc1\0\0\0\0", b"zzzz\0\0\0\0"))
    with pytest.raises(containers.UserError, match=r"a\.mp4: no decoder"):
        VideoReader(path)
    path.write_bytes(data)
    with monkeypatch.context() as patch:
        patch.setattr(containers, "MAX_PIXELS", 1000)
        with pytest.raises(containers.UserError, match="64 x 48 pixels; permitted: 1000"):
            VideoReader(path)
    monkeypatch.setattr(containers, "MAX_FRAMES", 3)
    with pytest.raises(containers.UserError, match="more than 3 frames"):
        VideoReader(path)


def test_a_single_frame_has_the_rate_it_was_written_with(tmp_path, numbered):
    for suffix in ("mp4", "mkv", "avi"):
        path = numbered.write(tmp_path / f"a.{suffix}", [0], rate=25, codec="mpeg4")
        with VideoReader(path) as reader:
            assert len(reader) == 1 and reader.fps == pytest.approx(25, rel=0.05)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "mpg"])
def test_damaged_bytes_give_frames_or_one_line(tmp_path, numbered, suffix):
    codec = "mpeg2video" if suffix == "mpg" else "mpeg4"
    whole = encoded(tmp_path / f"a.{suffix}", numbered, codec, "yuv420p", {"g": "4"}, frames=8).read_bytes()
    rng, clean = np.random.default_rng(3), 0
    for _ in range(50):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 20)):
            data[place] = rng.integers(256)
        data = data[: rng.integers(1, len(data) + 1)] if rng.random() < 0.3 else data
        path = tmp_path / f"b.{suffix}"
        path.write_bytes(data)
        try:
            with VideoReader(path) as reader:
                assert reader.frames([len(reader) - 1, 0], 8, 8).shape == (2, 8, 8, 3)
            clean += 1
        except containers.UserError as error:
            assert "\n" not in str(error)
    assert clean > 5
