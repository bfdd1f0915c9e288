"""Factors on the attention to tokens of each frame: against dense attention, and as what generators take."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.attention.patterns import Spatial, WithExtraKeys
from vdm_jax.conditions.conditioning import CONDITIONS, Conditioning, SampledVideos
from vdm_jax.conditions.text import EmbeddedText
from vdm_jax.generation.editing.prompt_to_prompt import in_pairs
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.token_weights import weighted_tokens
from vdm_jax.networks.blocks.attention import Attention
from vdm_jax.networks.config import CrossAttention, Level, SelfAttention, UNet
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LATENT_UNET_SD1
from vdm_jax.networks.transformer.config import wan
from vdm_jax.networks.transformer.members import cogvideox, hunyuan

BATCH, FRAMES, TOKENS, HEADS, WIDTH = 2, 3, 5, 2, 4


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def crossed():
    """A cross-attention, its parameters, positions, tokens and their mask."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, FRAMES, 2, 2, 6)).astype(np.float32)
    tokens, mask = rng.normal(size=(BATCH, 1, TOKENS, 7)).astype(np.float32), np.ones((BATCH, 1, TOKENS), bool)
    mask[1, 0, 4:] = False
    module = Attention(heads=HEADS, head_dim=WIDTH, pattern=None, joint=False)
    return module, module.init(jax.random.key(0), x, None, (tokens, mask)), x, tokens, mask


def attended(crossed, weights, x=None):
    module, params, own, tokens, mask = crossed
    with weighted_tokens(None if weights is None else jnp.asarray(weights, jnp.float32)):
        return np.asarray(module.apply(params, own if x is None else x, None, (tokens, mask)))


def by_hand(crossed, weights):
    """Dense attention whose matrix of weights has the columns of the first tokens scaled, frame by frame."""
    _, params, x, tokens, mask = crossed
    params = jax.tree.map(np.asarray, params)["params"]
    found = []
    for row in range(BATCH):
        for frame in range(FRAMES):
            def heads(a, name):
                return (a @ params[name]["kernel"]).reshape(-1, HEADS, WIDTH).swapaxes(0, 1)

            q, k, v = heads(x[row, frame].reshape(-1, 6), "query"), heads(tokens[row, 0], "key"), heads(
                tokens[row, 0], "value")
            attention = softmax(np.where(mask[row, 0], q @ k.swapaxes(1, 2) / np.sqrt(WIDTH), -1e30))
            attention[..., : weights.shape[2]] *= weights[row, frame]
            found.append((attention @ v).swapaxes(0, 1).reshape(-1, HEADS * WIDTH))
    y = np.stack(found).reshape(BATCH, FRAMES, 2, 2, -1)
    return y @ params["out"]["kernel"] + params["out"]["bias"]


def test_attention_to_tokens_is_scaled_frame_by_frame(crossed):
    weights = np.random.default_rng(1).uniform(-1, 5, (BATCH, FRAMES, 3))
    np.testing.assert_allclose(attended(crossed, weights), by_hand(crossed, weights), atol=1e-5)


def test_factors_of_one_leave_attention_as_it_is(crossed):
    plain = attended(crossed, None)
    np.testing.assert_array_equal(attended(crossed, np.ones((BATCH, 1, 2))), plain)
    np.testing.assert_allclose(attended(crossed, np.ones((BATCH, FRAMES, 2))), plain, atol=1e-6)  # in other groups


def test_equal_factors_of_all_frames_are_those_of_prompt_to_prompt(crossed):
    """To the last bit where there is one for the clip."""
    module, params, x, tokens, mask = crossed
    factors = (1.0, 3.0, 0.0)

    def intercept(call, arguments, options, context):
        found = call(*arguments, **options)
        if context.method_name == "crossing":  # a given video and a new one, of one estimate each
            found = in_pairs(*found, jnp.zeros(1, bool), factors, 1)
        return found

    with nn.intercept_methods(intercept):
        wanted = np.asarray(module.apply(params, x, None, (tokens, mask)))[1]
    weights = np.broadcast_to(np.array(factors), (BATCH, FRAMES, 3))
    np.testing.assert_array_equal(attended(crossed, weights[:, :1])[1], wanted)
    np.testing.assert_allclose(attended(crossed, weights)[1], wanted, atol=1e-6)
    assert np.abs(wanted - attended(crossed, None)[1]).max() > 1e-2


def test_factors_that_fit_no_frame_or_token_are_refused(crossed):
    for shape in ((BATCH, 2, 3), (BATCH, FRAMES, TOKENS + 1)):
        with refused("token_weights.frames", str(list(shape)), f"{FRAMES} frames to {TOKENS} tokens"):
            attended(crossed, np.ones(shape))


def test_a_null_caption_has_factors_of_one_and_windows_cut_those_of_frames():
    text = CONDITIONS["text"]
    given = Conditioning(text_mask=jnp.ones((2, 1, 3), bool), token_weights=jnp.full((2, 4, 3), 2.0))
    null = given.without_text()
    assert (null.token_weights == 1).all() and not null.text_mask.any()
    some = given.adding(text.null(given, jnp.array([True, False])))
    np.testing.assert_array_equal(some.token_weights[:, 0, 0], [1, 2])
    np.testing.assert_array_equal(given.without_named(["text"]).token_weights, null.token_weights)
    changing = given.replace(token_weights=given.token_weights * jnp.arange(4)[:, None])
    np.testing.assert_array_equal(changing.window(1, 2, 4).token_weights[0, :, 0], [2, 4])
    assert given.replace(token_weights=given.token_weights[:, :1]).window(1, 2, 4).token_weights.shape == (2, 1, 3)
    assert Conditioning(text_mask=jnp.ones((2, 1, 3), bool)).without_text().token_weights is None


def test_a_generator_takes_them(experiment, params):
    generator, caption = Generator(experiment, params, jax.devices()[:1]), "a red three"
    stage = generator.stages()[0]
    frames = stage.video.frames

    def made(**given):
        return generator([caption], last=stage.name, **given).videos.astype(int)

    plain = made()
    np.testing.assert_array_equal(made(token_weights=np.ones((1, frames, 2))), plain)
    changed = made(token_weights=np.full((1, frames, 2), 30.0))
    assert np.abs(changed - plain).max() > 1
    np.testing.assert_array_equal(made(token_weights=np.full((1, 1, 2), 30.0)), changed)
    np.testing.assert_array_equal(made(token_weights=np.full((1, 2 * frames, 2), 30.0)), changed)
    for wrong in (np.ones((2, frames, 2)), np.ones((1, frames + 1, 2)), np.ones(3), np.full((1, 1, 2), np.nan)):
        with refused("text.token_weights", str(list(wrong.shape)), f"1 or {frames}"):
            made(token_weights=wrong)
    with refused("Generator.long", "longer videos"):
        generator.long(caption, frames=2 * frames, token_weights=np.ones((1, 2 * frames, 2)))


def test_latents_of_several_frames_take_those_of_the_clip(experiment):
    stage = experiment.stages[0]
    conditioning = Conditioning(token_weights=jnp.ones((1, 2 * stage.shape[0], 3)))
    videos = SampledVideos(stage, jax.random.split(jax.random.key(0), 1), None, None, False, False, None)
    with refused("text.token_weights", "latents", f"{2 * stage.shape[0]} frames"):
        CONDITIONS["text"].in_sampling(conditioning, videos)
    assert CONDITIONS["text"].in_sampling(dataclasses.replace(
        conditioning, token_weights=jnp.ones((1, 1, 3))), videos) == {}


EMBEDDED, SIZES = EmbeddedText(width=6), {"width": 16, "heads": 2, "layers": 1, "text": EmbeddedText(width=6)}
JOINED, CROSSED = SelfAttention(pattern=WithExtraKeys(inner=Spatial()), head_dim=4), CrossAttention(head_dim=4)


@pytest.mark.parametrize("network, acts", [
    (UNet(levels=(Level(channels=8, mixers=(CROSSED,)),), text=EMBEDDED), True),
    (UNet(levels=(Level(channels=8),), middle=(CROSSED,), text=EMBEDDED), True),
    (UNet(levels=(Level(channels=8, mixers=(JOINED,)),), text=EMBEDDED), False),
    (UNet(levels=(Level(channels=8, mixers=(JOINED, CROSSED)),), text=EMBEDDED), False),
    (UNet(levels=(Level(channels=8),), text=EMBEDDED), False),  # pooled text
    (LatentNetwork(unet=LATENT_UNET_SD1, text=EmbeddedText(width=768)), True),
    (wan(**SIZES, hidden=8), True), (cogvideox(**SIZES), False), (hunyuan(**SIZES), False)])
def test_networks_without_cross_attention_to_text_are_refused(experiment, network, acts):
    stage = dataclasses.replace(experiment.stages[0])
    object.__setattr__(stage, "network", network)  # of no fitting stage, which nothing here reads
    conditioning = Conditioning(token_weights=jnp.ones((1, 1, 3)))
    videos = SampledVideos(stage, jax.random.split(jax.random.key(0), 1), None, None, False, False, None)
    if acts:
        assert CONDITIONS["text"].in_sampling(conditioning, videos) == {}
        return
    with refused("text.token_weights", "'base'", "cross-attention alone", "text_stream='cross'"):
        CONDITIONS["text"].in_sampling(conditioning, videos)
    assert CONDITIONS["text"].in_sampling(Conditioning(), videos) == {}
