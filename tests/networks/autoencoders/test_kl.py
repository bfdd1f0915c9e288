"""KL autoencoders: published sizes, what frames see of each other, and pieces against the whole."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.networks.autoencoders import config as ac
from vdm_jax.networks.autoencoders import kl as ae
from vdm_jax.networks.autoencoders.blocks import Block, Halve
from vdm_jax.networks.autoencoders.tiling import in_chunks, in_tiles
from vdm_jax.networks.blocks.temporal import Mix
from vdm_jax.parallel.rules import parameter_axes

TINY = ac.Autoencoder(widths=(4, 8), blocks=1, groups=2, latent_channels=2)
TEMPORAL = dataclasses.replace(TINY, decoder="temporal", post_quant=False)


def sizes(config):
    side = config.factor
    shapes = jax.eval_shape(lambda: ae.AutoencoderKL(config).init(jax.random.key(0), jnp.zeros((1, 1, side, side, 3))))
    return {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in shapes["params"].items()}


def test_published_sizes():
    f8, svd = sizes(ac.AUTOENCODER_F8), sizes(ac.AUTOENCODER_SVD)
    assert f8 == {"encoder": 34_163_592, "decoder": 49_490_179, "quant": 72, "post_quant": 20}
    assert sum(f8.values()) == 83_653_863
    assert svd == {"encoder": 34_163_592, "decoder": 49_490_179 + 14_089_004, "quant": 72}
    assert sum(svd.values()) == 97_742_847
    assert sum(sizes(ac.AUTOENCODER_F4).values()) == 55_325_927


@pytest.fixture(scope="module")
def video():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 8, 6, 3)), jnp.float32)


@pytest.fixture(scope="module")
def temporal(filled, video):
    """Module, parameters and decoder of a tiny temporal autoencoder."""
    module = ae.AutoencoderKL(TEMPORAL)
    params = filled(module, video)
    return module, params, jax.jit(lambda params, z: module.apply({"params": params}, z, method="decode"))


def test_encoding_is_frame_by_frame(filled, video):
    module = ae.AutoencoderKL(TINY)
    params = filled(module, video)
    encode = jax.jit(lambda x: module.apply({"params": params}, x, method="encode"))
    moments = encode(video)
    assert moments.mean.shape == moments.logvar.shape == (2, 3, 4, 3, 2)
    alone = encode(video[:, 1:2])
    np.testing.assert_allclose(moments.mean[:, 1:2], alone.mean, atol=1e-5)
    np.testing.assert_allclose(moments.sample(2.0), moments.mean + 2 * np.exp(moments.logvar / 2), rtol=1e-5,
                               atol=3e-7)
    reconstructed = jax.jit(module.apply)({"params": params}, video)
    assert reconstructed.shape == video.shape and reconstructed.dtype == jnp.float32


def test_the_share_is_that_of_time(temporal):
    """At a very negative factor a temporal decoder is the image decoder of the same weights."""
    _, params, decode = temporal
    z = jnp.asarray(np.random.default_rng(1).normal(size=(1, 3, 4, 3, 2)), jnp.float32)
    identity = jnp.zeros((3, 1, 1, 3, 3)).at[1, 0, 0].set(jnp.eye(3))

    def closed(path, leaf):
        names = [k.key for k in path]
        return (jnp.full_like(leaf, -100.0) if names[-1] == "factor" else identity if names[-2:] == [
            "out_temporal", "kernel"] else jnp.zeros_like(leaf) if "out_temporal" in names else leaf)

    image = jax.tree_util.tree_map_with_path(closed, params)
    module = ae.AutoencoderKL(dataclasses.replace(TEMPORAL, decoder="frames"))
    expected = jax.jit(lambda p, z: module.apply({"params": p}, z, method="decode"))(image, z)
    np.testing.assert_allclose(decode(image, z), expected, atol=1e-5)
    assert np.abs(decode(params, z) - expected).max() > 0.01
    x, y = jnp.zeros((1,)), jnp.ones((1,))
    np.testing.assert_allclose(Mix().apply({"params": {"factor": jnp.array([0.5])}}, x, y), 0.62246, atol=1e-5)


def test_temporal_norms_span_the_clip(filled):
    """A change of one frame reaches all others through the statistics."""
    block = Block(4, True, {"groups": 2, "dtype": jnp.float32})
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 2, 2, 4)), jnp.float32)
    params = filled(block, x)
    run = jax.jit(lambda x: block.apply({"params": params}, x))
    assert np.abs(run(x.at[0, 0].add(5.0))[0, 5] - run(x)[0, 5]).max() > 1e-4


def test_downsampling_pads_at_the_bottom_and_the_right():
    module, x = Halve(jnp.float32), jnp.arange(16.0).reshape(1, 1, 4, 4, 1)
    ones = {"kernel": jnp.ones((1, 3, 3, 1, 1)), "bias": jnp.zeros(1)}
    y = module.apply({"params": ones}, x)[0, 0, ..., 0]
    np.testing.assert_allclose(y, [[45, 39], [66, 50]])  # the first sums rows and columns 0 to 2


def test_chunks_are_the_whole_for_layers_within_frames_and_clips_of_their_own_for_others(temporal):
    _, params, decode = temporal
    z = jnp.asarray(np.random.default_rng(1).normal(size=(1, 5, 4, 3, 2)), jnp.float32)
    chunked = jax.jit(lambda z: in_chunks(lambda part: decode(params, part), z, 2))(z)
    expected = jnp.concatenate([decode(params, z[:, i : i + 2]) for i in (0, 2, 4)], axis=1)
    np.testing.assert_allclose(chunked, expected, atol=1e-5)
    double = lambda x: 2 * x[..., :1]
    np.testing.assert_array_equal(in_chunks(double, z, 3), double(z))


@pytest.mark.parametrize("side", [(8, 8), (20, 13), (9, 30)])
def test_tiles_of_a_function_of_single_pixels_are_the_whole(side):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 2, *side, 2)), jnp.float32)
    double = lambda x: jnp.repeat(jnp.repeat(3 * x[..., :1], 2, axis=2), 2, axis=3)
    np.testing.assert_allclose(in_tiles(double, x, (8, 8), 3), double(x), atol=1e-5)
    shrunk = in_tiles(lambda x: x[:, :, ::2, ::2], jnp.repeat(jnp.repeat(x, 2, 2), 2, 3), (8, 12), 4)
    np.testing.assert_allclose(shrunk, x, atol=1e-5)


def test_tiles_blend_linearly():
    x = jnp.zeros((1, 1, 1, 10, 1))
    constant = lambda part: jnp.full(part.shape, 1.0) + part * 0
    np.testing.assert_allclose(in_tiles(constant, x, (1, 6), 2), 1.0)
    first = lambda part: (part[:, :, :, :1] == 0) * jnp.ones_like(part)  # 1 in the first tile
    y = in_tiles(first, jnp.arange(10.0).reshape(x.shape), (1, 6), 2)[0, 0, 0, :, 0]
    np.testing.assert_allclose(y, [1, 1, 1, 1, 0.75, 0.25, 0, 0, 0, 0], atol=1e-6)


def test_pieces_need_less_memory(filled):
    module = ae.AutoencoderKL(TINY)
    z = jnp.zeros((1, 16, 64, 64, 2))  # a tile of attention takes 2 MiB, whatever the size
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 1, 8, 8, 3))))

    def memory(run):
        compiled = jax.jit(lambda params, z: run(lambda part: module.apply(params, part, method="decode"), z))
        return compiled.lower(params, z).compile().memory_analysis().temp_size_in_bytes

    whole = memory(lambda decode, z: decode(z))
    assert memory(lambda decode, z: in_chunks(decode, z, 1)) < whole / 2
    assert memory(lambda decode, z: in_chunks(lambda p: in_tiles(decode, p, (8, 8), 2), z, 1)) < whole / 4


def test_refusals(filled, video):
    with refused("Autoencoder.widths"):
        ac.Autoencoder(widths=(6, 8), groups=4)
    with refused("kl.AutoencoderKL.encode", "2"):
        ae.AutoencoderKL(TINY).init(jax.random.key(0), video[:, :, :7])
    with refused("overlap", "=4"):
        in_tiles(lambda x: x, video, (4, 4), 4)
    with refused("tiling.in_tiles", "2"):
        in_tiles(lambda x: x[:, :, ::2, ::2], video, (4, 4), 1)
    with refused("frames", "=0"):
        in_chunks(lambda x: x, video, 0)


def test_convolutions_of_a_block_are_split_in_pairs():
    for path in ("residual", "temporal_residual"):
        assert parameter_axes(f"/decoder/up_0_0/{path}/conv_in/kernel", 5)[-2:] == ("embed", "mlp")
        assert parameter_axes(f"/decoder/up_0_0/{path}/conv_out/kernel", 5)[-2:] == ("mlp", "embed")
    assert parameter_axes("/decoder/middle/frame_attention/out/kernel", 2) == ("heads", "embed")
