"""Causal autoencoders: published sizes, what a frame sees, and pieces of a clip against the whole."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks.conftest import fill
from tests.refusals import refused
from vdm_jax.networks.autoencoders import causal_config as cc
from vdm_jax.networks.autoencoders.causal import CausalAutoencoderKL
from vdm_jax.networks.autoencoders.causal_blocks import PositionNorm, fold, folded_means, unfold, unfolded_copies
from vdm_jax.networks.autoencoders.tiling import in_stream
from vdm_jax.stages.latent import Latent, decode, decoding_step, encode, encoding_step
from vdm_jax.weights.model_kinds import shapes

TINY = cc.CausalAutoencoder(widths=(4, 8, 8), halve_frames=(True, True), blocks=1, latent_channels=2,
                            mean=(0.1, -0.2), std=(0.5, 2.0))
RESIDUAL = dataclasses.replace(TINY, shortcuts=True, patch=2, decoder_widths=(8, 8, 16))
KINDS = {"2.1": TINY, "2.2": RESIDUAL}
# Frames of a clip, frames encoded at a time, latents decoded at a time: whole pieces after the first frame, or not
PIECES = {"2.1": (9, 4, 1), "2.2": (13, 8, 2)}


def random_video(config, frames, seed=0):
    shape = (2, frames, config.factor, 2 * config.factor, 3)
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)


def whole(name):
    """Config, parameters, and a clip with its latents and their video, in one piece."""
    config = KINDS[name]
    video = random_video(config, PIECES[name][0])
    params = fill(CausalAutoencoderKL(config), video[:, :1])
    latent = Latent(autoencoder=config)
    z, x = jax.jit(lambda p, x: (encode(latent, p, x), decode(latent, p, encode(latent, p, x))))(params, video)
    return config, params, video, z, x


@pytest.fixture(scope="module")
def model():
    return whole("2.1")


@pytest.fixture(scope="module")
def residual():
    return whole("2.2")


def test_published_sizes():
    total = {name: sum(leaf.size for leaf in shapes(config).values())
             for name, config in (("2.1", cc.AUTOENCODER_WAN21), ("2.2", cc.AUTOENCODER_WAN22))}
    assert total == {"2.1": 126_892_531, "2.2": 704_688_668}
    for config, latents in ((cc.AUTOENCODER_WAN21, (21, 60, 104, 16)), (cc.AUTOENCODER_WAN22, (21, 30, 52, 48))):
        assert Latent(autoencoder=config).shape(81, 480, 832) == latents


@pytest.mark.parametrize("name", KINDS)
def test_pieces_give_what_the_whole_clip_gives(name, request):
    config, params, video, z, x = request.getfixturevalue({"2.1": "model", "2.2": "residual"}[name])
    frames, encoded, decoded = PIECES[name]
    assert z.shape == (2, 1 + (frames - 1) // 4, 1, 2, config.latent_channels) and x.shape == video.shape
    assert np.abs(x).max() <= 1 and np.abs(x[:, 1:] - x[:, :1]).max() > 0.1
    latent = Latent(autoencoder=config, encode_frames=encoded, decode_frames=decoded)
    found = jax.jit(lambda p, x, z: (encode(latent, p, x), decode(latent, p, z)))(params, video, z)
    np.testing.assert_allclose(found[0], z, atol=2e-5)
    np.testing.assert_allclose(found[1], x, atol=2e-5)


def test_a_stream_shows_frames_before_the_last_latent_is_there(model):
    """Piece by piece, as latents come: 1 frame of the first, 4 of each later one. A picture is a clip of one frame."""
    config, params, video, z, x = model
    latent, state, shown = Latent(autoencoder=config), None, []
    step = jax.jit(lambda p, z, state: decoding_step(latent, p)(z, state))
    for start, stop in ((0, 1), (1, 3)):
        part, state = step(params, z[:, start:stop], state)
        shown.append(part)
    assert [part.shape[1] for part in shown] == [1, 8]
    np.testing.assert_allclose(jnp.concatenate(shown, axis=1), x, atol=2e-5)
    picture, _ = jax.jit(lambda p, x: encoding_step(latent, p)(x, None))(params, video[:, :1])
    np.testing.assert_allclose(config.normalise(picture[..., : config.latent_channels]), z[:, :1], atol=2e-5)


@pytest.mark.full
def test_pieces_need_memory_that_does_not_grow_with_the_clip():
    config = dataclasses.replace(TINY, widths=(4, 4), halve_frames=(True,))
    latent = Latent(autoencoder=config, decode_frames=1)
    params = jax.eval_shape(lambda: CausalAutoencoderKL(config).init(jax.random.key(0), jnp.zeros((1, 1, 8, 8, 3))))

    def memory(frames, latent=latent):
        z = jax.ShapeDtypeStruct((1, frames, 8, 8, 2), jnp.float32)
        compiled = jax.jit(lambda p, z: decode(latent, p["params"], z)).lower(params, z).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = memory(5), memory(17)
    assert long < short + 2.5 * 12 * 2 * 16 * 16 * 3 * 4  # the video itself, a carry of the scan
    assert memory(17, dataclasses.replace(latent, decode_frames=None)) > 2 * long


@pytest.mark.full
def test_tiles_keep_a_state_each(model):
    config, params, _, z, _ = model
    side = config.factor
    tiles = Latent(autoencoder=config, tile=(side, side), decode_frames=1)
    found = jax.jit(lambda p, z: decode(tiles, p, z))(params, z)
    alone = jax.jit(lambda p, z: decode(Latent(autoencoder=config), p, z))
    expected = [alone(params, z[:, :, :, i : i + 1]) for i in range(2)]
    np.testing.assert_allclose(found, jnp.concatenate(expected, axis=3), atol=2e-5)


def test_latents_are_normalised_by_channel():
    z = jnp.array([0.6, -2.2])
    np.testing.assert_allclose(TINY.normalise(z), [1.0, -1.0], atol=1e-6)
    np.testing.assert_allclose(TINY.denormalise(TINY.normalise(z)), z, atol=1e-6)
    published = cc.AUTOENCODER_WAN21
    assert (published.mean[9], published.std[15]) == (-0.0715, 1.9160)
    assert (cc.AUTOENCODER_WAN22.mean[0], cc.AUTOENCODER_WAN22.std[47]) == (-0.2289, 0.7744)


def test_layers_are_their_equations():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 2, 4, 2)), jnp.float32)
    scale = jnp.array([1.0, 2.0])
    expected = x / np.sqrt(np.square(x).mean(-1, keepdims=True)) * scale
    np.testing.assert_allclose(PositionNorm().apply({"params": {"scale": scale}}, x), expected, atol=1e-5)
    np.testing.assert_array_equal(PositionNorm().apply({"params": {"scale": scale}}, 0 * x), 0 * x)
    # The folded channels of a colour: its columns before its rows.
    np.testing.assert_array_equal(fold(x, 2)[0, 0, 0, 0, :4], [x[0, 0, 0, 0, 0], x[0, 0, 1, 0, 0], x[0, 0, 0, 1, 0],
                                                              x[0, 0, 1, 1, 0]])
    np.testing.assert_array_equal(unfold(fold(x, 2), 2), x)
    halves = folded_means(x, 2, 2, 2)  # three frames: the first alone, with zeros before it
    assert halves.shape == (1, 2, 1, 2, 2)
    np.testing.assert_allclose(halves[0, 0, 0, 0], np.asarray(x[0, 0, :2, :2]).sum((0, 1)) / 8, atol=1e-6)
    np.testing.assert_allclose(halves[0, 1, 0, 1], np.asarray(x[0, 1:, :2, 2:]).mean((0, 1, 2)), atol=1e-6)
    copies = unfolded_copies(x, 2, 2, 1)  # of 2 channels, each for 4 of the 8 pixels of a block
    assert copies.shape == (1, 6, 4, 8, 1)
    np.testing.assert_array_equal(copies[0, :2, :2, :2, 0], np.broadcast_to(x[0, 0, 0, 0, :, None, None], (2, 2, 2)))


@pytest.mark.parametrize("changes, named", [
    ({"widths": (4, 6, 8)}, ("CausalAutoencoder.widths", "(4, 6, 8)")),
    ({"decoder_widths": (4, 8)}, ("CausalAutoencoder.decoder_widths", "(4, 8)")),
    ({"halve_frames": (True,)}, ("CausalAutoencoder.halve_frames", "(True,)", "3 widths")),
    ({"mean": (0.0,)}, ("CausalAutoencoder.mean", "latent_channels=2")),
    ({"std": (0.0, 1.0)}, ("CausalAutoencoder.std", "0")),
    ({"widths": (3, 3, 3)}, ("CausalAutoencoder.widths", "even")),
    ({"shortcuts": True, "widths": (2, 34, 34)}, ("CausalAutoencoder.widths", "shortcuts", "to 34")),
    ({"shortcuts": True, "decoder_widths": (1, 2, 34)}, ("CausalAutoencoder.decoder_widths", "shortcuts", "to 34")),
])
def test_refused_sizes(changes, named):
    with refused(*named, "permitted"):
        dataclasses.replace(TINY, **changes)


def test_refused_pieces(model):
    config, params, video, _, _ = model
    module = CausalAutoencoderKL(config)
    with refused("video.frames", "=8", "1, 5, 9"):
        encode(Latent(autoencoder=config), params, video[:, :8])
    state = jax.eval_shape(lambda: encoding_step(Latent(autoencoder=config), params)(video[:, :1], None))[1]
    with refused("causal.CausalAutoencoderKL.encode", "3 frames", "multiples of 4"):
        jax.eval_shape(lambda s: module.apply({"params": params, **s}, video[:, 1:4], method="encode"), state)
    with refused("causal.CausalAutoencoderKL.encode", f"multiples of {config.factor}"):
        module.apply({"params": params}, video[:, :1, :-1], method="encode")
    with refused("Latent.encode_frames", "=6", "4, 8"):
        Latent(autoencoder=config, encode_frames=6)
    with refused("Latent.overlap_frames", "=1", "permitted: 0"):
        Latent(autoencoder=config, overlap_frames=1)
    with refused("frames", "=0"):
        in_stream(lambda x, state: (x, state), video, 0, 1)
    with refused("frames", "=3", "first 1 of 9"):
        in_stream(lambda x, state: (x, state), video, 3, 1)
