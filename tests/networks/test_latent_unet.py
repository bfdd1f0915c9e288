"""U-Nets of open latent models: published sizes, the image network inside the video network, what is seen by what."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests.refusals import refused
from vdm_jax.networks import latent_unet as lu
from vdm_jax.networks.blocks.feed_forward import FeedForward
from vdm_jax.networks.blocks.temporal import Mix
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet_blocks import BlockInputs, Sizes, TokenTransformer, level_code
from vdm_jax.networks.latent_unet_network import LatentUNetNetwork
from vdm_jax.parallel.rules import parameter_axes
from vdm_jax.weights import model_kinds
from vdm_jax.weights.latent_inflation import plan_latent_inflation

SIZES = {"widths": (4, 8), "blocks": 1, "attention": (True, False), "heads": (2, 2),
         "only_cross_attention": (False, False), "token_channels": 6, "groups": 2, "use_linear_projection": True}
IMAGE = lu.LatentUNet(**SIZES)
VIDEO = dataclasses.replace(IMAGE, temporal=True, scalars=3, scalar_channels=8)


@pytest.mark.parametrize("config, parameters", [
    pytest.param(lu.LATENT_UNET_SD1, 859_520_964, marks=pytest.mark.full),  # in the tests of weights too, as is 2.x
    pytest.param(lu.LATENT_UNET_SD1_INPAINT, 859_535_364, marks=pytest.mark.full),
    pytest.param(lu.LATENT_UNET_SD2, 865_910_724, marks=pytest.mark.full),
    pytest.param(lu.LATENT_UNET_SD2_DEPTH, 865_913_604, marks=pytest.mark.full),
    (lu.LATENT_UNET_UPSCALER, 473_398_020),
], ids=["sd1", "inpaint", "sd2", "depth", "upscaler"])
def test_published_sizes(config, parameters):
    assert sum(leaf.size for leaf in model_kinds.shapes(config).values()) == parameters


@pytest.mark.full  # every tensor of it is in the tests of weights
def test_published_size_of_the_video_network():
    shapes = model_kinds.shapes(lu.LATENT_UNET_SVD)
    temporal = sum(leaf.size for path, leaf in shapes.items()
                   if any(part in path for part in ("temporal_residual", "/time/", "mix/factor", "/places_")))
    assert temporal == 656_076_838
    assert sum(leaf.size for leaf in shapes.values()) == 865_910_724 + 11_520 + 2_624_000 + temporal == 1_524_623_082
    assert sum(path.endswith("mix/factor") for path in shapes) == 38


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return draw(2, 3, 4, 4, 4), jnp.array([0.3, 0.7]), draw(2, 1, 2, 6), draw(2, 3)


@pytest.fixture(scope="module")
def video(filled, inputs):
    """Parameters of the video network, and it, compiled."""
    module = LatentUNetNetwork(VIDEO)
    x, level, context, scalars = inputs
    params = filled(module, x, level, context, scalars=scalars)
    return params, jax.jit(lambda params, x, context: module.apply(
        {"params": params}, x, level, context, scalars=scalars))


def test_without_a_share_of_temporal_layers_the_video_network_is_the_image_network(video, inputs):
    """Frame by frame."""
    params, run = video
    x, level, context, scalars = inputs
    shares = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full_like(leaf, 100.0) if path[-1].key == "factor" else leaf, params)
    found = run(shares, x, context)
    spatial = {path: leaf for path, leaf in traverse_util.flatten_dict(params, sep="/").items()
               if not any(part in path for part in ("temporal_residual", "/time/", "mix/factor", "/places_"))}
    image = dataclasses.replace(VIDEO, temporal=False)
    module = LatentUNetNetwork(image)
    expected = jax.jit(lambda x: module.apply({"params": traverse_util.unflatten_dict(spatial, sep="/")}, x, level,
                                              context, scalars=scalars))(x)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(run(params, x, context) - expected).max() > 0.01


def test_frames_see_each_other_and_samples_do_not(video, inputs):
    params, run = video
    x, _, context, _ = inputs
    before, after = run(params, x, context), run(params, x.at[0, 0].add(1), context)
    assert np.abs(after - before)[0, 2].max() > 1e-3
    np.testing.assert_allclose(after[1], before[1], atol=1e-5)


def test_the_prediction_of_a_network_in_bfloat16_is_not_rounded_to_it(filled, inputs):
    """The last layer is that of `UNet`: samplers add many predictions, whose rounding would add up."""
    module = LatentUNetNetwork(dataclasses.replace(IMAGE, dtype="bfloat16", attention=(False, False)))
    x, level, context, _ = inputs
    params = filled(module, x, level, context)
    found = jax.jit(lambda x: module.apply({"params": params}, x, level, context))(x)
    rounded = found.astype(jnp.bfloat16).astype(jnp.float32)
    assert found.dtype == jnp.float32 and (found != rounded).mean() > 0.9


def test_where_all_tokens_of_the_context_are_one_queries_and_keys_do_not_matter(video, inputs):
    params, run = video
    x, _, context, _ = inputs

    def changed(path, leaf):
        names = [key.key for key in path]
        return leaf + 1 if "cross_attention" in names and {"query", "key"} & set(names) else leaf

    other = jax.tree_util.tree_map_with_path(changed, params)
    one = jnp.repeat(context[:, :, :1], 2, axis=2)
    np.testing.assert_allclose(run(other, x, one), run(params, x, one), atol=1e-4)
    assert np.abs(run(other, x, context) - run(params, x, context)).max() > 1e-3


def test_layers_over_frames_see_the_context_of_the_first_frame(filled, inputs):
    """The same context for every frame is one for the clip; that of the first frame reaches the others."""
    x, _, context, _ = inputs
    module = TokenTransformer(2, Sizes(2, True, False, "xla", jnp.float32))
    each = jnp.repeat(context, 3, axis=1)
    params = filled(module, x, BlockInputs(None, each))
    run = jax.jit(lambda context: module.apply({"params": params}, x, BlockInputs(None, context)))
    found = run(each)
    np.testing.assert_allclose(found, run(context), atol=1e-4)
    assert np.abs(run(each.at[:, 0].add(1)) - found)[:, 2].max() > 1e-3


@pytest.mark.parametrize("share_of, start, expected", [("spatial", 0.5, 0.37754), ("temporal", 0.0, 0.5)])
def test_shares(share_of, start, expected):
    mix, zeros, ones = Mix(share_of, start), jnp.zeros((1, 2, 1, 1, 1)), jnp.ones((1, 2, 1, 1, 1))
    params = mix.init(jax.random.key(0), zeros, ones)
    np.testing.assert_allclose(mix.apply(params, zeros, ones), expected, atol=1e-5)
    raised = {"params": {"factor": jnp.array([start + 1])}}
    grows = share_of == "temporal"
    assert (mix.apply(raised, zeros, ones)[0, 0, 0, 0, 0] > expected) == grows


def test_the_code_of_a_level_has_cosines_first():
    code = level_code(jnp.array([2.0]), 4)
    np.testing.assert_allclose(code[0], [np.cos(2), np.cos(0.02), np.sin(2), np.sin(0.02)], atol=1e-6)


def test_gates_are_exact_gelu(filled):
    x = jnp.linspace(-2, 2, 6).reshape(3, 2)
    module = FeedForward(activation="gelu", gate="joint")
    params = filled(module, x)
    value, gate = np.split(np.asarray(x @ params["expand"]["kernel"] + params["expand"]["bias"]), 2, axis=-1)
    hidden = value * np.asarray(gate * (1 + jax.scipy.special.erf(gate / np.sqrt(2))) / 2)
    np.testing.assert_allclose(module.apply({"params": params}, x),
                               hidden @ params["out"]["kernel"] + params["out"]["bias"], atol=1e-5)


@pytest.mark.parametrize("change, message", [
    ({"x": (2, 3, 4, 4, 5)}, ("latent_unet.check", "4")), ({"scalars": None}, ("latent_unet.check",)),
    ({"context": (2, 2, 1, 6)}, ("latent_unet.check", "1", "6")),
    ({"classes": (2,)}, ("latent_unet.check",)),
])
def test_refused_inputs(change, message):
    shapes = {"x": (2, 3, 4, 4, 4), "context": (2, 1, 1, 6), "scalars": (2, 3), "classes": None} | change
    x, context, scalars, classes = (None if shape is None else jnp.zeros(shape) for shape in shapes.values())
    with refused(*message):
        jax.eval_shape(lambda: LatentUNetNetwork(VIDEO).init(
            jax.random.key(0), x, jnp.zeros(2), context, scalars=scalars, classes=classes))


@pytest.mark.parametrize("change, message", [
    ({"heads": (2,)}, ("LatentUNet.heads", "=(2,)", "2 levels")),
    ({"widths": (4, 9)}, ("LatentUNet.widths", "=(4, 9)", "heads=(2, 2)", "groups=2")),
    ({"heads": (3, 2)}, ("LatentUNet.widths", "=(4, 8)", "heads=(3, 2)", "groups=2")),
])
def test_refused_sizes(change, message):
    with refused(*message, "permitted: "):
        lu.LatentUNet(**{**SIZES, **change})


def test_layers_are_split_in_pairs():
    inside = "/down_0_0_transformer/time"
    assert parameter_axes(f"{inside}/cross_attention/out/kernel", 2) == ("heads", "embed")
    assert parameter_axes(f"{inside}/feed_forward_0/out/kernel", 2) == ("mlp", "embed")
    assert parameter_axes("/down_0_0/temporal_residual/conv_out/kernel", 5)[-2:] == ("mlp", "embed")


def test_the_weight_of_the_guidance_joins_the_noise_level(inputs):
    """As in released latent consistency models: 81,920 parameters for the U-Net of Stable Diffusion 1.x, which begin at
    zero, so that a student begins as its teacher whatever the weight."""
    taking = dataclasses.replace(IMAGE, weight_channels=8)
    module, (x, level, context, _) = LatentUNetNetwork(taking), inputs
    params = jax.jit(lambda: module.init(jax.random.key(0), x, level, context, weight=level)["params"])()
    kernel = params["weight"]["kernel"]
    assert kernel.shape == (8, 4) and not kernel.any()
    assert lu.LATENT_UNET_SD1.widths[0] * 256 == 81_920
    source = {name: leaf for name, leaf in params.items() if name != "weight"}
    plan = plan_latent_inflation(taking, params, IMAGE, source)
    assert plan.zero_initialised == ("/weight/kernel",) and not plan.new
    with refused("LatentUNet.weight_channels", "weight=None", "weight_channels=8"):
        module.apply({"params": params}, x, level, context)
    run = jax.jit(lambda weight, kernel: module.apply(
        {"params": {**params, "weight": {"kernel": kernel}}}, x, level, context, weight=weight))
    weights = jnp.array([0.0, 7.5])
    np.testing.assert_array_equal(run(weights, kernel), run(weights[::-1], kernel))
    assert np.abs(run(weights, kernel + 0.1) - run(weights[::-1], kernel + 0.1)).max() > 1e-4
    with refused("LatentNetwork.scalars", "weight_channels=8", "permitted: 'guidance' exactly"):
        LatentNetwork(unet=dataclasses.replace(taking, token_channels=768))
