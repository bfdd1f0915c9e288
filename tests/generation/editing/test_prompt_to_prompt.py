"""Prompt-to-Prompt: attention in pairs against dense attention, words among tokens, and edits of a tiny cascade."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pipelines.folders import write_pictures
from tests.refusals import refused
from vdm_jax.generation.editing.ddim_inversion import DDIMInversion
from vdm_jax.generation.editing.edit import edit
from vdm_jax.generation.editing.prompt_to_prompt import PromptToPrompt, WordWeight, in_pairs, steps_replaced
from vdm_jax.generation.editing.words import words_of
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.released.models import load_released
from vdm_jax.networks.blocks.attention import Attention

SOURCE, TARGET = ["a red three moving left", "a blue two"], ["a blue three moving left", "a red two"]
VIDEOS = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3)).astype(np.uint8)
PAIRS, ESTIMATES, TOKENS, HEADS, WIDTH = 2, 2, 5, 2, 4
WEIGHTS = (1.0, 3.0, 0.0)


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def by_hand(params, x, tokens, mask, active):
    """Dense attention whose matrix of weights is edited: that of each new video's first estimate is the given video's
    where `active`, and its columns are scaled."""
    x = x.reshape(PAIRS, 2, ESTIMATES, -1, x.shape[-1])
    tokens = tokens.reshape(PAIRS, 2, ESTIMATES, TOKENS, -1)

    def heads(a, name):
        return (a @ params[name]["kernel"]).reshape(*a.shape[:-1], HEADS, WIDTH)

    q, k, v = heads(x, "query"), heads(tokens, "key"), heads(tokens, "value")
    logits = np.einsum("bpeskd,bpemkd->bpeksm", q, k) / np.sqrt(WIDTH)
    weights = softmax(np.where(mask.reshape(PAIRS, 2, ESTIMATES, 1, 1, TOKENS), logits, -1e30))
    for pair in range(PAIRS):
        if active[pair]:
            weights[pair, 1, 0] = weights[pair, 0, 0]
        weights[pair, 1, 0] *= np.array([*WEIGHTS, 1, 1])
    y = np.einsum("bpeksm,bpemkd->bpeskd", weights, v)
    return y.reshape(*y.shape[:-2], -1) @ params["out"]["kernel"] + params["out"]["bias"]


def test_attention_has_the_weights_that_are_edited():
    rng, batch = np.random.default_rng(0), PAIRS * 2 * ESTIMATES
    x = rng.normal(size=(batch, 1, 2, 3, 6)).astype(np.float32)
    tokens = rng.normal(size=(batch, 1, TOKENS, 7)).astype(np.float32)
    mask, active = np.ones((batch, 1, TOKENS), bool), np.array([True, False])
    mask[2, 0, 4:] = mask[0, 0, 4:] = mask[6, 0, 3:] = False
    module = Attention(heads=HEADS, head_dim=WIDTH, pattern=None, joint=False)
    params = module.init(jax.random.key(0), x, None, (tokens, mask))["params"]

    def intercept(call, arguments, options, context):
        found = call(*arguments, **options)
        return in_pairs(*found, jnp.asarray(active), WEIGHTS, ESTIMATES) if context.method_name == "crossing" else found

    with nn.intercept_methods(intercept):
        found = module.apply({"params": params}, x, None, (tokens, mask))
    expected = by_hand(jax.tree.map(np.asarray, params), x, tokens, mask, active)
    np.testing.assert_allclose(np.asarray(found).reshape(expected.shape), expected, atol=1e-5)
    plain = np.asarray(module.apply({"params": params}, x, None, (tokens, mask)))
    np.testing.assert_allclose(np.delete(found, [2, 6], 0), np.delete(plain, [2, 6], 0), atol=1e-6)  # all the others


class WithBranch(nn.Module):
    """Cross-attention in the main network, a ControlNet and the encoder of captions, each of its own channels."""

    @nn.compact
    def __call__(self, x, tokens):
        names = ("crossattention_0", "control_net_control", "text")
        return jnp.concatenate([Attention(heads=HEADS, head_dim=WIDTH, pattern=None, joint=False, name=name)(
            part, None, (tokens, None)) for name, part in zip(names, jnp.split(x, 3, axis=-1), strict=True)], axis=-1)


def test_networks_next_to_the_main_one_keep_their_attention():
    rng = np.random.default_rng(0)
    x, tokens = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 1, 2, 3, 18), (2, 1, TOKENS, 7)))
    module = WithBranch()
    params = module.init(jax.random.key(0), x, tokens)

    def estimate(stage):
        return lambda z, logsnr, conditioning: module.apply(params, z, conditioning)

    levels = np.array([-1.0, 1.0])
    denoise = PromptToPrompt(cross_replace=1.0).crossed(None, WEIGHTS, levels, 1, estimate)
    found, plain = denoise(x, jnp.full(2, -1.0), tokens), module.apply(params, x, tokens)
    main, others = np.abs(found - plain)[..., :6], np.abs(found - plain)[..., 6:]
    assert main[1].max() > 1e-2 and main[0].max() < 1e-6 and others.shape[-1] == 12 and others.max() == 0


@pytest.fixture(scope="module")
def generator(experiment, params):
    return Generator(experiment, params, jax.devices()[:1])


def made(generator, method, captions=TARGET, **options):
    """By the stage that reads captions."""
    return edit(generator, VIDEOS[:, :2, ::2, ::2], captions, source_captions=SOURCE, method=method, last="base",
                guidance=0.0, **options).videos.astype(int)


def test_replacement_and_weights_change_the_edit(generator):
    """Without them, and with the given video's own caption, it is DDIM inversion."""
    plain, none = made(generator, DDIMInversion()), made(generator, PromptToPrompt(cross_replace=0.0))
    assert np.abs(none - plain).max() <= 1
    method = PromptToPrompt(cross_replace=1.0)
    replaced, own = made(generator, method), made(generator, method, SOURCE)
    assert np.abs(replaced - plain).max() > 1
    assert np.abs(own - made(generator, DDIMInversion(), SOURCE)).max() <= 1
    weighted = PromptToPrompt(cross_replace=1.0, weights=(WordWeight(word="a", weight=20.0),))
    assert np.abs(made(generator, weighted) - replaced).max() > 1


@pytest.mark.parametrize(("made", "share", "expected"), [
    (100, 0.55, 55), (50, 0.14, 7), (50, 0.28, 14), (50, 0.8, 40), (3, 0.5, 2), (10, 0.01, 1), (10, 0.0, 0),
    (9, 1.0, 9)])
def test_how_many_steps_are_replaced(made, share, expected):
    assert steps_replaced(made, share) == expected


def test_stages_that_read_no_captions_are_left_to_ddim(generator):
    _, large = generator.stages()
    assert PromptToPrompt().by_words(large, generator, TARGET, SOURCE) is None


def test_words_among_tokens(generator, tmp_path):
    stage, = generator.stages(None, "base")
    assert words_of(generator, stage, "A red, three") == (("a", "red", "three"), ((0,), (1,), (2,)))
    released = load_released(write_pictures(tmp_path / "folder"), jax.devices()[:1])
    tokenizer, caption = released.encoder.captions.tokenizer, "a red three"
    found = words_of(released, released.stages()[0], caption)
    assert found.words == ("a", "red", "three") and [p for some in found.places for p in some] == list(
        range(1, 1 + len(tokenizer.split(caption).ids)))  # after the token that begins a text
    for word, places in zip(found.words, found.places, strict=True):
        assert len(places) == len(tokenizer.split(word).ids)


def test_what_cannot_be(generator):
    with refused("PromptToPrompt.captions", "words of [1, 1, 1] and [1, 1, 1, 1, 1] tokens", "cross_replace=0"):
        edit(generator, VIDEOS[1:], TARGET[:1], source_captions=SOURCE[1:], method=PromptToPrompt())
    method = PromptToPrompt(weights=(WordWeight(word="green", weight=2.0),))
    with refused("PromptToPrompt.weights", "'green', which is no word of 'a blue three moving left'"):
        edit(generator, VIDEOS, TARGET, source_captions=SOURCE, method=method)
    with refused("edit.source_captions", "method='prompt_to_prompt' without source_captions"):
        edit(generator, VIDEOS, TARGET, method=PromptToPrompt())
