"""Temporal MultiDiffusion: exact for denoisers of single frames, least squares for all others."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.diffusion.windows import window_starts, windowed

SIZES = [(8, 8, 2), (8, 4, 2), (9, 4, 2), (7, 4, 3), (10, 4, 0), (11, 5, 1), (5, 1, 0)]  # frames, window, overlap


@pytest.mark.parametrize(("frames", "length", "overlap"), SIZES)
def test_windows_cover_the_video_and_share_what_is_asked_for(frames, length, overlap):
    starts = window_starts(frames, length, overlap)
    assert starts[0] == 0 and starts[-1] + length == frames
    shared = [before + length - start for before, start in zip(starts, starts[1:], strict=False)]
    assert all(s == overlap for s in shared[:-1]) and all(overlap <= s < length for s in shared[-1:])


def cut(conditioning, start, length):
    return {"frames": jax.lax.dynamic_slice_in_dim(conditioning["frames"], start, length, axis=1),
            "video": conditioning["video"]}


def per_frame(z, logsnr, conditioning):
    """Depends on the frame, the level, and what is given of the frame and of the video."""
    level = logsnr if logsnr.ndim == 2 else logsnr[:, None]
    scale = (1 + level)[..., None] * conditioning["frames"][..., None]
    return jnp.tanh(scale * z) + conditioning["video"][:, None, None]


def per_window(z, logsnr, conditioning):
    """Depends on the whole window and on the place in it."""
    place = jnp.arange(z.shape[1])[None, :, None]
    return per_frame(z, logsnr, conditioning) * (1 + place) + z.mean(1, keepdims=True)


def inputs(frames, per_frame_level=False):
    rng = np.random.default_rng(frames)
    z = jnp.asarray(rng.normal(size=(2, frames, 3)), jnp.float32)
    level = jnp.asarray(rng.normal(size=(2, frames) if per_frame_level else 2), jnp.float32)
    given = {"frames": jnp.asarray(rng.normal(size=(2, frames)), jnp.float32), "video": jnp.array([0.5, -1.0])}
    return z, level, given


@pytest.mark.parametrize("chunk", [1, 2, 100])
@pytest.mark.parametrize(("frames", "length", "overlap"), SIZES[1:4])
def test_a_denoiser_of_frames_gives_what_it_gives_at_once(frames, length, overlap, chunk):
    z, level, given = inputs(frames, per_frame_level=chunk == 2)
    denoise = jax.jit(windowed(per_frame, cut, frames=frames, length=length, overlap=overlap, chunk=chunk))
    np.testing.assert_allclose(denoise(z, level, given), per_frame(z, level, given), atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 2, 100])
@pytest.mark.parametrize(("frames", "length", "overlap"), SIZES[1:])
def test_other_denoisers_are_solved_for_by_least_squares(frames, length, overlap, chunk):
    z, level, given = inputs(frames)
    rows, values = [], []  # of sum_i || x|_i - D(z|_i) ||^2, for all of a frame's values alike
    for start in window_starts(frames, length, overlap):
        part = slice(start, start + length)
        x = per_window(z[:, part], level, {**given, "frames": given["frames"][:, part]})
        rows.append(np.eye(frames)[part])
        values.append(np.moveaxis(np.asarray(x), 1, 0).reshape(length, -1))
    solution = np.linalg.lstsq(np.concatenate(rows), np.concatenate(values), rcond=None)[0]
    expected = np.moveaxis(solution.reshape(frames, 2, 3), 0, 1)
    denoise = jax.jit(windowed(per_window, cut, frames=frames, length=length, overlap=overlap, chunk=chunk))
    np.testing.assert_allclose(denoise(z, level, given), expected, atol=1e-5)


def test_no_jump_at_the_border_of_a_window():
    """A denoiser that smooths within its window: with an overlap, no step between frames is as large as the one that
    windows side by side have."""
    ramp = jnp.linspace(0.0, 1.0, 12)[None, :, None]

    def smooth(z, logsnr, conditioning):
        return jnp.broadcast_to(z.mean(1, keepdims=True), z.shape)

    def steps(overlap):
        whole = windowed(smooth, lambda c, start, length: c, frames=12, length=4, overlap=overlap)
        return np.abs(np.diff(np.asarray(whole(ramp, jnp.zeros(1), {}))[0, :, 0]))

    assert steps(2).max() < 0.51 * steps(0).max()


@pytest.mark.parametrize(("options", "message"), [
    ({"length": 9}, ("length",)),
    ({"length": 4, "overlap": 4}, ("overlap",)),
    ({"length": 4, "chunk": 0}, ("chunk", "=0")),
])
def test_windows_that_cannot_be(options, message):
    with refused(*message):
        windowed(per_frame, cut, frames=8, **options)
