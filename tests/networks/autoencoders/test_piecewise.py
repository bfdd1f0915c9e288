"""The autoencoder with norms over pieces: published size, the first frame apart, and where a clip is cut."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from tests.training.latents import random_params
from vdm_jax.networks.autoencoders import piecewise as pw
from vdm_jax.stages.latent import Latent, decode, decoding_step, encode
from vdm_jax.weights.model_kinds import shapes

TINY = pw.PiecewiseAutoencoder(widths=(4, 4), blocks=1, groups=2, latent_channels=2, time_factor=2, encode_frames=4,
                               scale=0.7)


def test_published_size():
    assert sum(leaf.size for leaf in shapes(pw.AUTOENCODER_COGVIDEOX).values()) == 215_583_907
    assert Latent(autoencoder=pw.AUTOENCODER_COGVIDEOX).shape(49, 480, 720) == (13, 60, 90, 16)


def test_pieces_are_part_of_the_model(normal):
    """Without a word of the stage, clips are cut as the authors cut them: 5 and 4 frames, 3 and 2 latents."""
    params, video = random_params(TINY), normal(0, 1, 9, 4, 4, 3)
    latent, whole = Latent(autoencoder=TINY), Latent(autoencoder=TINY, encode_frames=100, decode_frames=100)

    @jax.jit
    def run(params, video):
        z, first_step = encode(latent, params, video), decoding_step(latent, params)
        first, state = first_step(z[:, :3], None)
        second, _ = first_step(z[:, 3:], state)
        return (z, encode(whole, params, video), decode(latent, params, z), jnp.concatenate([first, second], axis=1),
                decode(whole, params, z))

    z, other, x, stepped, undivided = run(params, video)
    assert z.shape == (1, 5, 2, 2, 2) and x.shape == video.shape
    np.testing.assert_allclose(x, stepped, atol=1e-5)
    assert np.abs(z - other).max() > 1e-3 and np.abs(x - undivided).max() > 1e-3


def test_the_first_frame_is_apart():
    x = jnp.arange(5.0).reshape(1, 5, 1, 1, 1)
    found = jax.jit(lambda x: [
        pw.halve_frames(x), pw.halve_frames(x[:, :1]), pw.halve_frames(x[:, :4]), pw.double_frames(x[:, :3]),
        pw.double_frames(x[:, :2]), pw.stretched(x[:, :3], (9, 1, 1)), pw.stretched(x[:, :1], (1, 2, 1))])(x)
    assert [np.ravel(y).tolist() for y in found] == [
        [0, 1.5, 3.5], [0], [0.5, 2.5], [0, 1, 1, 2, 2], [0, 0, 1, 1], [0, 1, 1, 1, 1, 2, 2, 2, 2], [0, 0]]


@pytest.mark.parametrize("change, named", [
    (lambda: dataclasses.replace(TINY, groups=3), ("PiecewiseAutoencoder.widths", "groups=3")),
    (lambda: dataclasses.replace(TINY, time_factor=4), ("PiecewiseAutoencoder.time_factor", "=4", "1, 2")),
    (lambda: dataclasses.replace(TINY, decode_frames=3), ("PiecewiseAutoencoder.decode_frames", "=3", "2, 4")),
    (lambda: dataclasses.replace(TINY, encode_frames=5), ("PiecewiseAutoencoder.encode_frames", "=5")),
    (lambda: TINY.latent_frames(7), ("video.frames", "=7", "1, 5, 9")),
    (lambda: Latent(autoencoder=TINY, decode_frames=1), ("Latent.decode_frames", "=1", "None, 2")),
    (lambda: pw.PiecewiseAutoencoderKL(TINY).init(jax.random.key(0), jnp.zeros((1, 1, 3, 4, 3))),
     ("piecewise.PiecewiseAutoencoderKL.encode", "3x4")),
])
def test_refusals(change, named):
    with refused(*named, "permitted"):
        change()
