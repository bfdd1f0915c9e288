"""LTX-Video's autoencoders: published sizes, pieces of the encoder, and the noise of the decoder."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from tests.refusals import refused
from tests.training.latents import random_params
from vdm_jax.networks.autoencoders import ltx_config as lc
from vdm_jax.networks.autoencoders.ltx import LTXAutoencoderKL
from vdm_jax.stages.latent import Latent, decode, encode
from vdm_jax.weights.model_kinds import shapes

FOLDED = lc.LTXAutoencoder(
    patch=2, widths=(4,), out_width=8, blocks=(1, 1), shrink=("both",), latent_channels=2, decoder_widths=(8,),
    decoder_blocks=(1, 1), grow=(True,), noise=(True, False), narrowing=2, shortcuts=True, timed=True)
STRIDED = dataclasses.replace(FOLDED, out_width=4, shrink=("conv",), decoder_widths=(4,), noise=(False, False),
                              narrowing=1, shortcuts=False, timed=False)


def test_published_sizes():
    """Next to the means and deviations of the 128 channels."""
    for config, count in ((lc.AUTOENCODER_LTX_090, 419_193_649), (lc.AUTOENCODER_LTX_091, 934_976_434),
                          (lc.AUTOENCODER_LTX_095, 1_246_913_522)):
        assert sum(leaf.size for leaf in shapes(config).values()) == count + 2 * 128
        assert Latent(autoencoder=config).shape(161, 512, 704) == (21, 16, 22, 128)


@pytest.mark.parametrize("config", [pytest.param(STRIDED, marks=pytest.mark.full), FOLDED], ids=["strided", "folded"])
def test_the_encoder_takes_pieces_and_the_decoder_sees_later_frames(config, normal):
    params, video = random_params(config), normal(0, 1, 7, 4, 8, 3)
    params["std"] = np.abs(params["std"]) + 0.5
    whole, pieces = Latent(autoencoder=config), Latent(autoencoder=config, encode_frames=2)

    @jax.jit
    def run(params, video):
        z = encode(whole, params, video)
        return z, encode(pieces, params, video), decode(whole, params, z), decode(whole, params, z.at[:, -1].add(1.0))

    z, parts, x, later = run(params, video)
    assert z.shape == (1, 4, 1, 2, 2) and x.shape == video.shape
    np.testing.assert_allclose(parts, z, atol=2e-5)
    assert np.abs(x - later)[:, 3].max() > 1e-4  # frame 3 is of latent 2; the changed one begins with frame 5


def test_noise_of_the_decoder_is_the_same_each_time(normal):
    """From a stream of its own; without one there is none."""
    params, z, module = random_params(FOLDED), normal(0, 1, 2, 1, 2, 2), LTXAutoencoderKL(FOLDED)

    @jax.jit
    def run(params, z):
        def plain(seed):
            rngs = {} if seed is None else {"noise": jax.random.key(seed)}
            return module.apply({"params": params}, z, method="decode", rngs=rngs)

        return plain(None), plain(0), plain(1), decode(Latent(autoencoder=FOLDED), params, z)

    without, one, other, staged = run(params, z)
    assert np.abs(one - without).max() > 1e-3 and np.abs(one - other).max() > 1e-3
    np.testing.assert_allclose(np.clip(one, -1, 1), staged, atol=1e-6)


@pytest.mark.parametrize("change, named", [
    ({"blocks": (1,)}, ("LTXAutoencoder.blocks", "(1,)", "2 of them")),
    ({"shrink": ("fold",)}, ("LTXAutoencoder.shrink", "'fold'")),
    ({"shrink": ("none",)}, ("LTXAutoencoder.shrink", "('none',)")),
    ({"grow": (False,), "narrowing": 1}, ("LTXAutoencoder.grow", "(False,)", "doubles 0 times")),
    ({"narrowing": 3}, ("LTXAutoencoder.narrowing", "=3", "divisor of 8")),
    ({"decoder_widths": (4,)}, ("LTXAutoencoder.decoder_widths", "(4,)", "multiples of 8")),
    ({"out_width": 12}, ("LTXAutoencoder.widths", "become 12")),
    ({"decode_noise": 1.0}, ("LTXAutoencoder.decode_noise", "=1.0")),
])
def test_refused_sizes(change, named):
    with refused(*named, "permitted"):
        dataclasses.replace(FOLDED, **change)


def test_refused_clips(normal):
    with refused("Latent.decode_frames", "=2", "later ones", "tiles"):
        Latent(autoencoder=FOLDED, decode_frames=2)
    with refused("video.frames", "=4", "1, 3, 5"):
        Latent(autoencoder=FOLDED).shape(4, 8, 8)
    with refused("ltx.LTXAutoencoderKL.encode", "3x4", "multiples of 4"):
        LTXAutoencoderKL(FOLDED).init(jax.random.key(0), normal(0, 1, 1, 3, 4, 3))
