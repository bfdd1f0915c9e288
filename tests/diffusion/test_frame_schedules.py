"""Scheduling matrices: their entries, the ordinary sampler as one of them, and Gaussian videos of two frames, whose
denoiser is known for frames of any levels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.configuration import from_json, to_json
from vdm_jax.diffusion.conditional import replaced, shown_clean
from vdm_jax.diffusion.frame_schedules import FrameSchedule
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM, Heun
from vdm_jax.diffusion.sampling import sample, sampling_levels, steps_between
from vdm_jax.stages.options import Sampling

CORRELATION, VARIANCE, COUNT = 0.8, 0.25, 1500


def test_entries():
    def matrix(steps, frames, **values):
        return FrameSchedule(**values).matrix(steps, frames).tolist()

    assert matrix(2, 3, order="full_sequence") == [[2, 2, 2], [1, 1, 1], [0, 0, 0]]
    assert matrix(2, 2, order="autoregressive") == [[2, 2], [1, 2], [0, 2], [0, 1], [0, 0]]
    assert matrix(2, 3, lag=1) == [[2, 2, 2], [1, 2, 2], [0, 1, 2], [0, 0, 1], [0, 0, 0]]
    assert matrix(2, 3, lag=0.5) == [[2, 2, 2], [1, 1, 2], [0, 0, 1], [0, 0, 0]]  # floor(i u)
    assert matrix(1, 5, order="trapezoid", lag=1) == [[1] * 5, [0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [0] * 5]
    assert matrix(1, 4, order="trapezoid", lag=1) == [[1] * 4, [0, 1, 1, 0], [0] * 4]  # even: the middle two too
    assert matrix(1, 4, order="autoregressive", chunk=2) == [[1] * 4, [0, 0, 1, 1], [0] * 4]
    assert matrix(4, 2, order="matrix", rows=((4, 4), (1, 4), (0, 0))) == [[4, 4], [1, 4], [0, 0]]


def test_a_lag_is_a_pyramid():
    levels = jnp.linspace(-3, 3, 5)
    of_lag, of_schedule = (steps_between(levels, frames=3, **options) for options in (
        {"frame_lag": 2}, {"frame_schedule": FrameSchedule(lag=2)}))
    jax.tree.map(np.testing.assert_array_equal, of_lag, of_schedule)
    schedule = FrameSchedule(order="trapezoid", lag=1.5)
    assert Sampling(frame_schedule=schedule, steps=9).evaluations(5) == 9 + 3
    assert from_json(FrameSchedule, to_json(schedule)) == schedule


def denoise(z, logsnr):
    """E[x | z] of pairs of frames with correlated pixels."""
    alpha, sigma = Process().schedule.alpha_sigma(jnp.broadcast_to(logsnr if logsnr.ndim == 2 else logsnr[:, None],
                                                                   z.shape[:2]))
    covariance = VARIANCE * jnp.array([[1, CORRELATION], [CORRELATION, 1]])
    of_z = alpha[:, :, None] * covariance * alpha[:, None] + jnp.eye(2) * (sigma**2)[:, None]
    flat = jnp.linalg.solve(of_z, z.reshape(*z.shape[:2], -1))
    return jnp.einsum("ij,bj,bjp->bip", covariance, alpha, flat).reshape(z.shape)


def sampled(denoise, schedule, count=COUNT, steps=24):
    keys = jax.random.split(jax.random.key(3), count)
    return np.asarray(jax.jit(lambda keys: sample(DDIM(), denoise, keys, (count, 2, 2, 2, 1), Process(), steps,
                                                  frame_schedule=schedule))(keys))


def test_a_full_sequence_is_the_ordinary_sampler():
    np.testing.assert_allclose(sampled(denoise, FrameSchedule(order="full_sequence"), 8), sampled(denoise, None, 8),
                               atol=1e-5)


@pytest.mark.parametrize("order", ["autoregressive", "pyramid", "full_sequence"])
def test_gaussian_videos_have_their_distribution_whatever_the_schedule(order):
    x = sampled(denoise, FrameSchedule(order=order, lag=20), steps=80)
    covariance = np.cov(x.transpose(1, 0, 2, 3, 4).reshape(2, -1))
    truth = VARIANCE * np.array([[1, CORRELATION], [CORRELATION, 1]])
    np.testing.assert_allclose(covariance, truth, atol=0.03)


def test_frames_one_after_the_other_are_an_extension():
    """The second frame of "autoregressive" is that of a clip whose first frame is given."""
    schedule = FrameSchedule(order="autoregressive")
    both = sampled(denoise, schedule, 16)
    given, mask = jnp.asarray(both), jnp.zeros((16, 2, 1, 1, 1)).at[:, 0].set(1)
    level = sampling_levels(DDIM(), Process().schedule, 24)[-1]
    clean = shown_clean(denoise, given, mask, level, Process().schedule.family)
    extended = sampled(replaced(clean, given, mask), schedule, 16)
    np.testing.assert_array_equal(extended[:, 0], both[:, 0])
    np.testing.assert_allclose(extended[:, 1], both[:, 1], atol=0.02)
    assert np.abs(extended[:, 1] - sampled(denoise, None, 16)[:, 1]).max() > 0.1


def test_given_frames_are_shown_clean_and_pixels_are_not():
    seen = {}

    def network(z, logsnr):
        seen.update(z=z, logsnr=logsnr)
        return z

    z, given = jnp.ones((1, 2, 2, 2, 1)), jnp.full((1, 2, 2, 2, 1), 3.0)
    mask = jnp.zeros(z.shape).at[:, 0].set(1).at[:, 1, 0].set(1)
    shown_clean(network, given, mask, 4.0, Process().schedule.family)(z, jnp.array([-2.0]))
    alpha = float(jax.nn.sigmoid(4.0)) ** 0.5
    np.testing.assert_allclose(seen["z"][0, 0], 3 * alpha, rtol=1e-5)
    np.testing.assert_array_equal(seen["z"][0, 1], 1)
    assert seen["logsnr"].tolist() == [[4.0, -2.0]]


def test_what_is_no_schedule():
    rows = ((2, 2), (1, 2), (0, 0))
    for make, message in (
            (lambda: FrameSchedule(rows=rows), ("FrameSchedule.rows", "'pyramid'")),
            (lambda: FrameSchedule(order="matrix"), ("FrameSchedule.rows", "'matrix'")),
            (lambda: FrameSchedule(order="matrix", rows=rows).matrix(3, 2), ("FrameSchedule.rows", "from 3")),
            (lambda: FrameSchedule(order="matrix", rows=rows).matrix(2, 3), ("FrameSchedule.rows", "3", "2 frames")),
            (lambda: FrameSchedule(order="matrix", rows=((2, 2), (0, 1))).matrix(2, 2), ("FrameSchedule.rows", "to 0")),
            (lambda: FrameSchedule(order="matrix", rows=((2, 2), (1, 1), (2, 0), (0, 0))).matrix(2, 2),
             ("FrameSchedule.rows", "never up")),
            (lambda: Sampling(frame_lag=1, frame_schedule=FrameSchedule()), ("frame_lag", "'pyramid'")),
            (lambda: Sampling(sampler=Heun(), frame_schedule=FrameSchedule()), ("frame_schedule", "Heun", "DDIM"))):
        with refused(*message):
            make()
