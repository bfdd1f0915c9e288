"""AV-Align: known peaks of sound and of motion, and the score of known lists."""

import importlib.util

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.metrics import onsets
from vdm_jax.metrics.av_align import av_align, local_maxima, matched, motion_peaks

FPS = 8


def clicks(times, seconds, seed=0):
    """Tones that fade, one at each time, over a little noise."""
    rng = np.random.default_rng(seed)
    sound = 1e-4 * rng.standard_normal(int(seconds * onsets.RATE))
    for time in times:
        place = int(time * onsets.RATE)
        fading = np.arange(min(4000, len(sound) - place))
        sound[place : place + len(fading)] += np.sin(0.2 * fading) * np.exp(-fading / 400)
    return sound.astype(np.float32)


def bumps(moves, frames=16):
    """A smooth picture that is still but for a shift of 3 pixels into each of the frames `moves`."""
    from scipy.ndimage import gaussian_filter

    large = gaussian_filter(np.random.default_rng(0).standard_normal((96, 64, 3)), (3, 3, 0))
    large = ((large - large.min()) / np.ptp(large) * 255).astype(np.uint8)
    places = np.cumsum([3 * (t in moves) for t in range(frames)])
    return np.stack([large[place : place + 64] for place in places])


def test_the_score_of_known_lists():
    peaks = np.array([0.2, 0.7, 1.5])
    assert matched(peaks, peaks, FPS) == 1  # the same peaks
    assert matched(peaks, peaks + 1 / FPS + 1e-6, FPS) == 0  # none within a frame
    assert matched(peaks, peaks + 1 / FPS - 1e-6, FPS) == 1
    assert matched(peaks, peaks[:2], FPS) == pytest.approx(2 / 3)
    assert matched(peaks, np.array([0.2, 3, 4]), FPS) == pytest.approx(1 / 5)
    assert matched(np.array([0.2, 0.21]), np.array([0.2]), FPS) == 2  # as published: a peak may serve two sounds
    assert matched(peaks, [], FPS) == 0 and np.isnan(matched([], [], FPS))


def test_sounds_are_found_where_they_begin():
    pytest.importorskip("librosa", reason="onsets need the extra [metrics]")
    times = [0.3, 0.81, 1.2, 1.75]
    found = onsets.onsets(clicks(times, 2.0))
    assert len(found) == 4 and np.abs(found - times).max() < 0.05
    np.testing.assert_array_equal(onsets.onsets(clicks(times, 2.0) * 1e-3), found)  # how loud does not matter
    assert len(onsets.onsets(np.zeros(onsets.RATE))) == 0  # silence
    assert len(onsets.onsets(clicks([], 0.01))) == 0
    with refused("onsets.onsets", "22050"):
        onsets.onsets(np.zeros((2, 100)))


def test_local_maxima_leave_out_ends_and_small_ones():
    values = np.array([5, 1, 2, 1, 0.05, 0.08, 0.05, 3, 3, 1, 9])
    assert local_maxima(values, 0.1).tolist() == [2]
    assert local_maxima(values, 0).tolist() == [2, 5]


def test_what_moves_with_the_sound_scores_one_and_beside_it_nothing():
    pytest.importorskip("cv2", reason="optical flow needs the extra [metrics]")
    video = bumps((3, 7, 12))
    np.testing.assert_allclose(motion_peaks(video, FPS) * FPS, [3, 7, 12])
    times = np.array([3, 7, 12]) / FPS
    assert av_align(clicks(times, 2.0), video, FPS) == 1
    assert av_align(clicks(times + 2 / FPS, 2.0), video, FPS) == 0
    assert av_align(clicks(times[:2], 2.0), video, FPS) == pytest.approx(2 / 3)
    assert len(motion_peaks(video, FPS, least_motion=10.0)) == 0
    with refused("av_align.motion_peaks", "3"):
        motion_peaks(video[:2], FPS)


def test_without_librosa_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with refused("package", "av_align needs librosa", "pip install 'vdm_jax[metrics]'"):
        onsets.onsets(np.zeros(100))
