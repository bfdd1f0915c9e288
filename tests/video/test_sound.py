"""Sound that goes along into a video made anew."""

from fractions import Fraction

import av
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.video.sound import has_sound, read_sound
from vdm_jax.video.writing import Sound, write_frames

RATE = 8000  # samples a second


def write_sounding(path, codec, seconds=2.0, first=0.0, fps=10):
    """A grey video with a tone that rises; its frames begin at `first` seconds."""
    times = np.arange(int(RATE * seconds)) / RATE
    tone = (0.5 * np.sin(2 * np.pi * (200 + 150 * times) * times)).astype(np.float32)
    with av.open(str(path), "w") as container:
        video, sound = container.add_stream("mpeg4", rate=fps), container.add_stream(codec, rate=RATE, layout="mono")
        video.width, video.height, video.pix_fmt = 16, 16, "yuv420p"
        for number in range(int(seconds * fps)):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 90, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number + int(first * fps), Fraction(1, fps)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        format_ = "s16" if codec.startswith("pcm") else "fltp"
        samples = (tone * 32767).astype(np.int16) if format_ == "s16" else tone
        for start in range(0, len(samples), 800):
            part = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None, start : start + 800]), format=format_,
                                              layout="mono")
            part.sample_rate, part.pts, part.time_base = RATE, start, Fraction(1, RATE)
            container.mux(sound.encode(part))
        container.mux(sound.encode())
    return path, tone


@pytest.mark.parametrize("name,codec", [("a.mp4", "aac"), ("a.mov", "pcm_s16le")])
def test_a_video_made_anew_sounds_like_the_file(tmp_path, name, codec):
    path, tone = write_sounding(tmp_path / name, codec)
    assert has_sound(path)
    frames = np.zeros((20, 16, 16, 3), np.uint8)
    made = write_frames(tmp_path / "made.mp4", frames, 10, sound=Sound(path, 0.0, 2.0))
    found, expected = read_sound(made, RATE), read_sound(path, RATE)
    if codec == "aac":  # packet for packet
        np.testing.assert_array_equal(found[: len(expected)], expected[: len(found)])
    length = min(len(found), len(tone)) - 4000
    lags = [np.corrcoef(found[1000 + lag : length + lag], tone[1000:length])[0, 1] for lag in range(-40, 41)]
    assert max(lags) > 0.95  # the tone at its time: a lag of 40 samples is 5 ms
    with av.open(str(made)) as container:
        assert len(list(container.decode(video=0))) == 20


def test_sound_of_a_part_begins_and_ends_with_it(tmp_path):
    path, tone = write_sounding(tmp_path / "a.mov", "pcm_s16le")
    made = write_frames(tmp_path / "made.mp4", np.zeros((5, 16, 16, 3), np.uint8), 10, sound=Sound(path, 1.0, 0.5))
    found = read_sound(made, RATE)
    assert 0.4 < len(found) / RATE < 0.7
    part, lags = tone[RATE + 500 : RATE + 3000], range(-400, min(1000, len(found) - 3000), 4)
    assert max(np.corrcoef(found[500 + lag : 3000 + lag], part)[0, 1] for lag in lags) > 0.9


def test_a_file_without_sound(tmp_path):
    path = write_frames(tmp_path / "silent.mp4", np.zeros((3, 16, 16, 3), np.uint8), 10)
    assert not has_sound(path)
    with refused("sound", "silent.mp4", "has no sound"):
        write_frames(tmp_path / "made.mp4", np.zeros((3, 16, 16, 3), np.uint8), 10, sound=Sound(path, 0.0, 1.0))
    assert not (tmp_path / "made.mp4").exists()
