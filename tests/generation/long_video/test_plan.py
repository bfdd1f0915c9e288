"""Plans of segments: lengths, rounds, and that every frame is made once, given only what is made before."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.generation.conftest import base_stage
from tests.refusals import refused
from vdm_jax.conditions.frame_masks import FrameMask, NoMask
from vdm_jax.generation.long_video.plan import (
    Autoregressive,
    KeyFramesFirst,
    NuwaXL,
    Windowed,
    nuwa_xl_frames,
    rescheduled_noise,
)
from vdm_jax.stages.options import Training
from vdm_jax.stages.stage import VideoSpec

NETWORK = dataclasses.replace(base_stage().network, conditioning_frames=True)
SHOWN = (NoMask(), FrameMask(first=1, last=1), FrameMask(first=2))


def stage(frames=16, masking=()):
    base = dataclasses.replace(base_stage(), video=VideoSpec(frames=frames, height=8, width=8))
    if not masking:
        return base
    return dataclasses.replace(base, network=NETWORK, training=Training(masking=masking))


def test_frames_of_depths():
    assert [nuwa_xl_frames(m, 16) for m in (1, 2, 3)] == [16, 226, 3376]
    assert [nuwa_xl_frames(m, 8) for m in (1, 2, 3)] == [8, 50, 344]
    for size, depth in ((16, 3), (8, 3), (3, 6)):
        rounds = list(NuwaXL().rounds(nuwa_xl_frames(depth, size), size))
        assert [len(round_) for round_ in rounds] == [(size - 1) ** m for m in range(depth)]


@pytest.mark.parametrize(("method", "frames", "size"), [
    (NuwaXL(), 226, 16), (NuwaXL(), 50, 8), (NuwaXL(), 16, 16), (Autoregressive(), 37, 8),
    (Autoregressive(overlap=1), 8, 8), (Autoregressive(overlap=3), 30, 4), (Windowed(), 40, 8),
    (KeyFramesFirst(overlap=1, fills=((2, 4), (3, 2))), 65, 4)])
def test_every_frame_is_made_once_from_frames_of_rounds_before(method, frames, size):
    made, numbers = np.zeros(frames, int), []
    for round_ in method.rounds(frames, size):
        before = made.copy()
        for segment in round_:
            numbers.append(segment.number)
            inside = [n for n in segment.frames if n < frames]
            given = [segment.frames[i] for i in segment.given]
            assert before[given].all() and len(segment.frames) == (
                frames if isinstance(method, Windowed) else 5 if segment.stage else size)
            made[[n for n in inside if n not in given]] += 1
    assert (made == 1).all() and numbers == list(range(method.segments(frames, size)))


def test_a_last_block_is_the_first_that_reaches_the_end():
    assert Autoregressive(overlap=2).segments(16, 4) == 7 and Autoregressive(overlap=2).segments(17, 4) == 8


def test_noise_is_that_of_the_first_clip_a_unit_at_a_time():
    order = rescheduled_noise(18, 8, 4, seed=1)
    np.testing.assert_array_equal(order[:8], np.arange(8))
    for start in (8, 12, 16):
        unit = order[start : start + 4]
        assert set(unit) <= set(order[start - 8 : start - 4]) and len(set(unit)) == len(unit)
    assert (order[8:16] != np.arange(8)).any() and (rescheduled_noise(18, 8, 4, seed=2) != order).any()


@pytest.mark.parametrize(("method", "frames", "stage", "message"), [
    (NuwaXL(), 1024, stage(), ("frames", "=1024", "226, 3376")),
    (NuwaXL(), 7, stage(8), ("frames", "=7", ">= 8")),
    (NuwaXL(), 9, stage(2), ("Stage.video.frames", "=2", "3 or more")),
    (NuwaXL(), 226, stage(16, (FrameMask(first=1, last=1),)), ("long_video.masking", "NoMask")),
    (NuwaXL(), 226, stage(16, (NoMask(), FrameMask(first=1))), ("long_video.masking", "FrameMask(first=1, last=1)")),
    (Autoregressive(overlap=16), 64, stage(), ("overlap", "=16", "1 to 15")),
    (Autoregressive(overlap=3), 64, stage(16, SHOWN), ("long_video.masking", "overlap=3", "overlap of 2")),
    (Autoregressive(), 4, stage(), ("frames", "=4", ">= 16", "'base'")),
    (Windowed(overlap=16), 64, stage(), ("overlap", "=16", "0 to 15"))])
def test_what_a_method_cannot_make(method, frames, stage, message):
    with refused(*message):
        method.check(stage, stage.sampling, frames)


def test_what_a_method_can_make():
    for method, frames in ((NuwaXL(), 3376), (NuwaXL(), 16), (Autoregressive(overlap=2), 17), (Windowed(), 99)):
        for found in (stage(), stage(16, SHOWN)):
            method.check(found, found.sampling, frames)
