"""LVDM's and Video LDM's networks: sizes, temporal attention with offsets, shares per frame, conditioning frames."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests.refusals import refused
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.diffusion.schedules import LinearBetaSchedule
from vdm_jax.networks import latent_inputs
from vdm_jax.networks import latent_network as ln
from vdm_jax.networks import latent_unet as lu
from vdm_jax.networks.blocks.residual import ResidualBlock
from vdm_jax.networks.blocks.temporal import Mix
from vdm_jax.networks.latent_unet_blocks import BlockInputs, FactorisedAttention, LatentBlock, Sizes, TokenTransformer
from vdm_jax.networks.latent_unet_network import LatentUNetNetwork
from vdm_jax.networks.layers import GroupNorm, convolve, silu
from vdm_jax.weights import model_kinds
from vdm_jax.weights.latent_inflation import plan_latent_inflation

SIZES = Sizes(2, False, False, "auto", jnp.float32, max_relative_position=2, norm_over="clip")
IMAGE = lu.LatentUNet(widths=(4, 8), blocks=1, attention=(True, False), heads=(2, 2),
                      only_cross_attention=(False, False), token_channels=6, groups=2)
LVDM = dataclasses.replace(IMAGE, token_channels=0, max_relative_position=2, norm_over="clip", scale_shift_norm=True)
VIDEO_LDM = dataclasses.replace(IMAGE, temporal=True, conditioning_channels=5)


@pytest.mark.parametrize("config, parameters, over_frames", [
    (lu.LATENT_UNET_LVDM, 548_904_580, 57_589_632),
    pytest.param(lu.LATENT_UNET_LVDM_PREDICTION, 549_163_908, None, marks=pytest.mark.full),
    pytest.param(lu.LATENT_UNET_LVDM_INTERPOLATION, 549_181_060, None, marks=pytest.mark.full),
    pytest.param(lu.LATENT_UNET_LVDM_TEXT, 958_924_964, 99_354_080, marks=pytest.mark.full),
    pytest.param(lu.LATENT_UNET_VIDEO_LDM, 865_910_724 + 656_076_838, None, marks=pytest.mark.full),
    # Of 1,509M: two rates, convolutions that halve the conditioning latents, and a map of it in front of each layer
    # over frames
    pytest.param(lu.LATENT_UNET_VIDEO_LDM_INTERPOLATION, 1_509_208_042 + 2 * 1280 + 3 * (9 * 25 + 5) + 195_840, None,
                 marks=pytest.mark.full),
])
def test_published_sizes(config, parameters, over_frames):
    shapes = model_kinds.shapes(config)
    assert sum(leaf.size for leaf in shapes.values()) == parameters
    if over_frames is not None:
        own = ("time_attention/", "/norm_time/") if not config.token_channels else ("/time_attention",)
        assert sum(leaf.size for path, leaf in shapes.items() if any(part in path for part in own)) == over_frames


@pytest.mark.parametrize("name", ["alone", "in_transformer"])
def test_attention_over_frames_with_offsets(name, filled, normal):
    """It sees frames by how far they are, and starts as the identity."""
    x, context = normal(0, 2, 4, 2, 2, 4), normal(1, 2, 1, 3, 6)
    module = FactorisedAttention(2, SIZES) if name == "alone" else TokenTransformer(2, SIZES)
    given = BlockInputs(None, context if name != "alone" else None)
    params = filled(module, x, given)
    apply = jax.jit(lambda params, x: module.apply({"params": params}, x, given))
    y, changed = apply(params, x), x.at[0, 0].add(1.0 + normal(2, 2, 2, 4))
    assert np.abs(apply(params, changed) - y)[0, 3].max() > 1e-3
    turned = apply(params, x[:, ::-1])[:, ::-1]
    assert np.abs(turned - y).max() > 1e-3  # offsets have a sign
    names = ["time_attention"] if name == "alone" else ["time_attention_0", "time_attention_1"]
    where = params if name == "alone" else params["space"]
    silent = {n: {**where[n], "out": jax.tree.map(jnp.zeros_like, where[n]["out"])} for n in names}
    still = {**params, **silent} if name == "alone" else {**params, "space": {**where, **silent}}
    if name == "in_transformer":  # whose first norm has statistics over the clip
        changed = x.at[0, 0].set(x[0, 0, ::-1])
    np.testing.assert_allclose(apply(still, changed)[:, 1:], apply(still, x)[:, 1:], atol=1e-5)
    start = jax.eval_shape(module.init, jax.random.key(0), x, given)["params"]
    where = start if name == "alone" else start["space"]
    assert where[names[0]]["offset_keys"]["vectors_t"].shape == (5, 2)


def test_a_norm_that_is_scaled_and_shifted(filled, normal):
    x, vector = normal(0, 2, 3, 2, 2, 4), normal(1, 2, 1, 8)
    module = ResidualBlock(4, over="clip", groups=2, epsilon=1e-5, scale_shift_norm=True)
    params = filled(module, x, vector)
    h = convolve(silu(GroupNorm(2, "clip").apply({"params": params["norm_in"]}, x)), params["conv_in"]["kernel"])
    h = GroupNorm(2, "clip").apply({"params": params["norm_out"]}, h + params["conv_in"]["bias"])
    scale, shift = jnp.split(silu(vector) @ params["embedding"]["kernel"] + params["embedding"]["bias"], 2, axis=-1)
    h = silu(h * (1 + scale[:, :, None, None]) + shift[:, :, None, None])
    expected = x + convolve(h, params["conv_out"]["kernel"]) + params["conv_out"]["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, x, vector), expected, atol=1e-4)


def test_each_frame_may_have_a_share_of_its_own():
    mix, zeros = Mix("spatial", 0.0, 3), jnp.zeros((1, 3, 1, 1, 1))
    params = {"params": {"factor": jnp.array([0.0, 100.0, -100.0])}}
    np.testing.assert_allclose(mix.apply(params, zeros, zeros + 1).reshape(3), [0.5, 0, 1], atol=1e-6)
    with refused("temporal.Mix.__call__", "2", "3"):
        mix.apply(params, zeros[:, :2], zeros[:, :2])


def test_layers_over_frames_are_told_what_is_known_and_those_within_are_not(filled, normal):
    sizes = Sizes(2, True, False, "auto", jnp.float32)
    x, embedding, conditioning_latents = normal(0, 1, 3, 2, 2, 4), normal(1, 1, 1, 8), normal(2, 1, 3, 2, 2, 5)
    module = LatentBlock(4, sizes, 1e-5)
    params = filled(module, x, BlockInputs(embedding, None, conditioning_latents))
    run = jax.jit(lambda params,
                  conditioning_latents: module.apply({"params": params}, x,
                                                     BlockInputs(embedding, None, conditioning_latents)))
    assert np.abs(run(params, conditioning_latents) - run(params, 0 * conditioning_latents)).max() > 1e-3
    alone = {**params, "mix": {"factor": jnp.full(1, 100.0)}}  # no share of the temporal layer
    np.testing.assert_allclose(run(alone, conditioning_latents), run(alone, 0 * conditioning_latents), atol=1e-6)


def network(**options):
    kinds = {"layers": {"unet": VIDEO_LDM, "frame_conditioning": "layers"},
             "in_place": {"unet": dataclasses.replace(LVDM, in_channels=5, classes=11), "frame_noise_steps": 10,
                          "frame_conditioning": "in_place", "frame_noise_step": 3, "timesteps": LinearBetaSchedule()}}
    return ln.LatentNetwork(**{**kinds[options.pop("kind")], **options})


def test_known_latents_take_the_place_of_noisy_ones(normal):
    spec, z, conditioning_latents = network(kind="in_place"), normal(0, 2, 3, 2, 2, 4), normal(1, 2, 3, 2, 2, 4)
    mask = jnp.zeros((2, 3, 2, 2, 1)).at[:, 0].set(1)
    conditioning = Conditioning(conditioning_frames=mask * conditioning_latents, conditioning_mask=mask,
                                scalars={"frame_noise_step": jnp.array([3.0, 7.0])})
    x = latent_inputs.stacked(spec, z, conditioning, latent_inputs.conditioning_latents(spec, conditioning))
    np.testing.assert_array_equal(x[..., :4], jnp.concatenate([conditioning_latents[:, :1], z[:, 1:]], axis=1))
    np.testing.assert_array_equal(x[..., 4:], mask)
    np.testing.assert_array_equal(latent_inputs.classes(spec, conditioning, 2), [3, 7])
    nothing = conditioning.without_frames()
    given = latent_inputs.conditioning_latents(spec, nothing)
    np.testing.assert_array_equal(latent_inputs.stacked(spec, z, nothing, given)[..., :4], z)
    rate = network(kind="layers", unet=dataclasses.replace(VIDEO_LDM, classes=2), rate=1)
    np.testing.assert_array_equal(latent_inputs.classes(rate, Conditioning(), 2), [1, 1])
    assert spec.conditioning_frames and not ln.LatentNetwork(unet=IMAGE).conditioning_frames


Z = jnp.zeros((2, 3, 2, 2, 4))
KNOWN = Conditioning(conditioning_frames=Z, conditioning_mask=Z[..., :1], scalars={"frame_noise_step": jnp.zeros(2)})


def test_noise_that_the_network_is_not_told():
    """Where classes are frame rates, conditioning frames may be noised all the same."""
    rates = dataclasses.replace(VIDEO_LDM, classes=2)
    spec = network(kind="layers", unet=rates, rate=1, frame_noise_steps=10, frame_noise_step=0)
    np.testing.assert_array_equal(latent_inputs.classes(spec, Conditioning(), 2), [1, 1])
    latent_inputs.check_inputs(spec, Z, jnp.zeros(2), KNOWN.replace(scalars={}))


@pytest.mark.parametrize("kind", ["layers", "in_place"])
def test_networks_take_their_inputs(kind):
    """Shapes alone: latents, what is given, and parameters by the U-Net's names."""
    spec = network(kind=kind)

    def run(conditioning=KNOWN):
        module = ln.LatentNetworkModule(spec)
        return jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), Z, jnp.zeros(2), conditioning))

    y, variables = run()
    assert y.shape == Z.shape
    paths = {"/".join(k.key for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])}
    assert paths == model_kinds.shapes(spec.unet).keys()
    with refused("conditioning.check_parts", "Conditioning.conditioning_frames"):
        run(KNOWN.replace(conditioning_frames=None))
    if kind == "in_place":
        with refused("conditioning.check_parts", "frame_noise_step"):
            run(KNOWN.replace(scalars={}))


@pytest.mark.parametrize("make, message", [
    (lambda: network(kind="layers", unet=IMAGE),
     ("LatentNetwork.frame_conditioning", "='layers'", "conditioning_channels=0")),
    (lambda: network(kind="layers", frame_conditioning="none"),
     ("LatentNetwork.frame_conditioning", "='none'", "conditioning_channels=5")),
    (lambda: network(kind="in_place", frame_noise_step=11), ("LatentNetwork", "frame_noise_step=11")),
    (lambda: network(kind="in_place", frame_noise_steps=12), ("LatentNetwork", "13")),
    (lambda: network(kind="layers", rate=0), ("LatentNetwork.rate", "=0")),
    (lambda: dataclasses.replace(IMAGE, conditioning_channels=5), ("LatentUNet", "temporal=False")),
    (lambda: dataclasses.replace(IMAGE, token_channels=0), ("LatentUNet",)),
    (lambda: dataclasses.replace(VIDEO_LDM, max_relative_position=2), ("LatentUNet",)),
    (lambda: model_kinds.kind_of(LVDM), ("model_kinds.kind_of",)),
    (lambda: model_kinds.kind_of(VIDEO_LDM).write(VIDEO_LDM), ("LatentUNet", "UNetSpatioTemporalConditionModel")),
])
def test_refused(make, message):
    with refused(*message):
        make()


VIDEOS = [
    dataclasses.replace(IMAGE, temporal_conv=lu.TemporalConv()),
    dataclasses.replace(IMAGE, motion=lu.Motion(heads=2, groups=2)),
    VIDEO_LDM, dataclasses.replace(IMAGE, max_relative_position=2),
]


@pytest.mark.full
@pytest.mark.parametrize("video", VIDEOS, ids=["stack", "motion", "known", "offsets"])
def test_it_is_that_network_frame_by_frame(video, filled, normal):
    x, level, context = normal(0, 2, 3, 4, 4, 4), jnp.array([3.0, 700.0]), normal(1, 2, 1, 3, 6)
    conditioning_latents = {"conditioning_latents": normal(2, 2, 3, 4, 4, 5)} if video.conditioning_channels else {}
    module, image = LatentUNetNetwork(video), LatentUNetNetwork(IMAGE)
    source = filled(image, x, level, context)
    params = filled(module, x, level, context, **conditioning_latents)
    fresh = plan_latent_inflation(video, params, IMAGE, source).apply(params, source)
    expected = jax.jit(image.apply)({"params": source}, x, level, context)
    run = jax.jit(lambda params: module.apply({"params": params}, x, level, context, **conditioning_latents))
    np.testing.assert_allclose(run(fresh), expected, atol=1e-4)
    assert np.abs(run(params) - expected).max() > 0.01


@pytest.mark.parametrize("video", VIDEOS, ids=["stack", "motion", "known", "offsets"])
def test_every_kind_begins_as_an_image_network(video):
    """The last layer of each branch over frames is silent, and all of the image network is there."""
    shapes = [traverse_util.unflatten_dict(model_kinds.shapes(config), sep="/") for config in (video, IMAGE)]
    plan = plan_latent_inflation(video, shapes[0], IMAGE, shapes[1])
    assert {name.removeprefix("/") for name in plan.copied} == model_kinds.shapes(IMAGE).keys()
    branches = {name.rsplit("/", 2)[0] for name in plan.zero_initialised}
    assert len(branches) >= 3 and plan.new
