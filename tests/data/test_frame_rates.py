"""Clips at frame rates that are drawn: the distribution and its course, sources that can, the pipeline's contract."""

from __future__ import annotations

import numpy as np
import pytest

from tests.data.test_pipeline import Clips
from tests.data.test_video_folder import ALL_TRAIN, numbered_video, numbers
from tests.refusals import refused
from vdm_jax.configuration import from_json, to_json
from vdm_jax.data.frame_rates import FrameRates
from vdm_jax.data.pipeline import Pipeline
from vdm_jax.data.video_folder import VideoFolder, VideoFolderSource
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.digits.tfds import PreparedDigitsSource
from vdm_jax.video.strides import clip_by_stride, stride_for
from vdm_jax.video.writing import write_video


class AnyRate(Clips):
    """Clip i at any rate."""

    def clip_at(self, index, rng, fps, frames):
        clip = self[index]
        clip["video"] = np.repeat(clip["video"][:1], frames, axis=0)
        clip["video"][..., 1] = rng.integers(256)
        return clip | {"fps": fps}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Files of 21 and 11 frames at 10 per second."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a.mp4", numbered_video(21), fps=10, lossless=True)
    write_video(folder / "b.mp4", numbered_video(11), fps=10, lossless=True)
    return VideoFolderSource(VideoFolder(path=str(folder), fractions=ALL_TRAIN, frames=5, height=16, width=16,
                                         cache=str(tmp_path_factory.mktemp("cache"))))


@pytest.mark.parametrize("course", ["linear", "cosine"])
def test_rates_go_from_high_to_low(course):
    rates = FrameRates(steps=100, course=course)
    assert rates.shape(0) == (4.0, 1.0) and rates.shape(100) == rates.shape(10**6) == (1.0, 4.0)
    np.testing.assert_allclose(rates.shape(50), (2.5, 2.5))
    rng = np.random.default_rng(0)
    early, middle, late = (np.array([rates.draw(step, rng) for _ in range(500)]) for step in (0, 50, 100))
    assert min(early.min(), late.min()) >= 1 and max(early.max(), late.max()) <= 30
    np.testing.assert_allclose([early.mean(), middle.mean(), late.mean()], [24.2, 15.5, 6.8], atol=1.0)
    assert rates.shape(25)[0] == pytest.approx(3.25 if course == "linear" else 4 - 3 * (1 - 2**-0.5) / 2)
    assert from_json(FrameRates, to_json(rates)) == rates


def test_a_folder_of_videos_is_read_at_any_rate(source):
    def clip(index, fps, frames, seed=0):
        return source.clip_at(index, np.random.default_rng(seed), fps, frames)

    for fps, frames, steps in ((5.0, 5, {2}), (10.0, 6, {1}), (20.0, 5, {0, 1})):
        out = clip(0, fps, frames)
        assert out["video"].shape == (frames, 16, 16, 3) and out["fps"] == fps
        assert set(np.diff(numbers(out))) == steps
    starts = {numbers(clip(0, 10.0, 5, seed))[0] for seed in range(20)}
    assert len(starts) > 5 and max(starts) <= 16
    short = clip(4, 1.0, 5)  # of the second file, 1.1 s long
    assert short["fps"] == pytest.approx(5 / 1.1) and numbers(short)[0] == 0 and numbers(short)[-1] >= 8


def test_captioned_digits_are_read_by_whole_strides():
    class Digits(PreparedDigitsSource):
        def __init__(self):
            self.spec = CaptionedDigits(fps=8.0, frames=16)

        def __getitem__(self, index):
            video = np.broadcast_to(np.arange(16, dtype=np.uint8)[:, None, None, None], (16, 4, 4, 3))
            return {"video": video, "caption": "", "fps": 8.0}

    for fps, stride in ((8.0, 1), (30.0, 1), (4.5, 2), (1.0, 5)):  # the last one would need 25 frames
        clip = Digits().clip_at(0, np.random.default_rng(0), fps, 4)
        assert clip["video"].shape == (4, 4, 4, 3) and clip["fps"] == 8 / stride
        assert set(np.diff(clip["video"][:, 0, 0, 0].astype(int))) == {stride}


def test_everything_of_a_batch_follows_from_its_step_and_rows():
    rates = FrameRates(steps=10)
    options = {"batch_size": 4, "seed": 3, "frame_rates": rates, "frames": 3}
    whole = Pipeline(AnyRate(), **options)
    batch = whole.batch(7)
    assert batch["video"].shape == (4, 3, 4, 4, 3) and batch["frame_rate"].dtype == np.float32
    assert len(set(batch["frame_rate"].tolist())) == 4 and len(set(batch["video"][:, 0, 0, 0, 1].tolist())) > 1
    halves = [Pipeline(AnyRate(), **options, rows=rows).batch(7) for rows in ((0, 1), (2, 3))]
    for name in batch:
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), batch[name])
    with whole.iterate(7) as batches:
        np.testing.assert_array_equal(next(batches)["frame_rate"], batch["frame_rate"])
    early, late = (np.mean([whole.batch(step)["frame_rate"] for step in steps]) for steps in (range(3), range(10, 13)))
    assert early > late + 5


def test_bad_values():
    for make, message in (
            (lambda: FrameRates(lowest=0.0), ("FrameRates.lowest", "=0.0", "> 0")),
            (lambda: FrameRates(first=(0.0, 1.0)), ("FrameRates.first", "> 0")),
            (lambda: FrameRates(course="sudden"), ("FrameRates.course", "='sudden'", "'linear'", "'cosine'")),
            (lambda: clip_by_stride("Set", {"video": np.zeros((4, 1, 1, 3))}, 8.0, 2, None),
             ("strides.clip_by_stride",)),
            (lambda: stride_for("Set", 8.0, 4.0, 5, 4), ("strides.stride_for", "4", "5")),
            (lambda: Pipeline(Clips(), batch_size=4, seed=0, frame_rates=FrameRates()),
             ("Pipeline", "frame_rates"))):
        with refused(*message):
            make()
