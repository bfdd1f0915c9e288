"""Autoencoders with layers over time: T-KLVAE as an image autoencoder at first, LVDM's 3-D one, pieces along time."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.refusals import refused
from vdm_jax.networks.autoencoders import config as ac
from vdm_jax.networks.autoencoders import kl as ae
from vdm_jax.networks.autoencoders.clip import convolve_clip, grow_clip
from vdm_jax.networks.autoencoders.tiling import in_chunks, in_tiles
from vdm_jax.parallel.rules import parameter_axes
from vdm_jax.weights.model_kinds import shapes

IMAGE = ac.Autoencoder(widths=(4, 8), blocks=1, groups=2, latent_channels=2)
T_KL = dataclasses.replace(IMAGE, temporal_kernel=3, temporal_attention=True)
CLIP = ac.Autoencoder(widths=(4, 8, 8), blocks=1, groups=2, latent_channels=2, layout="clip", time_factor=2,
                      middle_attention=False)


def counts(config):
    return {part: sum(leaf.size for path, leaf in shapes(config).items() if path.split("/")[0] == part)
            for part in ("encoder", "decoder", "quant", "post_quant")}


def test_published_sizes_of_lvdm():
    assert counts(ac.AUTOENCODER_LVDM) == {"encoder": 7_458_952, "decoder": 11_987_715, "quant": 72, "post_quant": 20}
    module = ae.AutoencoderKL(ac.AUTOENCODER_LVDM)
    video = jax.ShapeDtypeStruct((1, 16, 256, 256, 3), jnp.float32)
    moments, _ = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, method="encode"), video)
    assert moments.mean.shape == (1, 4, 32, 32, 4)


def test_lvdm_latents_are_normalised_as_published():
    """z' = scale * (z + shift), by data set."""
    for name, scale, shift in (("sky", 0.33422927, 1.4606637), ("ucf", 0.220142075, 0.5837740898),
                               ("taichi", 0.175733933, 0.03291025)):
        config = dataclasses.replace(ac.AUTOENCODER_LVDM, **ac.LVDM_LATENTS[name])
        z = jnp.linspace(-3.0, 3.0, 7)
        np.testing.assert_allclose(config.normalise(z), scale * (z + shift), rtol=1e-6)
        np.testing.assert_allclose(config.denormalise(config.normalise(z)), z, atol=1e-6)


def begun_as(params, image):
    """`params` with those of an image autoencoder where it has them."""
    if not hasattr(params, "items"):
        return image
    return {name: begun_as(value, image[name]) if name in image else value for name, value in params.items()}


def test_a_new_t_klvae_is_the_image_autoencoder_frame_by_frame(filled, normal):
    """Exactly: its convolutions over time begin as the identity, its attention over time adds nothing. Not compiled as
    a whole, which would sum the same numbers in another order."""
    video, z = normal(0, 2, 3, 4, 6, 3), normal(1, 2, 3, 2, 3, 2)
    image, module = ae.AutoencoderKL(IMAGE), ae.AutoencoderKL(T_KL)
    weights = filled(image, video)

    def run(module, params):
        return [module.apply({"params": params}, value, method=method)
                for method, value in (("encode", video), ("decode", z))]

    params = jax.jit(lambda key: begun_as(module.init(key, video)["params"], weights))(jax.random.key(0))
    assert len(jax.tree.leaves(params)) > len(jax.tree.leaves(weights))
    for one, other in zip(*map(jax.tree.leaves, (run(module, params), run(image, weights))), strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_layer_of_a_t_klvae_sees_other_frames_once_it_is_trained(filled, normal):
    video, module = normal(0, 1, 9, 8, 8, 3), ae.AutoencoderKL(T_KL)
    params = filled(module, video)
    encode = jax.jit(lambda x: module.apply({"params": params}, x, method="encode").mean)
    changed = np.abs(encode(video.at[:, 0].add(1.0)) - encode(video)).max((0, 2, 3, 4))
    assert changed.min() > 1e-6  # the attention reaches all frames
    names = {path.rsplit("/", 1)[0] for path in shapes(T_KL) if "temporal" in path and path.endswith("kernel")}
    for part, ways in (("encoder", ("stem", "out", "downsample_0", "down_0_0/residual/conv_in")),
                       ("decoder", ("stem", "out", "upsample_0/conv", "up_1_1/residual/conv_out"))):
        assert {f"{part}/{way}/temporal" for way in ways} <= names
        assert f"{part}/middle/temporal_attention/out" in names


def test_convolutions_of_clips(normal):
    """Folded into two dimensions they are the plain ones over frames, rows and columns with repeated edges."""
    x, kernel = normal(0, 2, 4, 4, 2, 3), normal(1, 4, 4, 4, 3, 2)
    for strides in ((1, 1, 1), (2, 2, 2), (1, 2, 2)):
        more = [4 - s for s in strides]
        wide = jnp.pad(x, ((0, 0), *((n - n // 2, n // 2) for n in more), (0, 0)), mode="edge")
        plain = {"padding": ((0, 0),) * 3, "dimension_numbers": ("NDHWC", "DHWIO", "NDHWC")}
        shrunk = lax.conv_general_dilated(wide, kernel, strides, **plain)
        np.testing.assert_allclose(convolve_clip(x, kernel, strides), shrunk, atol=2e-5)
        upsampled = lax.conv_general_dilated(wide, kernel, (1, 1, 1), lhs_dilation=strides, **plain)
        np.testing.assert_allclose(grow_clip(x, kernel, strides), upsampled, atol=2e-5)
        assert upsampled.shape[1:4] == tuple(size * s for size, s in zip(x.shape[1:4], strides, strict=True))


@pytest.fixture(scope="module")
def clip(filled):
    """Module, parameters and a jitted decoder of a small 3-D autoencoder."""
    module = ae.AutoencoderKL(CLIP)
    params = filled(module, jnp.zeros((1, 2, 4, 4, 3)))
    return module, params, jax.jit(lambda z: module.apply({"params": params}, z, method="decode"))


def test_a_3d_autoencoder_shrinks_time_and_brings_it_back(clip, normal):
    module, params, decode = clip
    moments = jax.jit(lambda x: module.apply({"params": params}, x, method="encode"))(normal(0, 1, 4, 8, 8, 3))
    assert moments.mean.shape == (1, 2, 2, 2, 2)
    assert decode(moments.mean).shape == (1, 4, 8, 8, 3)
    with refused("kl.AutoencoderKL.encode", "3", "2"):
        module.apply({"params": params}, normal(0, 1, 3, 8, 8, 3), method="encode")


def test_pieces_with_overlap_are_the_whole_where_nothing_farther_is_seen(filled, normal):
    """Convolutions over time reach one frame each: stem, two in each of three blocks, out."""
    config = dataclasses.replace(T_KL, widths=(4,), temporal_attention=False)
    module, video = ae.AutoencoderKL(config), normal(0, 1, 19, 2, 2, 3)
    params = filled(module, video)
    encode = jax.jit(lambda x: module.apply({"params": params}, x, method="encode").mean)
    whole = encode(video)
    np.testing.assert_allclose(in_chunks(encode, video, 3, overlap=8), whole, atol=1e-5)
    np.testing.assert_allclose(in_chunks(encode, video, 19, overlap=1), whole, atol=1e-5)
    assert np.abs(in_chunks(encode, video, 3, overlap=1) - whole).max() > 1e-4


def test_pieces_of_a_function_that_changes_the_number_of_frames(normal):
    kernel, x = normal(0, 4, 4, 4, 3, 3), normal(1, 2, 12, 4, 4, 3)
    shrink, grow = (lambda part, f=f: f(part, kernel, (2, 2, 2)) for f in (convolve_clip, grow_clip))
    for function, frames in ((shrink, 4), (grow, 4), (grow, 5)):
        np.testing.assert_allclose(in_chunks(function, x, frames, overlap=2), function(x), atol=1e-5)
    together = in_chunks(lambda part: in_tiles(grow, part, (4, 4), 2), x, 3, overlap=1)
    np.testing.assert_allclose(together, grow(x), atol=1e-5)
    with refused("frames", "overlap=1", "12"):
        in_chunks(shrink, x, 4, overlap=1)
    with refused("overlap", "=-1"):
        in_chunks(grow, x, 4, overlap=-1)


@pytest.mark.parametrize("config", [CLIP, pytest.param(T_KL, marks=pytest.mark.full)], ids=["clip", "t_kl"])
def test_decoding_in_pieces_does_not_hold_the_clip(config):
    """Twice the frames need the same temporary memory and twice the video."""
    module = ae.AutoencoderKL(config)
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 2, 4, 4, 3))))

    def memory(frames, pieces):
        def run(params, z):
            decode = lambda part: module.apply(params, part, method="decode")
            return in_chunks(lambda part: in_tiles(decode, part, (8, 8), 2), z, 2, 1) if pieces else decode(z)

        z = jax.ShapeDtypeStruct((1, frames, 16, 16, 2), jnp.float32)
        return jax.jit(run).lower(params, z).compile().memory_analysis().temp_size_in_bytes

    short, long = memory(8, True), memory(16, True)
    assert long < 1.05 * short + 8 * config.time_factor * (16 * config.factor) ** 2 * 3 * 4  # the video itself
    assert config is T_KL or memory(16, False) > 4 * long


def test_weights_over_time_are_split_in_pairs():
    assert parameter_axes("/decoder/up_0_0_residual/conv_in/kernel", 5)[-2:] == ("embed", "mlp")
    assert parameter_axes("/decoder/up_0_0_residual/conv_out/kernel", 5)[-2:] == ("mlp", "embed")
    assert parameter_axes("/encoder/middle/temporal_attention/out/kernel", 2) == ("heads", "embed")


@pytest.mark.parametrize(("changes", "message"), [
    ({"time_factor": 2}, ("Autoencoder.time_factor", "layout='frames'")), ({"layout": "clip"},
     ("Autoencoder.layout", "middle_attention=False")),
    ({"layout": "clip", "middle_attention": False, "time_factor": 3}, ("Autoencoder.time_factor",)),
    ({"layout": "clips"}, ("Autoencoder.layout", "'frames'", "'clip'")), ({"temporal_kernel": 2},
     ("Autoencoder.temporal_kernel",)),
    ({"temporal_attention": True, "middle_attention": False}, ("Autoencoder.temporal_attention",)),
    ({"temporal_kernel": 3, "decoder": "temporal"}, ("Autoencoder.decoder",))])
def test_refusals(changes, message):
    with refused(*message):
        dataclasses.replace(IMAGE, **changes)
