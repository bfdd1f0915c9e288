"""Text and image encoders of open weights: published sizes, what sees what, and each formula against a plain one."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.networks.blocks.feed_forward import ACTIVATIONS
from vdm_jax.networks.encoders import clip_text, clip_vision
from vdm_jax.networks.encoders import t5 as t5_encoder
from vdm_jax.parallel.rules import parameter_axes

TEXT = clip_text.CLIPText(vocabulary=20, length=8, width=8, layers=3, heads=2, hidden=16, project=6, end_token=19)
VISION = clip_vision.CLIPVision(size=8, patch=4, width=8, layers=1, heads=2, hidden=16, project=6)
T5 = t5_encoder.T5Encoder(vocabulary=20, width=8, layers=2, heads=2, head_dim=8, hidden=16, bucket_distance=8,
                          buckets=8)
TOKENS = jnp.array([[18, 3, 4, 5, 19, 0, 0], [18, 7, 19, 0, 19, 0, 0]])


def run(module, params, *inputs):
    return jax.jit(module.apply)({"params": params}, *inputs)


def total(module, *inputs):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def slow(config, parameters):
    """In the full tests; most are in those of weights too, tensor by tensor."""
    return pytest.param(config, parameters, marks=pytest.mark.full)


@pytest.mark.parametrize("config, parameters", [
    slow(clip_text.CLIP_TEXT_L, 123_060_480),  # of the text encoder in folders of Stable Diffusion 1.x
    (clip_text.CLIP_TEXT_H_23, 340_387_840),  # in those of 2.x
    slow(dataclasses.replace(clip_text.CLIP_TEXT_H, project=1024), 354_032_640),  # whole: 354 M with Video LDM
    slow(clip_vision.CLIP_VISION_H, 632_076_800),  # the image encoder of Stable Video Diffusion
    slow(clip_vision.CLIP_VISION_L, 303_966_208),
    (t5_encoder.T5_SMALL, 35_332_800), (t5_encoder.T5_BASE, 109_628_544), slow(t5_encoder.T5_LARGE, 341_231_104),
    slow(t5_encoder.T5_XL, 1_223_527_424), slow(t5_encoder.T5_XXL, 4_762_310_656), (t5_encoder.UMT5_XXL, 5_680_910_336),
], ids=["text_l", "text_h_23", "text_h", "vision_h", "vision_l", "t5_small", "t5_base", "t5_large", "t5_xl", "t5_xxl",
        "umt5_xxl"])
def test_published_sizes(config, parameters):
    kind = {clip_text.CLIPText: clip_text.CLIPTextEncoder, clip_vision.CLIPVision: clip_vision.CLIPVisionEncoder,
            t5_encoder.T5Encoder: t5_encoder.T5TextEncoder}[type(config)]
    images = isinstance(config, clip_vision.CLIPVision)
    example = jnp.zeros((1, config.size, config.size, 3)) if images else jnp.zeros((1, 4), int)
    assert total(kind(config), example) == parameters


def test_a_text_is_read_from_left_to_right_and_summed_up_at_its_end(filled):
    module = clip_text.CLIPTextEncoder(TEXT)
    params = filled(module, TOKENS)
    apply = lambda tokens: run(module, params, tokens)
    features, changed = apply(TOKENS), apply(TOKENS.at[:, 5:].set(9))
    np.testing.assert_allclose(changed.tokens[:, :5], features.tokens[:, :5], atol=1e-6)
    assert np.abs(changed.tokens[:, 5:] - features.tokens[:, 5:]).max() > 0.01
    np.testing.assert_allclose(changed.pooled, features.pooled, atol=1e-6)
    # The first end token counts, and the projection has no bias.
    expected = jnp.stack([features.tokens[0, 4], features.tokens[1, 2]]) @ params["project"]["kernel"]
    np.testing.assert_allclose(features.pooled, expected, atol=1e-5)


def test_the_end_is_the_largest_id_where_the_file_says_2(filled):
    largest = clip_text.CLIPTextEncoder(dataclasses.replace(TEXT, end_token=2))
    params = filled(largest, TOKENS)
    found = run(largest, params, TOKENS).pooled
    np.testing.assert_allclose(found, run(clip_text.CLIPTextEncoder(TEXT), params, TOKENS).pooled)


def test_the_penultimate_state_is_that_of_a_network_without_its_last_layer(filled):
    penultimate = clip_text.CLIPTextEncoder(dataclasses.replace(TEXT, hidden_state=-2))
    params = filled(penultimate, TOKENS)
    shorter = clip_text.CLIPTextEncoder(dataclasses.replace(TEXT, layers=2))
    fewer = {name: value for name, value in params.items() if name != "layer_2"}
    np.testing.assert_allclose(run(penultimate, params, TOKENS).tokens,
                               run(shorter, fewer, TOKENS).tokens, atol=1e-6)


def test_a_mask_hides_tokens(filled):
    module = clip_text.CLIPTextEncoder(TEXT)
    params = filled(module, TOKENS)
    seen = jnp.arange(7)[None] != 1
    masked = run(module, params, TOKENS, jnp.broadcast_to(seen, TOKENS.shape)).tokens
    other = run(module, params, TOKENS.at[:, 1].set(2), jnp.broadcast_to(seen, TOKENS.shape)).tokens
    np.testing.assert_allclose(masked[:, 2:], other[:, 2:], atol=1e-6)


def test_patches_are_a_convolution(filled):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    module = clip_vision.Patches(5, 4, jnp.float32)
    params = filled(module, images)
    expected = jax.lax.conv_general_dilated(images, params["kernel"][0], (4, 4), "VALID",
                                            dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(run(module, params, images), expected.reshape(2, 4, 5), atol=1e-5)


def test_the_summary_of_an_image_is_normalised_and_projected(filled):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    module = clip_vision.CLIPVisionEncoder(VISION)
    params = filled(module, images)
    features = run(module, params, images)
    assert features.tokens.shape == (2, 5, 8) and features.pooled.shape == (2, 6)
    x = np.asarray(features.tokens[:, 0])
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + VISION.epsilon)
    x = (x * params["norm"]["scale"] + params["norm"]["bias"]) @ params["project"]["kernel"]
    np.testing.assert_allclose(features.pooled, x, atol=1e-5)


def test_t5_does_not_see_padding_and_knows_offsets_only(filled):
    module = t5_encoder.T5TextEncoder(T5)
    tokens = jnp.array([[3, 4, 5, 6, 0, 0]])
    params = filled(module, tokens)
    mask = tokens > 0
    apply = lambda tokens, mask: run(module, params, tokens, mask)
    features = apply(tokens, mask)
    np.testing.assert_allclose(apply(tokens.at[:, 4:].set(9), mask)[:, :4], features[:, :4], atol=1e-5)
    moved = apply(jnp.roll(tokens, 2, 1), jnp.roll(mask, 2, 1))  # positions are relative
    np.testing.assert_allclose(moved[:, 2:], features[:, :4], atol=1e-5)
    assert np.abs(apply(tokens[:, ::-1], mask[:, ::-1])[:, ::-1] - features)[:, :4].max() > 0.01


def test_t5_of_one_layer_is_its_equations(filled):
    config = dataclasses.replace(T5, layers=1)
    module = t5_encoder.T5TextEncoder(config)
    tokens = jnp.array([[3, 4, 5]])
    p = jax.tree.map(np.asarray, filled(module, tokens))
    norm = lambda x, scale: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale
    x = p["words"][np.asarray(tokens[0])]
    h, attention = norm(x, p["layer_0_norm_attention"]["scale"]), p["layer_0_self_attention"]
    q, k, v = ((h @ attention[n]["kernel"]).reshape(3, 2, 8) for n in ("query", "key", "value"))
    # Buckets of offsets (key minus query): 2 and more share a logarithmic one; later keys have the upper half.
    bucket = {0: 0, -1: 1, -2: 2, 1: 5, 2: 6}
    bias = p["offsets"][np.array([[bucket[j - i] for j in range(3)] for i in range(3)])].transpose(2, 0, 1)
    weights = np.asarray(jax.nn.softmax(np.einsum("qkd,skd->kqs", q, k) + bias))  # not scaled
    x = x + np.einsum("kqs,skd->qkd", weights, v).reshape(3, 16) @ attention["out"]["kernel"]
    h, mlp = norm(x, p["layer_0_norm_feed_forward"]["scale"]), p["layer_0_feed_forward"]
    gate = np.asarray(ACTIVATIONS["gelu_new"](h @ mlp["gate"]["kernel"]))
    x = x + (gate * (h @ mlp["expand"]["kernel"])) @ mlp["out"]["kernel"]
    np.testing.assert_allclose(run(module, p, tokens)[0], norm(x, p["norm"]["scale"]), atol=1e-4)


def test_layers_of_umt5_have_biases_of_their_own(filled):
    """With the same ones in all layers it is T5."""
    tokens = jnp.array([[3, 4, 5, 6, 7]])
    own, shared = (t5_encoder.T5TextEncoder(dataclasses.replace(T5, offsets_per_layer=each)) for each in (True, False))
    params = filled(own, tokens)
    alike = {name: value for name, value in params.items() if not name.endswith("_offsets")}
    both = {**alike, "layer_0_offsets": params["layer_0_offsets"], "layer_1_offsets": params["layer_0_offsets"]}
    expected = run(shared, {**alike, "offsets": params["layer_0_offsets"]}, tokens)
    np.testing.assert_allclose(run(own, both, tokens), expected, atol=1e-5)
    assert np.abs(run(own, params, tokens) - expected).max() > 0.01


def test_activations_differ_where_models_do():
    x = jnp.array([-1.0, 0.5, 2.0])
    np.testing.assert_allclose(ACTIVATIONS["quick_gelu"](x), x / (1 + np.exp(-1.702 * x)), rtol=1e-6)
    np.testing.assert_allclose(ACTIVATIONS["gelu"](x), [-0.158655, 0.345731, 1.954500], atol=1e-6)
    assert np.abs(ACTIVATIONS["gelu_new"](x) - ACTIVATIONS["gelu"](x)).max() > 1e-5


@pytest.mark.parametrize("kind, sizes, message", [
    (clip_text.CLIPText, {"width": 10, "heads": 3}, ("CLIPText.heads", "=3", "width=10")),
    (clip_text.CLIPText, {"activation": "swish"}, ("CLIPText.activation", "='swish'", "'gelu'")),
    (clip_text.CLIPText, {"hidden_state": 0}, ("CLIPText.hidden_state", "=0", "-12 to -1")),
    (clip_vision.CLIPVision, {"size": 225}, ("CLIPVision.size", "=225", "patch=14")),
    (t5_encoder.T5Encoder, {"layers": 0}, ("T5Encoder.layers", "=0", ">= 1")),
])
def test_refused_sizes(kind, sizes, message):
    with refused(*message, "permitted: "):
        kind(**sizes)


def test_refused_inputs(filled):
    with refused("clip_text.CLIPTextEncoder.__call__", "9"):
        total(clip_text.CLIPTextEncoder(TEXT), jnp.zeros((1, 9), int))
    with refused("clip_vision.CLIPVisionEncoder.__call__", "8", "3"):
        total(clip_vision.CLIPVisionEncoder(VISION), jnp.zeros((1, 8, 4, 3)))


def test_layers_are_split_in_pairs():
    assert parameter_axes("/layer_0/self_attention/query/kernel", 2) == ("embed", "heads")
    assert parameter_axes("/layer_0/self_attention/value/kernel", 2) == ("embed", "mlp")
    assert parameter_axes("/layer_0/self_attention/out/kernel", 2) == ("heads", "embed")
    assert parameter_axes("/layer_0_feed_forward/out/kernel", 2) == ("mlp", "embed")
    assert parameter_axes("/words", 2) == ("vocabulary", "embed")
