"""What image cascades add to the U-Net: resampling blocks, shortcuts, mixers per level, pooled text, classes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.attention.patterns import Spatial, WithExtraKeys
from vdm_jax.conditions.conditioning import Conditioning, drop_text
from vdm_jax.networks.config import EmbeddedText, Level, SelfAttention, UNet, WordEncoder
from vdm_jax.networks.layers import GroupNorm, convolve, mean_pool, nearest, silu
from vdm_jax.networks.text import TextConditioner
from vdm_jax.networks.unet import SpaceTimeUNet, residual_block
from vdm_jax.parallel.rules import parameter_axes

FUSED = SelfAttention(pattern=WithExtraKeys(inner=Spatial()), head_dim=4, position="none")
NETWORK = UNet(levels=(Level(channels=4, blocks=1), Level(channels=8, blocks=2, mixers=(FUSED,))), middle=(FUSED,),
               embedding_channels=8, groups=2, resample="biggan", text=EmbeddedText(width=6, pooling="attention"))


def shapes_of(network, low=False):
    """Parameter shapes by path, without computing."""
    text = {} if network.text is None else {"embeddings": jnp.zeros((1, 1, 2, network.text.width)),
                                            "text_mask": jnp.ones((1, 1, 2), bool)}
    conditioning = Conditioning(**text, labels=jnp.zeros(1, int) if network.classes else None)
    inputs = jnp.zeros((1, 1, 8, 8, 3)), jnp.zeros(1), conditioning
    tree = jax.eval_shape(SpaceTimeUNet(network).init, jax.random.key(0), *inputs)["params"]
    return {"/".join(k.key for k in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("resize", [mean_pool, nearest])
def test_a_resampling_block_resizes_both_branches_after_norm_and_activation(resize, filled, normal):
    x, vector = normal(0, 1, 2, 4, 4, 4), normal(1, 1, 1, 8)
    module = residual_block(dataclasses.replace(NETWORK, residual_scale=0.5), 8, 3, 0.0, lambda v: resize(v, (2, 2)))
    params = filled(module, x, vector, False)
    h = silu(GroupNorm(2).apply({"params": params["norm_in"]}, x))
    h = convolve(resize(h, (2, 2)), params["conv_in"]["kernel"]) + params["conv_in"]["bias"]
    scale, shift = jnp.split(silu(vector) @ params["modulation"]["kernel"] + params["modulation"]["bias"], 2, axis=-1)
    h = GroupNorm(2).apply({"params": params["norm_out"]}, h) * (1 + scale) + shift
    h = convolve(silu(h), params["conv_out"]["kernel"]) + params["conv_out"]["bias"]
    short = resize(x, (2, 2)) @ params["shortcut"]["kernel"][0, 0, 0] + params["shortcut"]["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, x, vector, False), 0.5 * short + h, atol=1e-4)


def test_where_resampling_blocks_mixers_and_shortcuts_are():
    shapes = shapes_of(NETWORK)
    assert shapes["downsample_0/residual/conv_in/kernel"] == (1, 3, 3, 4, 4)
    assert shapes["upsample_1/residual/conv_in/kernel"] == (1, 3, 3, 8, 8)

    def having(shapes, part):
        return {name.split("/")[0] for name in shapes if part in name}

    assert having(shapes, "attention_0") == {"down_1_0", "down_1_1", "up_1_0", "up_1_1", "up_1_2", "middle_in"}
    levels = (NETWORK.levels[0], dataclasses.replace(NETWORK.levels[1], mixers_after="last"))
    last = shapes_of(dataclasses.replace(NETWORK, levels=levels, shortcut="always"))
    assert having(last, "attention_0") == {"down_1_1", "up_1_2", "middle_in"}
    assert having(last, "shortcut") == having(last, "residual") > having(shapes, "shortcut")
    efficient = dataclasses.replace(NETWORK, levels=levels, middle=(), resample="conv", resample_order="before")
    assert having(shapes_of(efficient), "attention_0") == {"down_1_1", "up_1_1"}


@pytest.fixture(scope="module")
def pool(filled):
    module = TextConditioner(EmbeddedText(width=6, project=4, pooling="attention"), 8)
    mask = jnp.asarray([[[True, True, True, False]], [[True] * 4], [[False] * 4]])
    params = filled(module, Conditioning(embeddings=jnp.zeros((3, 1, 4, 6)), text_mask=mask))
    return params, jax.jit(lambda x, mask=mask: module.apply({"params": params},
                                                             Conditioning(embeddings=x, text_mask=mask)))


def test_attention_pooling_weighs_tokens_that_exist(pool, normal):
    params, apply = pool
    x = normal(0, 3, 1, 4, 6)
    tokens, _, pooled = apply(x)
    assert tokens.shape == (3, 1, 4, 4) and pooled.shape == (3, 1, 8)
    np.testing.assert_allclose(apply(x.at[0, 0, 3].set(9.0))[2], pooled, atol=1e-5)  # padding
    np.testing.assert_allclose(apply(x[:, :, ::-1])[2][1], pooled[1], atol=1e-5)  # no order
    assert np.abs(apply(x.at[1, 0, 3].add(1.0 + normal(1, 6)))[2][1] - pooled[1]).max() > 1e-3
    same = jnp.broadcast_to(x[:, :, :1], x.shape)  # of equal tokens it is the value of one, whatever the weights
    text = params["pool_attention"]
    y = tokens_of = apply(same)[0][1, 0, 0]
    y = (y - y.mean()) / jnp.sqrt(tokens_of.var() + 1e-6) * text["norm"]["scale"] + text["norm"]["bias"]
    value = (y @ text["key_value"]["kernel"])[8:]
    np.testing.assert_allclose(apply(same)[2][1, 0], value @ text["out"]["kernel"] + text["out"]["bias"], atol=1e-4)


def test_pooling_layers_are_a_pair_for_tensor_parallelism():
    assert parameter_axes("/embedding/text/pool_attention/out/kernel", 2) == ("heads", "embed")
    assert parameter_axes("/embedding/text/pool_attention/key_value/kernel", 2) == ("embed", "heads")
    assert parameter_axes("/embedding/label/classes", 2) == ("vocabulary", "embed")


def test_a_class_enters_the_vector_and_minus_one_is_none(filled, normal):
    network = UNet(levels=(Level(channels=4, blocks=1),), embedding_channels=8, groups=2, classes=3)
    module, z, level = SpaceTimeUNet(network), normal(0, 3, 1, 4, 4, 3), jnp.zeros(3)
    params = filled(module, z[:1], level[:1], Conditioning(labels=jnp.zeros(1, int)))
    apply = jax.jit(lambda labels: module.apply({"params": params}, z, level, Conditioning(labels=labels)))
    out, other = apply(jnp.array([0, 1, 2])), apply(jnp.array([0, 2, -1]))
    np.testing.assert_allclose(out[0], other[0], atol=1e-5)
    assert np.abs(out[1] - other[1]).max() > 1e-3 and np.abs(out[2] - other[2]).max() > 1e-3
    dropped = Conditioning(labels=jnp.array([0, 1, 2])).without_text()
    np.testing.assert_array_equal(dropped.labels, [-1, -1, -1])
    labels = drop_text(jax.random.key(0), Conditioning(labels=jnp.ones(400, int)), 0.25).labels
    assert 60 < (labels == -1).sum() < 140 and ((labels == -1) | (labels == 1)).all()
    with refused("conditioning.check_parts", "Conditioning.labels"):
        module.apply({"params": params}, z, level, Conditioning())


@pytest.mark.parametrize(("make", "message"), [
    (lambda: dataclasses.replace(NETWORK, middle=(), resample_order="before"),
     ("UNet.resample", "='biggan'", "resample_order='before'", "'conv'", "'pool'")),
    (lambda: dataclasses.replace(NETWORK, resample="bigan"),
     ("UNet.resample", "='bigan'", "'conv'", "'pool'", "'biggan'")),
    (lambda: dataclasses.replace(NETWORK, classes=-1), ("UNet.classes", "=-1", ">= 0")),
    (lambda: dataclasses.replace(NETWORK, shortcut="no"),
     ("UNet.shortcut", "='no'", "'match'", "'always'")),
    (lambda: Level(channels=4, mixers_after="first"),
     ("Level.mixers_after", "='first'", "'each'", "'last'")),
    (lambda: EmbeddedText(pooling="max"), ("EmbeddedText.pooling", "='max'", "'mean'", "'attention'")),
    (lambda: WordEncoder(pooling="max"), ("WordEncoder.pooling", "='max'", "'mean'", "'attention'")),
    (lambda: EmbeddedText(project=-2), ("EmbeddedText.project", "=-2", ">= 0")),
])
def test_errors(make, message):
    with refused(*message):
        make()
