"""Tiles of the autoencoders of released video models: they cover the frame, and are blended where they overlap."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from tests.training.latents import random_params
from vdm_jax.networks.autoencoders.hunyuan import HunyuanAutoencoder
from vdm_jax.networks.autoencoders.ltx_config import LTXAutoencoder
from vdm_jax.networks.autoencoders.piecewise import PiecewiseAutoencoder
from vdm_jax.stages.latent import Latent, decode
from vdm_jax.weights.model_kinds import module

SMALL = {
    "cogvideox": PiecewiseAutoencoder(widths=(2, 4), blocks=1, groups=2, latent_channels=2, time_factor=2),
    "hunyuan": HunyuanAutoencoder(widths=(2, 4, 4), blocks=1, groups=2, latent_channels=2),
    "ltx": LTXAutoencoder(widths=(4, 8), out_width=8, blocks=(1,) * 3, shrink=("conv", "none"), latent_channels=2,
                          decoder_widths=(4, 8), decoder_blocks=(1,) * 3, grow=(True, False), noise=(False,) * 3)}


@pytest.mark.parametrize("name", SMALL)
def test_tiles_cover_the_frame_and_are_blended(name, normal):
    """7 columns of latents in tiles of 4 with 1 in common, of 3 rows: each tile is decoded alone, and the share of the
    right one grows linearly over the pixels in common."""
    spec, z = SMALL[name], normal(0, 1, 3, 3, 7, 2)
    params, factor = random_params(spec), spec.factor
    latent = Latent(autoencoder=spec)
    tiled = dataclasses.replace(latent, tile=(4 * factor, 4 * factor), overlap=factor)

    def alone(params, z):
        return module(spec).apply({"params": params}, spec.denormalise(z), method="decode")

    found, left, right, whole = jax.jit(lambda params, z: (
        decode(tiled, params, z), alone(params, z[:, :, :, :4]), alone(params, z[:, :, :, 3:]),
        decode(latent, params, z)))(params, z)
    assert found.shape == whole.shape and np.abs(found - whole).max() > 1e-4  # which borders and norms tell apart
    share = ((np.arange(factor) + 0.5) / factor)[:, None]
    common = left[..., 3 * factor :, :] * (1 - share) + right[..., :factor, :] * share
    wanted = np.concatenate([left[..., : 3 * factor, :], common, right[..., factor:, :]], axis=3)
    np.testing.assert_allclose(found, np.clip(wanted, -1, 1), atol=1e-5)
