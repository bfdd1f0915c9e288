"""Frames between edited key frames: exact where nothing moves, close where a picture does, and by the nearer or the
better of two key frames."""

from __future__ import annotations

import numpy as np
import pytest

from tests.generation.editing.test_rerender_fusion import picture
from vdm_jax.generation.editing.propagation import (
    Found,
    averaged,
    between,
    chained,
    costs,
    guides,
    mixed,
    propagated,
    shifted,
)

INSIDE = np.s_[10:-10, 10:-10]


def moving(frames, seed=0):
    """A picture that moves by two pixels a frame."""
    whole = picture(64, 96 + 2 * frames, seed)
    return np.stack([whole[:, 2 * i:2 * i + 96] for i in range(frames)])


def test_a_still_video_is_its_key_frame():
    sources, edited = np.repeat(picture()[None], 4, axis=0), picture(seed=1)
    found = between(sources, edited, edited)
    assert found.shape == (2, 64, 96, 3) and np.abs(found.astype(int) - edited).max() <= 1
    assert between(sources[:2], edited, edited).shape == (0, 64, 96, 3)


def test_a_moving_picture_takes_its_colours_along():
    """Colours exchanged in the key frames are exchanged between them, and better than if the key frames faded."""
    sources = moving(6)
    edited = 255 - sources[..., ::-1]
    found = between(sources, edited[0], edited[5]).astype(float)
    error = np.abs(found - edited[1:5])[:, 10:-10, 12:-12].mean()
    shares = np.arange(1, 5)[:, None, None, None] / 5
    faded = np.abs((1 - shares) * edited[0] + shares * edited[5] - edited[1:5])[:, 10:-10, 12:-12].mean()
    assert error < 0.5 and faded > 8 * error, (error, faded)


def test_patches_mend_where_the_flow_is_wrong():
    """From displacements that are off by some pixels the best patches are found again."""
    sources = moving(3)
    right = np.zeros((64, 96, 2), np.float32) - [4, 0]  # of frame 2 in frame 0, which are two pixels a frame apart
    right = -right.astype(np.float32)
    off = right + np.float32([0, 1.5])
    cost = [costs(guides(sources[2]), guides(sources[0]), field)[INSIDE].mean() for field in (right, off)]
    found = propagated(sources[2], sources[0], sources[0], off)
    assert cost[0] < 1e-6 < cost[1] and found.cost[INSIDE].mean() < 0.05 * cost[1]
    assert np.abs(found.picture - sources[2])[INSIDE].mean() < 2


def test_displacements_along_a_path_add_up():
    steps = [np.full((8, 8, 2), by, np.float32) for by in ((1, 0), (2, -1), (0, 3))]
    np.testing.assert_allclose(chained(steps), np.broadcast_to([3, 2], (8, 8, 2)))
    ramp = np.zeros((8, 8, 2), np.float32)
    ramp[..., 0] = np.arange(8)  # where the first step has led
    np.testing.assert_allclose(chained([steps[0], ramp])[:, :6, 0], np.broadcast_to(np.arange(6) + 2, (8, 6)))


def test_overlapping_patches_are_averaged():
    """The mean over the window of what each of its pixels' displacements says of the middle one."""
    rng = np.random.default_rng(0)
    edited = rng.integers(0, 256, (9, 10, 3)).astype(np.uint8)
    field = rng.integers(-1, 2, (9, 10, 2)).astype(np.float32)
    expected = np.zeros((9, 10, 3))
    for y in range(9):
        for x in range(10):
            for row in range(y - 1, y + 2):
                for column in range(x - 1, x + 2):
                    dx, dy = field[np.clip(row, 0, 8), np.clip(column, 0, 9)].astype(int)
                    expected[y, x] += edited[np.clip(y + dy, 0, 8), np.clip(x + dx, 0, 9)] / 9
    np.testing.assert_allclose(averaged(edited, field), expected, atol=0.01)
    np.testing.assert_array_equal(shifted(field, 2, -1)[0, 0], field[2, 0])


def test_two_key_frames_are_mixed_by_time_and_by_fit():
    """And the mixture keeps mean and contrast, which averages of what differs lose."""
    rng = np.random.default_rng(0)
    one, other = (rng.normal(128, std, (64, 64, 3)).clip(0, 255) for std in (20, 30))
    fits, fails = np.zeros((64, 64)), np.full((64, 64), 10.0)
    found = mixed(Found(one, fits), Found(other, fits), 0.25).astype(float)
    np.testing.assert_allclose(found.std((0, 1)), 0.75 * one.std((0, 1)) + 0.25 * other.std((0, 1)), rtol=0.02)
    np.testing.assert_allclose(found.mean((0, 1)), 0.75 * one.mean((0, 1)) + 0.25 * other.mean((0, 1)), atol=0.2)
    assert np.abs(mixed(Found(one, fits), Found(other, fails), 0.5) - one).mean() < 0.5
    assert np.abs(mixed(Found(one, fails), Found(other, fits), 0.5) - other).mean() < 0.5
    np.testing.assert_allclose(mixed(Found(one, fits), Found(one, fails), 0.3), one, atol=0.51)
    flat = np.full((8, 8, 3), 7.0)
    assert (mixed(Found(flat, fits[:8, :8]), Found(flat, fits[:8, :8]), 0.5) == 7).all()


@pytest.mark.parametrize("place", [1, 3])
def test_what_one_key_frame_hides_comes_from_the_other(place):
    """A square that covers different places in the two key frames."""
    sources = np.repeat(picture(64, 96)[None], 5, axis=0)
    for frame in range(5):
        sources[frame, 20:44, 8 + 14 * frame:32 + 14 * frame] = [255, 0, 0]
    found = between(sources, sources[0], sources[4])[place - 1].astype(int)
    left = 8 + 14 * place
    uncovered = np.abs(found - sources[place])[24:40]
    assert np.median(uncovered) <= 2
    assert np.median(np.abs(found - sources[place])[24:40, left + 4:left + 20]) <= 6
