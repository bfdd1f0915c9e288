"""Sound of videos as vectors of their frames."""

from __future__ import annotations

import wave

import numpy as np
import pytest

from tests.data.test_video_folder import numbered_video
from tests.refusals import refused
from vdm_jax.data.pipeline import Pipeline
from vdm_jax.data.sound import LogMel, SoundEmbeddings, beats_spectrogram, clap_spectrogram
from vdm_jax.data.video_folder import VideoFolder, VideoFolderSource
from vdm_jax.stages.inputs import device_fields
from vdm_jax.video.writing import write_video


def write_wav(path, sound, rate=16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((sound * 32767).astype("<i2").tobytes())


def tone(seconds, hertz=440.0, rate=16_000):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


@pytest.fixture(autouse=True)
def cache_elsewhere(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def spec_of(folder, **fields):
    return VideoFolder(**{"path": str(folder), "frames": 5, "height": 16, "width": 16, "fractions": (1.0, 0.0, 0.0),
                          **fields})


def test_a_beat_is_heard_in_its_frame_and_short_sounds_are_named(tmp_path):
    folder = tmp_path / "videos"
    for name in ("a", "short", "silent"):
        write_video(folder / f"{name}.mp4", numbered_video(10), fps=10, lossless=True)
    beat = np.zeros(16_000)
    beat[int(0.62 * 16_000) : int(0.68 * 16_000)] = tone(0.06)  # within frame 6 of 10
    write_wav(folder / "a.wav", beat)
    write_wav(folder / "short.wav", tone(0.5))
    source = VideoFolderSource(spec_of(folder, sound=LogMel(rows=2)))
    assert "lasts 0.5 s and its frames 1 s" in source.skipped["short.mp4"]
    assert "has no sound" in source.skipped["silent.mp4"]
    assert len(source) == 2
    first, second = source[0]["sound"], source[1]["sound"]
    assert first.shape == (5, 256) == (5, LogMel(rows=2).width) and first.dtype == np.float32
    assert second.mean(1).argmax() == 1 and second.mean(1)[1] > first.mean(1).max() + 0.2  # frames 5 to 9
    whole = VideoFolderSource(spec_of(folder, frame_stride=2, sound=LogMel(rows=2)))[0]["sound"]
    assert whole.mean(1).argmax() == 3  # of frames 0, 2, 4, 6, 8
    drawn = source.clip_at(0, np.random.default_rng(0), 5.0, 5)
    assert drawn["sound"].shape == (5, 256) and drawn["fps"] == 5
    fields = device_fields(Pipeline(source, batch_size=2, seed=0).batch(0))
    assert fields["sound"].shape == (2, 5, 256)
    (folder / "a.wav").unlink()
    with refused("VideoFolder.path", "has no sound"):
        VideoFolderSource(spec_of(folder, sound=LogMel()))


def test_vectors_of_any_encoder_are_read_by_their_rate(tmp_path):
    write_video(tmp_path / "videos" / "a.mp4", numbered_video(10), fps=10, lossless=True)
    (tmp_path / "vectors").mkdir()
    vectors = np.arange(50, dtype=np.float32)[:, None] * np.ones(3, np.float32)
    np.save(tmp_path / "vectors" / "a.npy", vectors)
    spec = SoundEmbeddings(path=str(tmp_path / "vectors"), width_of_vector=3, rate=50.0, rows=5)
    found = VideoFolderSource(spec_of(tmp_path / "videos", sound=spec))[1]["sound"]
    assert found.shape == (5, spec.width) and found[:, ::3].tolist() == np.arange(25, 50).reshape(5, 5).tolist()
    np.save(tmp_path / "vectors" / "a.npy", vectors[:40])
    with refused("VideoFolder.path", "0.8 s and its frames 1 s"):
        VideoFolderSource(spec_of(tmp_path / "videos", sound=spec))
    np.save(tmp_path / "vectors" / "a.npy", vectors[:, :2])
    with refused("sound.embeddings", "[50, 2]", "[N, 3]"):
        spec.track(tmp_path, "a.mp4")
    with (tmp_path / "vectors" / "zip.npy").open("wb") as file:
        np.savez(file, vectors)  # several arrays under the ending of one
    with refused("sound.embeddings", "zip.npy", "not a readable array"):
        spec.track(tmp_path, "zip.mp4")
    with refused("sound.embeddings", "none.npy"):
        spec.track(tmp_path, "none.mp4")


def test_a_tone_is_in_the_band_of_its_pitch():
    found = beats_spectrogram(tone(0.5, 1000.0))
    assert found.shape == (1 + (8000 - 400) // 160, 128)
    mel = 1127 * np.log1p(np.array([20, 1000, 8000]) / 700)
    assert found.mean(0).argmax() == pytest.approx(129 * (mel[1] - mel[0]) / (mel[2] - mel[0]) - 1, abs=1)
    found = clap_spectrogram(tone(0.2, 440.0, 48_000))
    assert found.shape[1] == 64 and 3 <= found.mean(0).argmax() <= 12
    assert beats_spectrogram(np.zeros(3)).shape == (1, 128) and np.isfinite(clap_spectrogram(np.zeros(3))).all()


@pytest.mark.full
def test_spectrograms_are_those_of_the_published_encoders():
    transformers = pytest.importorskip("transformers")
    rng = np.random.default_rng(0)
    sound = rng.uniform(-0.5, 0.5, 16_000).astype(np.float32)
    kaldi = transformers.Speech2TextFeatureExtractor(num_mel_bins=128, do_ceptral_normalize=False)
    wanted = (kaldi._extract_fbank_features(sound) - 15.41663) / (2 * 6.55582)
    np.testing.assert_allclose(beats_spectrogram(sound), wanted, atol=2e-3)
    clap = transformers.ClapFeatureExtractor(frequency_min=50)
    wanted = clap._np_extract_fbank_features(sound, clap.mel_filters_slaney)
    np.testing.assert_allclose(clap_spectrogram(sound), wanted, atol=2e-2)
