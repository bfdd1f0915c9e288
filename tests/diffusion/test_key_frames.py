"""Denoising from key frames: which frames these are, and who goes into the estimate of whom."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.diffusion.key_frames import from_key_frames, gaps, key_frames, published_window


@pytest.mark.parametrize(("frames", "window"), [(1, 3), (8, 3), (15, 3), (16, 4), (99, 9), (100, 10), (121, 11)])
def test_the_published_window(frames, window):
    assert published_window(frames) == window


def test_key_frames_are_multiples_of_the_window_less_one_and_the_last():
    assert key_frames(100, 10).tolist() == [0, 9, 18, 27, 36, 45, 54, 63, 72, 81, 90, 99]
    assert key_frames(11, 4).tolist() == [0, 3, 6, 9, 10] and key_frames(7, 4).tolist() == [0, 3, 6]
    assert key_frames(4, 2).tolist() == [0, 1, 2, 3] and key_frames(3, 9).tolist() == [0, 2]
    assert gaps(12, 4).tolist() == [[0, 3, 1, 2], [3, 6, 4, 5], [6, 9, 7, 8], [9, 11, 10, 9]]
    assert gaps(11, 4).tolist() == gaps(12, 4)[:3].tolist()  # neighbours have nothing between them
    with refused("key_frames.window", "window=1", "2 frames or more"):
        key_frames(4, 1)


def keys_of(z, logsnr, scale):
    """Each key frame by the mean of all."""
    return (z + z.mean(1, keepdims=True)) * scale + logsnr[:, None, None]


def gap_of(z, logsnr, scale):
    """Each frame by the product of the first two, as the network would have it with `FirstFrames(count=2)`."""
    return (z * z[:, :1] * z[:, 1:2]) * scale + logsnr[:, None, None]


@pytest.mark.parametrize(("frames", "window"), [(12, 4), (11, 4), (10, 3), (5, 2), (9, 8)])
def test_frames_see_what_a_loop_over_them_sees(frames, window):
    rng = np.random.default_rng(0)
    z, scale = rng.normal(size=(2, frames, 3)).astype(np.float32), rng.normal(size=(2, frames, 1)).astype(np.float32)
    level = np.float32([0.5, -1.0])
    denoise = from_key_frames(keys_of, gap_of, lambda scale, some: jnp.take(scale, some, axis=1), frames=frames,
                              window=window)
    keys = [i for i in range(frames) if i % (window - 1) == 0 or i == frames - 1]
    expected = np.zeros_like(z)
    for frame in range(frames):
        left, right = max(k for k in keys if k <= frame), min(k for k in keys if k >= frame)
        other = z[:, keys].mean(1) if left == right else None
        made = z[:, frame] + other if left == right else z[:, frame] * z[:, left] * z[:, right]
        expected[:, frame] = made * scale[:, frame] + level[:, None]
    np.testing.assert_allclose(jax.jit(denoise)(z, level, scale), expected, atol=1e-6)


def test_one_window_of_all_frames_is_the_denoiser_itself():
    assert from_key_frames(keys_of, gap_of, None, frames=7, window=7) is keys_of
    z, scale = np.random.default_rng(1).normal(size=(1, 6, 3)).astype(np.float32), jnp.ones((1, 6, 1))
    denoise = from_key_frames(keys_of, gap_of, lambda scale, some: scale[:, some], frames=6, window=2)
    np.testing.assert_array_equal(denoise(z, jnp.zeros(1), scale), keys_of(z, jnp.zeros(1), scale))
