"""Text inputs: padding and null captions are invisible, groups are independent, words matter where they stand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.networks.config import EmbeddedText, WordEncoder
from vdm_jax.networks.text import TextConditioner

WORDS = WordEncoder(words=tuple("abcdefg"), length=6, width=16, layers=2, head_dim=8)


@pytest.fixture(scope="module")
def encode(filled):
    """tokens [B, G, L] and mask -> (text tokens, their mask, pooled vector)."""
    module = TextConditioner(WORDS, 10)
    example = Conditioning(tokens=jnp.zeros((1, 1, 6), int), text_mask=jnp.zeros((1, 1, 6), bool))
    params = filled(module, example)
    apply = jax.jit(lambda tokens, mask: module.apply({"params": params},
                                                      Conditioning(tokens=tokens, text_mask=mask)))

    def encode(tokens, mask=None):
        tokens = jnp.asarray(tokens)
        return apply(tokens, tokens > 0 if mask is None else jnp.asarray(mask))

    return encode


def test_padding_is_not_read(encode):
    tokens = np.array([[[3, 4, 5, 0, 0, 0]], [[2, 0, 0, 0, 0, 0]]])
    mask = tokens > 0
    x, out_mask, pooled = encode(tokens, mask)
    assert x.shape == (2, 1, 6, 16) and pooled.shape == (2, 1, 10)
    np.testing.assert_array_equal(out_mask, mask)
    other, _, other_pooled = encode(np.where(mask, tokens, 7), mask)
    np.testing.assert_allclose(np.where(mask[..., None], x, 0), np.where(mask[..., None], other, 0), atol=1e-6)
    np.testing.assert_allclose(pooled, other_pooled, atol=1e-6)


def test_every_word_and_its_place_matters(encode):
    _, _, pooled = encode([[[3, 4, 5, 0, 0, 0]], [[3, 4, 6, 0, 0, 0]], [[4, 3, 5, 0, 0, 0]], [[3, 4, 5, 5, 0, 0]]])
    for other in pooled[1:]:
        assert np.abs(other - pooled[0]).max() > 1e-2


def test_null_caption_is_the_same_for_all_tokens_and_is_not_a_caption(encode):
    tokens = np.array([[[3, 4, 5, 0, 0, 0]], [[2, 7, 0, 0, 0, 0]]])
    x, mask, pooled = encode(tokens, np.zeros_like(tokens, bool))
    assert mask.all()  # one row of null vectors: attention has something to look at
    np.testing.assert_array_equal(x, np.broadcast_to(x[:1, :, :1], x.shape))
    np.testing.assert_array_equal(pooled[0], pooled[1])
    assert np.abs(pooled[0] - encode(tokens)[2][0]).max() > 1e-2


def test_groups_are_captions_of_their_own(encode):
    tokens = np.array([[[3, 4, 5, 0, 0, 0], [2, 7, 6, 5, 4, 3], [0] * 6], [[1, 0, 0, 0, 0, 0], [0] * 6, [4] * 6]])
    together = encode(tokens)
    apart = encode(tokens.reshape(6, 1, 6))
    for a, b in zip(together, apart, strict=True):
        np.testing.assert_allclose(a, np.reshape(b, a.shape), atol=1e-5)


def test_embeddings_made_beforehand(filled, normal):
    module = TextConditioner(EmbeddedText(width=12), 10)
    embeddings = normal(0, 2, 1, 5, 12)
    mask = jnp.asarray([[[True] * 3 + [False] * 2], [[False] * 5]])
    params = filled(module, Conditioning(embeddings=embeddings, text_mask=mask))

    def encode(embeddings):
        return module.apply({"params": params}, Conditioning(embeddings=embeddings, text_mask=mask))

    x, out_mask, pooled = encode(embeddings)
    assert x.shape == (2, 1, 5, 12) and pooled.shape == (2, 1, 10)
    np.testing.assert_array_equal(out_mask[:, 0], [[True] * 3 + [False] * 2, [True] * 5])
    changed = jnp.where(mask[..., None], embeddings, 9.0)  # what is masked is not read
    np.testing.assert_allclose(encode(changed)[2], pooled, atol=1e-6)
    assert np.abs(encode(embeddings.at[0, 0, 1].add(normal(1, 12)))[2][0] - pooled[0]).max() > 1e-2


@pytest.mark.parametrize(("make", "message"), [
    (lambda: WordEncoder(width=0), ("WordEncoder.width", "=0", ">= 1")),
    (lambda: WordEncoder(width=20, head_dim=16), ("WordEncoder.head_dim", "=16", "width=20")),
    (lambda: EmbeddedText(width=-1), ("EmbeddedText.width", "=-1", ">= 1")),
])
def test_config_errors(make, message):
    with refused(*message):
        make()
