"""The parts of the U-Net by themselves: positions, resampling, encodings of the noise level."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.networks.config import Level, UNet
from vdm_jax.networks.layers import convolve, mean_pool, nearest
from vdm_jax.networks.resampling import Downsample, Upsample
from vdm_jax.networks.unet import PositionEmbedding, encode_level

PLAIN = UNet(levels=(Level(channels=8, blocks=1),), embedding_channels=16, groups=4)


def test_position_embedding_is_a_sum_over_axes_and_images_stand_at_frame_0(filled):
    x = jnp.zeros((1, 5, 4, 3, 6))
    module = PositionEmbedding(period=25.0)
    params = filled(module, x, 2)
    code = np.asarray(module.apply({"params": params}, x, 2))[0]
    base = code[0, 0, 0]
    expected = code[:, :1, :1] + code[:1, :, :1] + code[:1, :1, :] - 2 * base
    np.testing.assert_allclose(code, expected, atol=1e-4)
    np.testing.assert_allclose(code[3:], code[[0, 0]], atol=1e-6)
    for axis in range(3):
        steps = np.abs(np.diff(code[:3], axis=axis)).max(-1)
        assert steps.min() > 1e-2  # neighbours differ along every axis


def test_resampling(filled, normal):
    x = normal(0, 1, 2, 8, 6, 4)
    pool, conv = dataclasses.replace(PLAIN, resample="pool"), PLAIN
    np.testing.assert_allclose(Downsample(pool, (2, 3), 4).apply({}, x), mean_pool(x, (2, 3)), atol=1e-6)
    np.testing.assert_array_equal(Upsample(pool, (2, 3), 4).apply({}, x), nearest(x, (2, 3)))
    down, up = Downsample(conv, (2, 3), 4), Upsample(conv, (2, 3), 4)
    for layer, before, strides in ((down, x, (2, 3)), (up, nearest(x, (2, 3)), (1, 1))):
        params = filled(layer, x)
        expected = convolve(before, params["conv"]["kernel"], strides) + params["conv"]["bias"]
        np.testing.assert_allclose(layer.apply({"params": params}, x), expected, atol=1e-5)


def test_level_encodings():
    t = jnp.linspace(0.01, 0.99, 21)
    np.testing.assert_allclose(encode_level(CosineSchedule().logsnr(t), "inv_cos"), 1000 * t, atol=0.1)
    np.testing.assert_allclose(encode_level(jnp.array([-30.0, -20, 0, 10, 30]), "linear"), [1000, 1000, 500, 250, 0])
    sigma = jnp.array([0.002, 1.0, 80.0])
    np.testing.assert_allclose(encode_level(-2 * jnp.log(sigma), "edm"), 1000 * jnp.log(sigma) / 4, rtol=1e-5)
