"""Self-attention layers with every kind of position, norm of queries and keys, and text as outside tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks.counting import count_parameters
from tests.refusals import refused
from vdm_jax.attention import Full, SparseCausal, Spatial, Temporal, TemporalCausal, WithExtraKeys
from vdm_jax.attention.patterns import independent_frames_mask
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.networks.blocks.positions import HeadNorm, frame_numbers
from vdm_jax.networks.config import EmbeddedText, Level, SelfAttention, UNet
from vdm_jax.networks.mixers import self_attention

SHAPE = (2, 4, 3, 2, 16)
KINDS = ("rotary", "relative", "t5", "shaw", "shaw_key_value", "sinusoidal", "learned")


def layer(**options):
    return self_attention(SelfAttention(head_dim=8, **options), 4, "frame", jnp.float32)


def applied(module, params, frame_mask=None, text=None):
    return jax.jit(lambda x: module.apply({"params": params}, x, frame_mask, text))


@pytest.mark.parametrize("pattern", [Spatial(), Temporal(), SparseCausal()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("position", KINDS)
def test_a_position_tells_places_apart(position, pattern, filled, normal):
    """Without positions, reordering the tokens that a token sees changes nothing for it; with positions it does."""
    x = normal(0, *SHAPE)
    axis = 1 if pattern.layout == "positions" else 2
    last = np.array([0, 2, 1]) if axis == 2 else np.array([0, 2, 1, 3])  # token 0 stays and sees the others swapped

    def change(**options):
        module = layer(pattern=pattern, **options)
        run = applied(module, filled(module, x, None))
        first = [0 if i == axis else slice(None) for i in range(5)]
        return np.abs(run(jnp.take(x, last, axis=axis)) - run(x))[tuple(first)].max()

    assert change(position=position) > 1e-3
    assert change(position="none") < 2e-6


@pytest.mark.parametrize("position", KINDS)
def test_an_appended_image_is_what_it_is_alone(position, filled, normal):
    """Every position counts an independent image as a clip of one frame."""
    x = normal(1, *SHAPE)
    module = layer(pattern=Temporal(), position=position)
    mask = independent_frames_mask(3, 1)
    params = filled(module, x, mask)
    together, alone = applied(module, params, mask)(x), applied(module, cut(params), None)(x[:, 3:])
    np.testing.assert_allclose(together[:, 3:], alone, atol=2e-6)


def cut(params):
    """Tables as long as the clip, cut to one frame."""
    return {k: ({n: t[:1] if n == "table_t" and t.shape == (3, 16) else t for n, t in v.items()}
                if k == "position" else v) for k, v in params.items()}


def test_query_and_key_norm_bounds_the_scores(filled, normal):
    x = normal(2, *SHAPE)
    module = layer(pattern=Full(), qk_norm=True)
    params = filled(module, x, None)
    assert params["query_norm"]["scale"].shape == params["key_norm"]["scale"].shape == (8,)
    loud = {**params, "qkv": {"kernel": params["qkv"]["kernel"] * jnp.where(jnp.arange(48) < 32, 100.0, 1.0)}}
    np.testing.assert_allclose(applied(module, loud)(x), applied(module, params)(x), atol=1e-5)
    y = HeadNorm().apply({"params": {"scale": jnp.full(8, 2.0)}}, normal(3, 5, 8))
    np.testing.assert_allclose((y**2).mean(-1), 4.0, rtol=1e-4)


def test_text_joins_self_attention(filled, normal):
    """Text of the clip is seen by all frames, that of a frame by this frame only; hidden tokens by none."""
    x, mask = normal(4, *SHAPE), jnp.asarray([[[True, True, False]] * 4] * 2)
    module = layer(pattern=WithExtraKeys(inner=TemporalCausal(window=2)), position="rotary", qk_norm=True)
    text = normal(5, 2, 4, 3, 6)
    params = filled(module, x, None, (text, mask))
    assert params["external"]["kernel"].shape == (6, 32)

    def out(text, mask=mask):
        return applied(module, params, None, (text, mask))(x)

    changed = np.abs(out(text.at[:, 1, 0].multiply(-1.0)) - out(text)).max((0, 2, 3, 4))
    assert (changed[[0, 2, 3]] == 0).all() and changed[1] > 1e-3
    np.testing.assert_array_equal(out(text.at[:, :, 2].multiply(-1.0)), out(text))
    one = np.abs(out(-text[:, :1], mask[:, :1]) - out(text[:, :1], mask[:, :1])).max((0, 2, 3, 4))
    assert (one > 1e-3).all()


def test_a_network_with_text_in_self_attention_needs_text():
    mixers = (SelfAttention(pattern=WithExtraKeys(inner=Spatial()), head_dim=8),)
    levels = (Level(channels=16, blocks=1, mixers=mixers),)
    with refused("UNet.text", "=None", "extra_tokens='text'"):
        UNet(levels=levels)
    with_text = UNet(levels=levels, text=EmbeddedText(width=6), groups=4, embedding_channels=16)
    conditioning = Conditioning(embeddings=jnp.zeros((1, 1, 3, 6)), text_mask=jnp.ones((1, 1, 3), bool))
    assert count_parameters(with_text, (1, 2, 8, 8, 3), conditioning) > 0


def test_bad_values_of_self_attention():
    with refused("SelfAttention.position", "='alibi'", "'rotary'"):
        SelfAttention(position="alibi")


def test_value_vectors_of_the_offset_join_what_is_attended(filled, normal):
    """With all weights at one key, which is the token itself, the vector of offset 0 is added to its value."""
    x = normal(6, *SHAPE)
    module = layer(pattern=Temporal(), position="shaw_key_value")
    mask = independent_frames_mask(0, 4)  # every frame sees itself alone
    params = filled(module, x, mask)
    assert params["value_position"]["vectors_t"].shape == (33, 8)
    without = {**params, "value_position": {"vectors_t": jnp.zeros((33, 8))}}
    change = applied(module, params, mask)(x) - applied(module, without, mask)(x)
    expected = jnp.tile(params["value_position"]["vectors_t"][16], 2) @ params["out"]["kernel"]
    np.testing.assert_allclose(change, jnp.broadcast_to(expected, change.shape), atol=2e-6)


def test_value_vectors_need_a_kernel_that_holds_the_weights():
    with refused("capability.require", "kernel='xla'", "context='none'"):
        SelfAttention(pattern=Full(), position="shaw_key_value", kernel="chunked")
    with refused("capability.require", "context='ulysses'"):
        SelfAttention(pattern=Full(), position="shaw_key_value", context="ulysses")
    assert SelfAttention(pattern=Full(), position="shaw_key_value").kernel == "auto"


def test_frame_numbers():
    np.testing.assert_array_equal(frame_numbers(3, None), [0, 1, 2])
    np.testing.assert_array_equal(frame_numbers(5, independent_frames_mask(3, 2)), [0, 1, 2, 0, 0])
