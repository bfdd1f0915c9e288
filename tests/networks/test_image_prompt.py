"""Image prompts: published sizes, decoupled cross-attention by its formula, files in and out, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.refusals import refused
from tests.training.latents import AUTOENCODER, random_params
from tests.weights.folders import IMAGE_UNET, tensors_of
from vdm_jax.conditions.conditioning import Conditioning, Request
from vdm_jax.conditions.inputs import Input
from vdm_jax.diffusion.process import Process
from vdm_jax.generation.prompts import requested_conditioning
from vdm_jax.networks.blocks.attention import Attention
from vdm_jax.networks.image_prompt import (
    IMAGE_PROJECTION_FACE,
    IMAGE_PROJECTION_FULL,
    IMAGE_PROJECTION_PLUS,
    ImageProjection,
    ImageProjectionNetwork,
    ImagePromptAdapter,
    join,
    part,
    places,
)
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LATENT_UNET_SD1
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Stage, VideoSpec
from vdm_jax.weights import model_kinds
from vdm_jax.weights.image_prompt_files import load_image_prompt
from vdm_jax.weights.pretrained import Pretrained, save_original

PROJECTION = ImageProjection(width=5, tokens=3, token_channels=6)
PLUS = dataclasses.replace(PROJECTION, layers=2, hidden=64, heads=2)
FULL = dataclasses.replace(PROJECTION, tokens=1, perceptron=5)
FACE = dataclasses.replace(PROJECTION, perceptron=10, vectors="faces")
ADAPTER = ImagePromptAdapter(projection=PROJECTION, layers=tuple(places(IMAGE_UNET).values()))
NETWORK = LatentNetwork(unet=dataclasses.replace(IMAGE_UNET, image_prompt=True), image_projection=PROJECTION,
                        conditions=(Input(name="image_prompt", width=5),))
STAGE = Stage(name="base", video=VideoSpec(frames=2, height=8, width=8), process=Process(),
              latent=Latent(autoencoder=AUTOENCODER), network=NETWORK, sampling=Sampling(threshold=None))
Z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 4, 4, 4)), jnp.float32)
VECTORS = jnp.asarray(np.random.default_rng(1).normal(size=(2, 1, 1, 5)), jnp.float32)


@pytest.fixture(scope="module")
def params():
    unet = random_params(IMAGE_UNET)
    return unet, join(IMAGE_UNET, unet, ADAPTER, random_params(ADAPTER, seed=1))[1]


def run(network, params, inputs=None, scale=None):
    given = Conditioning(inputs=inputs or {}, scalars={} if scale is None else {"image_prompt_scale": scale})
    return applied(network)(params, given)


@functools.cache
def applied(network):
    return jax.jit(lambda p, given: network_module(network).apply({"params": p}, Z, jnp.zeros(2), given))


@pytest.mark.parametrize(("projection", "count"), [
    (ImageProjection(), 22_319_616), (IMAGE_PROJECTION_PLUS, 49_087_488),
    (IMAGE_PROJECTION_FULL, 19_169_280 + 1281 * 1280 + 1281 * 768 + 2 * 768),
    (IMAGE_PROJECTION_FACE, 19_169_280 + 513 * 1024 + 1025 * 3072 + 2 * 768)])
def test_sizes_for_stable_diffusion(projection, count):
    """44.6 and 98.2 MB of the released files in float16; the others by their layers, without a LoRA."""
    adapter = ImagePromptAdapter(projection=projection)
    assert sum(int(np.prod(shape)) for shape in model_kinds.parameters(adapter).values()) == count
    assert adapter.layers == tuple(places(LATENT_UNET_SD1).values())
    assert list(places(LATENT_UNET_SD1))[-1] == "middle_transformer"  # the last one in files


def test_without_a_prompt_and_with_scale_0_it_is_the_network_alone(params):
    alone = dataclasses.replace(NETWORK, unet=IMAGE_UNET, image_projection=None, conditions=())
    plain = run(alone, params[0])
    np.testing.assert_array_equal(run(NETWORK, params[1]), plain)
    inputs = {"image_prompt": VECTORS}
    np.testing.assert_array_equal(run(NETWORK, params[1], inputs, jnp.zeros(2)), plain)
    changed = np.abs(run(NETWORK, params[1], inputs, jnp.array([0.0, 1.0])) - plain).max((1, 2, 3, 4))
    assert changed[0] == 0 and changed[1] > 1e-3  # of a sample
    np.testing.assert_array_equal(run(NETWORK, params[1], inputs), run(NETWORK, params[1], inputs, jnp.ones(2)))


def test_cross_attention_adds_what_it_finds_in_the_picture():
    rng = np.random.default_rng(0)
    x, text, image = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (
        (1, 1, 2, 2, 4), (1, 1, 3, 6), (1, 1, 2, 6)))
    module = Attention(heads=2, pattern=None, joint=False)
    tree = module.init(jax.random.key(0), x, None, (text, None), image=(image, None))["params"]
    found = module.apply({"params": tree}, x, None, (text, None), image=(image, None), image_scale=jnp.array([0.6]))

    def attended(key, value, tokens):
        q, k, v = (np.asarray(a @ tree[name]["kernel"]).reshape(-1, 2, 2) for a, name in (
            (x, "query"), (tokens, key), (tokens, value)))
        weights = np.exp(np.einsum("qhd,khd->hqk", q, k) / np.sqrt(2))
        return np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v).reshape(4, 4)

    both = attended("key", "value", text) + 0.6 * attended("image_key", "image_value", image)
    wanted = both @ np.asarray(tree["out"]["kernel"]) + np.asarray(tree["out"]["bias"])
    np.testing.assert_allclose(np.asarray(found).reshape(4, 4), wanted, atol=1e-5)


@pytest.mark.parametrize("projection", [PROJECTION, PLUS, FULL, FACE])
def test_files_of_the_authors_come_back(projection, params, tmp_path):
    adapter = dataclasses.replace(ADAPTER, projection=projection)
    tensors = tensors_of(adapter)
    save_file(tensors, tmp_path / "in.safetensors")
    model = load_image_prompt(tmp_path / "in.safetensors")
    wanted = projection if not projection.layers else dataclasses.replace(projection, heads=2, head_dim=64)
    assert model.config == dataclasses.replace(adapter, projection=wanted)
    unet, joined = join(IMAGE_UNET, params[0], model.config, model.params)
    config, again = part(unet, projection, joined)
    assert config == model.config and params[0].keys() < joined.keys()
    save_original(tmp_path / "out.safetensors", Pretrained(config, again))
    written = load_file(tmp_path / "out.safetensors")
    assert written.keys() == tensors.keys() and all(np.array_equal(written[n], t) for n, t in tensors.items())
    tokens = ImageProjectionNetwork(projection).apply({"params": model.params["projection"]}, VECTORS)
    assert tokens.shape == (2, 1, projection.tokens, 6)


@pytest.mark.parametrize(("projection", "tokens"), [(FULL, 4), (FACE, 12)])
def test_perceptrons_make_tokens_of_each_vector(projection, tokens):
    """By hand: two affine maps with the exact GELU between them, and a norm of each token."""
    given, tree = np.random.default_rng(3).normal(size=(2, 1, 4, 5)).astype(np.float32), random_params(projection_of(
        projection))["projection"]
    found = ImageProjectionNetwork(projection).apply({"params": tree}, jnp.asarray(given))
    inner = given @ np.asarray(tree["inner"]["kernel"]) + np.asarray(tree["inner"]["bias"])
    inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
    outer = (inner @ np.asarray(tree["proj"]["kernel"]) + np.asarray(tree["proj"]["bias"])).reshape(2, 1, tokens, 6)
    normed = (outer - outer.mean(-1, keepdims=True)) / np.sqrt(outer.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(found, normed * np.asarray(tree["norm"]["scale"]) + np.asarray(tree["norm"]["bias"]),
                               atol=1e-4)


def projection_of(projection):
    return dataclasses.replace(ADAPTER, projection=projection)


def test_adapters_of_faces_merge_their_lora_into_all_attention(params, tmp_path):
    """A file's factors are [rank, in] and [out, rank], of self-attention with even numbers, and count once."""
    adapter = dataclasses.replace(ADAPTER, projection=FACE, rank=2)
    tensors = tensors_of(adapter)
    assert len(tensors) == 6 + 2 * 4 + 4 * 2 * 4 * 2 and tensors["ip_adapter.1.to_k_lora.down.weight"].shape == (2, 6)
    save_file(tensors, tmp_path / "face.safetensors")
    model = load_image_prompt(tmp_path / "face.safetensors")
    assert model.config == adapter
    save_original(tmp_path / "out.safetensors", model)
    written = load_file(tmp_path / "out.safetensors")
    assert written.keys() == tensors.keys() and all(np.array_equal(written[n], t) for n, t in tensors.items())
    _, joined = join(IMAGE_UNET, params[0], model.config, model.params)
    for number, place in enumerate(places(IMAGE_UNET)):
        for k, attention in enumerate(("self_attention", "cross_attention")):
            for ours, theirs in zip(("query", "key", "value", "out"), "q k v out".split(), strict=True):
                down, up = (tensors[f"ip_adapter.{2 * number + k}.to_{theirs}_lora.{part}.weight"]
                            for part in ("down", "up"))
                before, after = (tree[place]["space"][attention][ours]["kernel"] for tree in (params[0], joined))
                np.testing.assert_allclose(after, before + (up @ down).T, atol=1e-5)


def test_several_pictures_give_tokens_each():
    tree = random_params(ADAPTER)["projection"]
    one, other = (ImageProjectionNetwork(PROJECTION).apply({"params": tree}, x) for x in (VECTORS, 2 * VECTORS))
    both = ImageProjectionNetwork(PROJECTION).apply({"params": tree}, jnp.concatenate([VECTORS, 2 * VECTORS], 2))
    np.testing.assert_allclose(both, jnp.concatenate([one, other], 2), atol=1e-6)


def test_requests_and_their_null_values():
    given = {"image_prompt": np.ones((2, 1, 5)), "image_prompt_scale": 0.5}
    found = requested_conditioning(STAGE, Request(("", ""), given))
    assert found.inputs["image_prompt"].shape == (2, 1, 1, 5)
    assert (found.scalars["image_prompt_scale"] == 0.5).all()
    assert not found.without_text().inputs["image_prompt"].any()
    null = {**given, "null_image_prompt": np.full((1, 5), 7)}
    half = requested_conditioning(STAGE, Request(("", ""), null)).without_text(jnp.array([True, False]))
    half = half.inputs["image_prompt"]
    assert (half[0] == 7).all() and (half[1] == 1).all()
    for nothing in ({}, {**given, "image_prompt_scale": 0.0}):
        assert not requested_conditioning(STAGE, Request(("", ""), nothing)).inputs
    with refused("image_prompt_scale", "image_prompt_scale=0.5"):
        requested_conditioning(STAGE, Request(("",), {"image_prompt_scale": 0.5}))
    with refused("inputs.InputCondition.of_request", "[2, 5]", "[2, tokens, 5]"):
        requested_conditioning(STAGE, Request(("", ""), {"image_prompt": np.ones((2, 5))}))


def test_an_adapter_for_another_model_and_other_files_are_refused(params, tmp_path):
    wrong = dataclasses.replace(ADAPTER, layers=ADAPTER.layers[:-1])
    with refused("image_prompt.adapter", "3 cross-attentions", "4 of"):
        join(IMAGE_UNET, params[0], wrong, random_params(wrong))
    for projection in ({"perceptron": 5}, {"vectors": "faces"}, {"perceptron": 5, "tokens": 1, "layers": 1}):
        with refused("ImageProjection.perceptron", "permitted: "):
            dataclasses.replace(PROJECTION, **projection)
    with refused("image_prompt.join", "already"):
        join(NETWORK.unet, params[1], ADAPTER, {})
    with refused("LatentNetwork.image_projection", "image_prompt=False"):
        dataclasses.replace(NETWORK, unet=IMAGE_UNET)
    tensors = tensors_of(ADAPTER)
    save_file({"image_proj.proj.0.weight": tensors["ip_adapter.1.to_k_ip.weight"]}, tmp_path / "other.safetensors")
    with refused("image_prompt.file", "other.safetensors"):
        load_image_prompt(tmp_path / "other.safetensors")
    save_file({name: x for name, x in tensors.items() if "norm" not in name}, tmp_path / "part.safetensors")
    with refused("pretrained.parameters_of", "image_proj.norm"):
        load_image_prompt(tmp_path / "part.safetensors")
