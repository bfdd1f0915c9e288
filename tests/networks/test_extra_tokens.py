"""What a network sees next to the video: frames that do not exist, and reference features."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.attention.patterns import Causal, Full, SparseCausal, Spatial, Temporal, WithExtraKeys
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.networks.config import Level, Reference, SelfAttention, TemporalConvolution, UNet
from vdm_jax.networks.layers import GroupNorm
from vdm_jax.networks.mixers import self_attention
from vdm_jax.networks.unet import SpaceTimeUNet

FRAMES, PADDED, IMAGES, SIZE = 4, 2, 1, 4
MIXERS = (TemporalConvolution(kernel=5), *(
    SelfAttention(pattern=pattern, head_dim=8, position=position) for pattern, position in
    ((Temporal(), "relative"), (Full(), "rotary"), (Spatial(), "none"), (SparseCausal(), "none"))))
SPEC = UNet(levels=(Level(channels=8, blocks=1, mixers=MIXERS),), middle=MIXERS[1:3], embedding_channels=16, groups=4,
            position_period=25.0, temporal_kernel=3)
REFERENCED = UNet(
    levels=(Level(channels=8, blocks=1, mixers=(
        SelfAttention(pattern=WithExtraKeys(inner=Spatial()), head_dim=8, extra_tokens="picture"), MIXERS[1])),),
    references=(Reference(name="picture", width=6),), embedding_channels=16, groups=4)


# ---------------------------------------------------------------------------------------------- padded frames


def padded(z, images=None):
    """A clip with padding after it, and images after that; and which frames exist."""
    parts = [z, jnp.full((1, PADDED, *z.shape[2:]), 7.0)] + ([] if images is None else [images])
    count = 0 if images is None else images.shape[1]
    valid = jnp.asarray([[True] * z.shape[1] + [False] * PADDED + [True] * count])
    return jnp.concatenate(parts, axis=1), Conditioning(frame_valid=valid)


@pytest.mark.parametrize("images", [pytest.param(0, marks=pytest.mark.full), IMAGES])
def test_a_padded_clip_is_the_clip(images, filled, normal):
    """Outputs of the frames that exist and the gradients of a loss on them are those of the clip without padding."""
    level, z = jnp.array([0.5]), normal(0, 1, FRAMES, SIZE, SIZE, 3)
    picture = normal(1, 1, IMAGES, SIZE, SIZE, 3) if images else None
    params = filled(SpaceTimeUNet(SPEC), z, level)
    kept = np.r_[:FRAMES, FRAMES + PADDED : FRAMES + PADDED + images]

    def loss(params, z, conditioning, frames):
        out = SpaceTimeUNet(SPEC).apply({"params": params}, z, level, conditioning, images=images)[:, frames]
        return jnp.square(out).mean(), out

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), static_argnums=3)
    whole = z if picture is None else jnp.concatenate([z, picture], axis=1)
    (_, expected), expected_grads = run(params, whole, None, tuple(range(FRAMES + images)))
    (_, out), grads = run(params, *padded(z, picture), tuple(kept.tolist()))
    np.testing.assert_allclose(out, expected, atol=3e-5)
    np.testing.assert_array_equal(grads[1][:, FRAMES : FRAMES + PADDED], 0)
    np.testing.assert_allclose(grads[1][:, kept], expected_grads[1], atol=3e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), grads[0], expected_grads[0])


def test_padding_is_seen_unless_it_is_told(filled, normal):
    """The check above is one: without validity the same padding changes every frame."""
    z, level = normal(0, 1, FRAMES, SIZE, SIZE, 3), jnp.array([0.5])
    long, conditioning = padded(z)
    params = filled(SpaceTimeUNet(SPEC), z, level)
    run = jax.jit(lambda conditioning: SpaceTimeUNet(SPEC).apply({"params": params}, long, level, conditioning))
    change = np.abs(run(None) - run(conditioning))[:, :FRAMES].max((0, 2, 3, 4))
    assert (change > 1e-3).all()


def test_validity_that_does_not_fit(normal):
    z = normal(0, 1, FRAMES, SIZE, SIZE, 3)

    def check(spec, valid, *named):
        with refused("unet_inputs.check_inputs", "Conditioning.frame_valid", *named):
            conditioning = Conditioning(frame_valid=valid)
            jax.eval_shape(SpaceTimeUNet(spec).init, jax.random.key(0), z, jnp.zeros(1), conditioning)

    check(SPEC, jnp.ones((1, 3), bool), "(1, 3); permitted: (1, 4)")
    check(dataclasses.replace(SPEC, norm_over="clip"), jnp.ones((1, 4), bool),
          "UNet.norm_over='clip'", "permitted: norm_over='frame'")


# ---------------------------------------------------------------------------------------------- references


@pytest.mark.parametrize("inner", [Spatial(), Causal()], ids=lambda p: type(p).__name__)
def test_reference_tokens_are_keys_and_values_appended_by_hand(inner, filled, normal):
    x, extra = normal(0, 2, 3, 2, 2, 16), normal(1, 2, 1, 5, 6)
    mask = jnp.asarray(np.arange(5) < 4)[None, None].repeat(2, 0)
    layer = self_attention(SelfAttention(pattern=WithExtraKeys(inner=inner), head_dim=8, position="none", kernel="xla",
                                             extra_tokens="picture"), 4, "frame", jnp.float32)
    params = filled(layer, x, None, (extra, mask))
    out = layer.apply({"params": params}, x, None, (extra, mask))
    h = GroupNorm(4, "frame").apply({"params": params["norm"]}, x).reshape(2, 12, 16)
    q, k, v = (a.reshape(2, 12, 2, 8) for a in jnp.split(h @ params["qkv"]["kernel"], 3, axis=-1))
    tokens = extra[:, 0, :4]  # the last token is hidden
    tokens = (tokens - tokens.mean(-1, keepdims=True)) / jnp.sqrt(tokens.var(-1, keepdims=True) + 1e-6)
    tokens = tokens * params["external_norm"]["scale"]
    more_k, more_v = (a.reshape(2, 4, 2, 8) for a in jnp.split(tokens @ params["external"]["kernel"], 2, axis=-1))
    logits = jnp.einsum("bqkd,bskd->bkqs", q, jnp.concatenate([k, more_k], axis=1)) / np.sqrt(8)
    visible = np.concatenate([inner.visible((3, 2, 2)), np.ones((12, 4), bool)], axis=1)
    weights = jax.nn.softmax(jnp.where(visible, logits, -jnp.inf), axis=-1)
    attended = jnp.einsum("bkqs,bskd->bqkd", weights, jnp.concatenate([v, more_v], axis=1)).reshape(2, 12, 16)
    expected = x + (attended @ params["out"]["kernel"] + params["out"]["bias"]).reshape(x.shape)
    np.testing.assert_allclose(out, expected, atol=2e-5)


@pytest.fixture(scope="module")
def referenced(filled, normal):
    """A network with a reference as a function of the references and their masks, for two clips."""
    z, level = normal(0, 2, FRAMES, SIZE, SIZE, 3), jnp.array([0.5, -1.0])
    params = filled(SpaceTimeUNet(REFERENCED), z, level, Conditioning(references={"picture": normal(1, 2, 1, 3, 6)}))

    @jax.jit
    def run(picture, mask=None):
        conditioning = Conditioning(references={"picture": picture},
                                    reference_masks={} if mask is None else {"picture": mask})
        return SpaceTimeUNet(REFERENCED).apply({"params": params}, z, level, conditioning)

    return run


def test_a_reference_reaches_its_own_sample(referenced, normal):
    picture = normal(1, 2, 1, 3, 6)
    change = np.abs(referenced(picture.at[1].multiply(-1.0)) - referenced(picture)).max((2, 3, 4))
    assert (change[0] == 0).all() and (change[1] > 1e-3).all()


def test_a_hidden_reference_token_is_not_there(referenced, normal):
    picture, mask = normal(1, 2, 1, 3, 6), jnp.asarray([[[True, True, False]]] * 2)
    np.testing.assert_allclose(referenced(picture, mask), referenced(picture[:, :, :2]), atol=1e-5)


def test_one_reference_for_the_clip_is_the_same_for_every_frame(referenced, normal):
    picture = normal(1, 2, 1, 3, 6)
    np.testing.assert_allclose(referenced(jnp.repeat(picture, FRAMES, axis=1)), referenced(picture), atol=1e-5)


@pytest.mark.parametrize(("conditioning", "images", "message"), [
    (Conditioning(), 0, ("conditioning.check_parts", "Conditioning.references", "'picture'")),
    (Conditioning(references={"picture": jnp.zeros((1, 1, 3, 6)), "sketch": jnp.zeros((1, 1, 3, 6))}), 0,
     ("unet_inputs.check_references", "'sketch'")),
    (Conditioning(references={"picture": jnp.zeros((1, 1, 3, 5))}), 0,
     ("unet_inputs.check_references", "3", "5", "[1, 1 or 4, tokens, 6]")),
    (Conditioning(references={"picture": jnp.zeros((1, 1, 3, 6))}), 1,
     ("unet_inputs.check_references", "[1, 4, tokens, 6]")),
    (Conditioning(references={"picture": jnp.zeros((1, 1, 3, 6))},
                  reference_masks={"picture": jnp.ones((1, 1, 2), bool)}), 0,
     ("unet_inputs.check_references", "reference_masks", "['picture']", "1", "2", "3")),
])
def test_references_that_do_not_fit(conditioning, images, message, normal):
    network = SpaceTimeUNet(REFERENCED)
    with refused(*message):
        jax.eval_shape(lambda z: network.init(jax.random.key(0), z, jnp.zeros(1), conditioning, images=images),
                       normal(0, 1, FRAMES, SIZE, SIZE, 3))


def test_extra_tokens_and_references_belong_together():
    with refused("SelfAttention.extra_tokens", "='picture'"):
        dataclasses.replace(REFERENCED, references=(Reference(name="sketch", width=6),))
    with refused("UNet.references"):
        dataclasses.replace(REFERENCED, references=REFERENCED.references * 2)
    with refused("Reference.name", "='text'"):
        Reference(name="text", width=6)
