"""Llama as a text encoder, against attention written out head by head and token by token."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from tests.refusals import refused
from tests.training.latents import random_params
from vdm_jax.networks.encoders.llama import LlamaText, LlamaTextEncoder, turned

TINY = LlamaText(vocabulary=20, width=8, layers=3, heads=4, key_heads=2, head_dim=4, hidden=12, base=50.0)


def norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + TINY.epsilon) * scale


def rotated(vector, place):
    """Channel i turns with channel i + 2, by place / 50^(i / 2)."""
    out = vector.copy()
    for i in range(2):
        angle = place / 50 ** (i / 2)
        pair = (vector[i] + 1j * vector[i + 2]) * np.exp(1j * angle)
        out[i], out[i + 2] = pair.real, pair.imag
    return out


def attention(weights, x):
    q, k, v = (x @ weights[name]["kernel"] for name in ("query", "key", "value"))
    found = np.zeros((len(x), 16))
    for head in range(4):
        own, shared = slice(4 * head, 4 * head + 4), slice(4 * (head // 2), 4 * (head // 2) + 4)
        keys = np.stack([rotated(k[place, shared], place) for place in range(len(x))])
        for place in range(len(x)):
            logits = keys[: place + 1] @ rotated(q[place, own], place) / 2
            share = np.exp(logits - logits.max())
            found[place, own] = share @ v[: place + 1, shared] / share.sum()
    return found @ weights["out"]["kernel"]


def test_hidden_states_before_the_last_layers():
    """Of texts of 5 and 3 tokens; of all layers with their norm, and without the last two."""
    params = random_params(TINY)
    tokens, mask = np.array([[3, 1, 4, 1, 5], [2, 7, 1, 0, 0]]), np.arange(5)[None] < np.array([[5], [3]])
    found, whole = jax.jit(lambda params: [
        LlamaTextEncoder(dataclasses.replace(TINY, skipped=skipped)).apply({"params": params}, tokens, mask)
        for skipped in (2, 0)])(params)
    weights = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    for row, length in enumerate((5, 3)):
        x, states = weights["words"][tokens[row, :length]], []
        for i in range(3):
            layer = {name.removeprefix(f"layer_{i}_"): value for name, value in weights.items()}
            x = x + attention(layer["self_attention"], norm(x, layer["norm_attention"]["scale"]))
            feed, h = layer["feed_forward"], norm(x, layer["norm_feed_forward"]["scale"])
            gate = h @ feed["gate"]["kernel"]
            x = x + (gate / (1 + np.exp(-gate)) * (h @ feed["expand"]["kernel"])) @ feed["out"]["kernel"]
            states.append(x)
        np.testing.assert_allclose(found[row, :length], states[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(whole[row, :length], norm(x, weights["norm"]["scale"]), rtol=1e-3, atol=1e-4)


def test_turning_keeps_what_places_are_apart(normal):
    q, k = normal(0, 1, 1, 1, 4), normal(1, 1, 1, 1, 4)
    first, later = (np.vdot(turned(np.repeat(q, 9, 1), 50.0)[0, i], turned(np.repeat(k, 9, 1), 50.0)[0, i + 2])
                    for i in (0, 6))
    np.testing.assert_allclose(first, later, rtol=1e-4)


@pytest.mark.parametrize("change, named", [
    ({"key_heads": 3}, ("LlamaText.heads", "=4", "key_heads=3")),
    ({"skipped": 3}, ("LlamaText.skipped", "=3", "layers=3")),
])
def test_refusals(change, named):
    with refused(*named, "permitted"):
        dataclasses.replace(TINY, **change)
