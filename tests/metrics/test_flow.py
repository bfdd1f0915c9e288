"""Optical flow: known shifts come back, and the warp error rises with what motion does not explain."""

import importlib.util

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.metrics import flow


@pytest.fixture(scope="module")
def moving():
    """A smooth picture moving by (x, y) = (3, 1) pixels a frame, uint8 [1, 6, 64, 64, 3]."""
    pytest.importorskip("cv2", reason="optical flow needs the extra [metrics]")
    from scipy.ndimage import gaussian_filter

    large = gaussian_filter(np.random.default_rng(0).standard_normal((100, 100, 3)), (2, 2, 0))
    large = ((large - large.min()) / np.ptp(large) * 255).astype(np.uint8)
    return np.stack([large[20 - t : 84 - t, 30 - 3 * t : 94 - 3 * t] for t in range(6)])[None]


def test_a_known_shift_comes_back(moving):
    found = flow.flow(moving[0, 0], moving[0, 1])[8:-8, 8:-8]
    np.testing.assert_allclose(np.median(found, (0, 1)), [3, 1], atol=0.1)
    assert flow.motion(moving)[0] == pytest.approx(10**0.5, abs=0.3)
    assert flow.motion(moving[:, :1].repeat(4, 1))[0] == pytest.approx(0, abs=1e-3)


def test_pixels_that_leave_the_frame_are_not_counted(moving):
    forward, backward = flow.flow(moving[0, 0], moving[0, 1]), flow.flow(moving[0, 1], moving[0, 0])
    seen = flow.visible(forward, backward)
    assert seen[8:-8, 8:-8].mean() > 0.95 and not seen[:, -2:].any()


def test_motion_is_explained_and_flicker_and_noise_are_not(moving):
    rng = np.random.default_rng(1)
    noisy = np.clip(moving + rng.normal(0, 12, moving.shape), 0, 255).astype(np.uint8)
    flicker = moving.copy()
    flicker[:, ::2] = (flicker[:, ::2] * 0.8).astype(np.uint8)
    smooth, *broken = (flow.warp_error(x)[0] for x in (moving, noisy, flicker))
    assert smooth < 3e-4 and min(broken) > 3 * smooth
    # An edited video is held against the motion of its source.
    still = moving[:, :1].repeat(6, 1)
    assert flow.warp_error(still)[0] < 1e-6 < flow.warp_error(still, guides=moving)[0] / 100


@pytest.mark.parametrize("shape", [(1, 1, 64, 64, 3), (1, 2, 16, 64, 3), (2, 64, 64, 3), (0, 2, 64, 64, 3)])
def test_bad_videos_are_refused(shape):
    with refused("flow._checked", "32"):
        flow.motion(np.zeros(shape, np.uint8))
    with refused("flow.warp_error"):
        flow.warp_error(np.zeros((1, 2, 32, 32, 3), np.uint8), np.zeros((1, 3, 32, 32, 3), np.uint8))


def test_a_machine_without_opencv_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with refused("package", "'vdm_jax[metrics]'"):
        flow.motion(np.zeros((1, 2, 32, 32, 3), np.uint8))
