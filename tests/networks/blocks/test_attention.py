"""The one attention block against plain formulas: separate and joint projections, sequences, outside tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.attention import Spatial, Temporal, WithExtraKeys
from vdm_jax.networks.blocks.attention import Attention


def softmax_attention(q, k, v):
    """Of sequences `[B, L, K, D]`."""
    weights = jax.nn.softmax(jnp.einsum("bqkd,bskd->bkqs", q, k) * q.shape[-1] ** -0.5)
    return jnp.einsum("bkqs,bskd->bqkd", weights, v).reshape(*q.shape[:2], -1)


def heads(x):
    return x.reshape(*x.shape[:-1], 2, -1)


def test_reference_tokens_go_through_the_separate_keys_and_values(filled, normal):
    """No further parameters: the weights of an image network attend to references as they are."""
    module = Attention(heads=2, pattern=WithExtraKeys(inner=Spatial()), joint=False)
    x, tokens = normal(0, 1, 1, 2, 3, 4), normal(1, 1, 1, 5, 4)
    params = filled(module, x, None, (tokens, None))
    assert params.keys() == {"query", "key", "value", "out"}
    rows = x.reshape(1, 6, 4)
    seen = jnp.concatenate([rows, tokens[:, 0]], axis=1)
    q, k, v = (heads(a @ params[name]["kernel"]) for name, a in (("query", rows), ("key", seen), ("value", seen)))
    expected = softmax_attention(q, k, v) @ params["out"]["kernel"] + params["out"]["bias"]
    found = module.apply({"params": params}, x, None, (tokens, None))
    np.testing.assert_allclose(found.reshape(1, 6, 4), expected, atol=1e-5)


@pytest.mark.parametrize("joint", [True, False])
def test_cross_attention_of_a_sequence(joint, filled, normal):
    """One summary per group of tokens, with other channels: what pools text."""
    module = Attention(head_dim=3, heads=2, pattern=None, joint=joint, features=6)
    x, tokens = normal(0, 1, 2, 4), normal(1, 1, 2, 5, 4)
    mask = jnp.arange(5) < jnp.array([[[3], [5]]])
    params = filled(module, x, None, (tokens, mask))
    found = module.apply({"params": params}, x, None, (tokens, mask))
    for group, length in enumerate((3, 5)):
        seen = tokens[:, group, :length]
        q = heads(x[:, group : group + 1] @ params["query"]["kernel"])
        if joint:
            k, v = (heads(a) for a in jnp.split(seen @ params["key_value"]["kernel"], 2, axis=-1))
        else:
            k, v = (heads(seen @ params[name]["kernel"]) for name in ("key", "value"))
        expected = softmax_attention(q, k, v) @ params["out"]["kernel"] + params["out"]["bias"]
        np.testing.assert_allclose(found[:, group : group + 1], expected, atol=1e-5)


def test_logits_that_are_not_scaled(filled, normal):
    module = Attention(heads=2, pattern=Temporal(), joint=False, scaled=False, kernel="xla")
    x = normal(0, 1, 3, 4)
    params = filled(module, x)
    q, k, v = (heads(x @ params[name]["kernel"]) for name in ("query", "key", "value"))
    expected = softmax_attention(q * 2**0.5, k, v) @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, x), expected, atol=1e-5)
