"""Folders of video files: pairs by name, distances of folders, sound, captions, and what is refused."""

import json

import numpy as np
import pytest

from tests.metrics.test_av_align import FPS, bumps, clicks
from tests.refusals import refused
from vdm_jax.commands.main import main
from vdm_jax.evaluation import video_files
from vdm_jax.evaluation.video_files import FileSettings, evaluate_files
from vdm_jax.metrics import features as features_of
from vdm_jax.metrics import frames, onsets
from vdm_jax.metrics.detectors import i3d, weights
from vdm_jax.metrics.frechet import Moments, frechet_distance
from vdm_jax.video.sound import read_sound
from vdm_jax.video.writing import write_video

COUNT = 10


def draw(seed, count=COUNT):
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 16, 32, 3), np.uint8)


def write_wav(path, sound):
    import wave

    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(onsets.RATE)
        file.writeframes((sound * 32767).astype("<i2").tobytes())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of files without loss."""
    root = tmp_path_factory.mktemp("files")
    for name, seed in (("made", 0), ("real", 1)):
        (root / name).mkdir()
        for i, video in enumerate(draw(seed)):
            write_video(root / name / f"{i:02d}.mp4", video, FPS, lossless=True)
    return root


def test_pairs_are_files_of_one_name(folders, capsys):
    command = ["measure", str(folders / "made"), "--against", str(folders / "real"), "--metrics", "psnr", "ssim",
               "--given-frames", "1", "--out", str(folders / "scores.json")]
    assert main(command) == 0
    psnr, ssim = json.loads((folders / "scores.json").read_text())["scores"]
    assert psnr["value"] == pytest.approx(frames.psnr(draw(0)[:, 1:], draw(1)[:, 1:]).mean())
    assert ssim["value"] == pytest.approx(frames.ssim(draw(0)[:, 1:], draw(1)[:, 1:]).mean())
    assert psnr["conditions"]["frames"] == 3 and psnr["conditions"]["size"] == "16x32"
    assert "| psnr |" in capsys.readouterr().out


def test_distances_are_of_the_folders(folders, monkeypatch):
    means = lambda clips, resize: np.asarray(clips, float).mean((1, 2, 3))
    monkeypatch.setattr(features_of, "i3d_features", means)
    monkeypatch.setattr(weights, "find", lambda file: None)
    monkeypatch.setattr(i3d, "LEAST_FRAMES", 4)
    settings = FileSettings(metrics=("fvd", "is_i3d"), split="test", resamples=4)
    found = evaluate_files(folders / "made", settings, folders / "real")
    fvd, score = found.scores
    expected = frechet_distance(*(Moments.of(means(draw(seed), "")) for seed in (1, 0)))
    assert fvd.value == pytest.approx(expected, rel=1e-6) and fvd.label == "fvd (original)"
    assert fvd.conditions["split"] == "test" and fvd.conditions["real_clips"] == COUNT
    assert score.metric == "is_i3d" and [one.metric for one in found.real] == ["is_i3d"]
    off = evaluate_files(folders / "made", FileSettings(metrics=("fvd",), protocol="vdm_bair"), folders / "real")
    assert "split not stated instead of test" in off.scores[0].deviations


def test_sound_next_to_and_in_the_file(tmp_path):
    pytest.importorskip("cv2", reason="optical flow needs the extra [metrics]")
    times = np.array([3, 7, 12]) / FPS
    for name, late in (("a", 0), ("b", 2)):
        write_video(tmp_path / f"{name}.mp4", bumps((3, 7, 12)), FPS)
        write_wav(tmp_path / f"{name}.wav", clicks(times + late / FPS, 2.0))
    (score,) = evaluate_files(tmp_path, FileSettings(metrics=("av_align",))).scores
    assert score.value == 0.5 and score.better == "higher" and score.conditions["videos"] == 2
    assert score.conditions["without_peaks"] == 0 and score.conditions["flow"] == "Farneback"
    with_sound(tmp_path / "b.mp4", tmp_path / "c.mp4", clicks(times, 2.0))
    (tmp_path / "b.mp4").unlink()
    assert evaluate_files(tmp_path, FileSettings(metrics=("av_align",))).scores[0].value == 1
    (tmp_path / "a.wav").unlink()
    with refused("sound", "a.mp4"):
        read_sound(tmp_path / "a.mp4", 22_050)


def with_sound(video, out, sound):
    """The video with a stream of sound."""
    import av

    with av.open(str(video)) as source, av.open(str(out), "w") as made:
        pictures = made.add_stream_from_template(source.streams.video[0])
        stream = made.add_stream("aac", rate=onsets.RATE, layout="mono")
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = pictures
                made.mux(packet)
        frame = av.AudioFrame.from_ndarray(sound[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts = onsets.RATE, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            made.mux(packet)


def test_files_whose_pictures_change_size_count_at_the_first_size(tmp_path):
    """As broadcasts and joined transport streams do."""
    import av

    (tmp_path / "v").mkdir()
    with open(tmp_path / "v" / "a.ts", "wb") as joined:
        for height, width in ((48, 64), (96, 128)):
            with av.open(str(tmp_path / "part.ts"), "w") as made:
                stream = made.add_stream("mpeg2video", rate=25)
                stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
                for grey in (60, 60, 60, 60):
                    frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), grey, np.uint8), format="rgb24")
                    made.mux(stream.encode(frame))
                made.mux(stream.encode())
            joined.write((tmp_path / "part.ts").read_bytes())
    result = evaluate_files(tmp_path / "v", FileSettings(metrics=("psnr",)), tmp_path / "v")
    assert result.scores[0].conditions["size"] == "48x64" and result.scores[0].conditions["frames"] >= 7


def test_what_cannot_be_measured_is_refused(folders, tmp_path, monkeypatch):
    made, real = folders / "made", folders / "real"
    with refused("video_files._check"):
        evaluate_files(made, FileSettings(metrics=("psnr",)))
    write_video(tmp_path / "00.mp4", draw(0)[0], FPS, lossless=True)
    with refused("video_files._check"):
        evaluate_files(tmp_path, FileSettings(metrics=("psnr",)), real)
    write_video(tmp_path / "01.mp4", draw(0)[0][:3], FPS, lossless=True)
    monkeypatch.setattr(weights, "find", lambda file: None)
    with refused("video_files._Files._checked_shape", "01.mp4", "[3, 16, 32]", "00.mp4", "[4, 16, 32]"):
        evaluate_files(tmp_path, FileSettings(metrics=("psnr",)), tmp_path)
    with refused("video_files._check", "[4, 16, 32]"):
        monkeypatch.setattr("vdm_jax.metrics.flow.require_opencv", lambda: None)
        evaluate_files(made, FileSettings(metrics=("motion",)))
    with refused("FileSettings.metrics", "av_align"):
        FileSettings(metrics=("fib",))
    with refused("videos.path"):
        evaluate_files(tmp_path / "gone", FileSettings(metrics=("motion",)))


def test_what_two_folders_do_not_permit_is_refused_before_a_file_is_measured(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "find", lambda file: None)
    monkeypatch.setattr(i3d, "LEAST_FRAMES", 3)
    monkeypatch.setattr(video_files._Files, "measured", lambda *arguments: pytest.fail("measured"))
    made, fvd = folders / "made", FileSettings(metrics=("fvd",))
    for number in range(2):
        write_video(tmp_path / f"{number}.mp4", draw(0)[number][:3], FPS, lossless=True)
    with refused("video_files._check_sides", "4", "frames=3"):
        evaluate_files(made, fvd, tmp_path)
    (tmp_path / "1.mp4").unlink()
    with refused("video_files._check_sides", "1", "2"):
        evaluate_files(made, fvd, tmp_path)
    with refused("given_frames", "=4"):
        evaluate_files(made, FileSettings(metrics=("psnr",), given_frames=4), made)


def test_captions_stand_beside_the_files(folders, tmp_path, monkeypatch):
    from vdm_jax.metrics.detectors import clip

    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path))
    (tmp_path / "clip_ViT-B-32.safetensors").write_text("")
    (tmp_path / "merges").mkdir()
    monkeypatch.setattr(clip, "merges_file", lambda name: None)
    monkeypatch.setattr(clip, "image_embeddings", lambda frames, name: frames.reshape(len(frames), -1)[:, :2] * 1.0)
    seen = []
    monkeypatch.setattr(clip, "text_embeddings", lambda texts, name: seen.extend(texts) or np.ones((len(texts), 2)))
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", draw(0)[0], FPS, lossless=True)
    with refused("video_files._Files.captions", "a.mp4"):
        evaluate_files(tmp_path / "videos", FileSettings(metrics=("clipsim",)))
    (tmp_path / "videos" / "a.txt").write_text("a red 3\n")
    assert 0 < evaluate_files(tmp_path / "videos", FileSettings(metrics=("clipsim",))).scores[0].value <= 1
    assert seen == ["a red 3"]
