"""The autoencoder of HunyuanVideo: published size, and how clips are cut into pieces that are blended."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from tests.training.latents import random_params
from vdm_jax.networks.autoencoders import hunyuan as hy
from vdm_jax.networks.autoencoders.tiling import in_blended_clips
from vdm_jax.stages.latent import Latent, decode, decoding_step, encode
from vdm_jax.weights.model_kinds import shapes

TINY = hy.HunyuanAutoencoder(widths=(2, 4, 4), blocks=1, groups=2, latent_channels=2)


def test_published_size():
    assert sum(leaf.size for leaf in shapes(hy.AUTOENCODER_HUNYUAN).values()) == 246_478_803
    assert Latent(autoencoder=hy.AUTOENCODER_HUNYUAN).shape(129, 720, 1280) == (33, 90, 160, 16)


def numbered_frames(x):
    """Latents to frames that say where in their piece they are, 4 for each after the first."""
    first, later = x[:, :1], jnp.repeat(x[:, 1:], 4, axis=1)
    y = jnp.concatenate([first, later], axis=1)
    return y + jnp.arange(y.shape[1])[None, :, None, None, None]


@pytest.mark.parametrize("length", [5, 7, 8, 9, 14])
def test_pieces_are_blended(length):
    """Pieces of 5 latents every 3, written out frame by frame; the last ones are shorter."""
    z = np.random.default_rng(0).normal(size=(1, length, 1, 1, 1)).astype(np.float32)
    found = jax.jit(lambda z: in_blended_clips(numbered_frames, z, 4, 3))(z)
    wanted, filled = np.zeros(1 + 4 * (length - 1)), 0
    for start in range(0, length, 3):
        piece = np.ravel(numbered_frames(z[:, start : start + 5]))
        for place, value in enumerate(piece):
            frame = 4 * start + place
            if place == 0 and start:
                continue
            share = 1 if frame >= filled else (place - 1) / 4
            wanted[frame] = (1 - share) * wanted[frame] + share * value
        filled = max(filled, 4 * start + len(piece))
    np.testing.assert_allclose(np.ravel(found), wanted, rtol=1e-5, atol=1e-5)


def test_pieces_are_part_of_the_model(normal):
    """Up to 16 frames or 4 latents are one piece; the one of 17 frames is encoded as a whole too."""
    params, video = random_params(TINY), normal(0, 1, 17, 4, 4, 3)
    latent, whole = Latent(autoencoder=TINY), Latent(autoencoder=TINY, encode_frames=32, decode_frames=8)
    z, other, x, undivided = jax.jit(lambda params, video: (
        z := encode(latent, params, video), encode(whole, params, video), decode(latent, params, z),
        decode(whole, params, z)))(params, video)
    assert z.shape == (1, 5, 1, 1, 2) and x.shape == video.shape
    np.testing.assert_allclose(z, other, atol=1e-5)
    assert np.abs(x - undivided).max() > 1e-3


@pytest.mark.parametrize("change, named", [
    (lambda: dataclasses.replace(TINY, groups=3), ("HunyuanAutoencoder.widths", "groups=3")),
    (lambda: dataclasses.replace(TINY, widths=(2, 4)), ("HunyuanAutoencoder.widths", "(2, 4)", "3 or more")),
    (lambda: dataclasses.replace(TINY, piece_frames=20), ("HunyuanAutoencoder.piece_frames", "=20", "16, 32")),
    (lambda: TINY.latent_frames(7), ("video.frames", "=7", "1, 5, 9")),
    (lambda: decoding_step(Latent(autoencoder=TINY), {}), ("latent.decoding_step", "HunyuanAutoencoder", "decode")),
    (lambda: Latent(autoencoder=TINY, decode_frames=2), ("Latent.decode_frames", "=2", "None, 4")),
    (lambda: in_blended_clips(numbered_frames, jnp.zeros((1, 9, 1, 1, 1)), 4, 5), ("stride", "=5", "frames=4")),
    (lambda: hy.HunyuanAutoencoderKL(TINY).init(jax.random.key(0), jnp.zeros((1, 1, 6, 4, 3))),
     ("hunyuan.HunyuanAutoencoderKL.encode", "6x4")),
])
def test_refusals(change, named):
    with refused(*named, "permitted"):
        change()
