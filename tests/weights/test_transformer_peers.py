"""Transformers of Wan in diffusers: read here, outputs compared, written and read there; the authors' names."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.refusals import refused
from tests.weights.folders import tensors_of, write
from tests.weights.test_peers import close, peer
from tests.weights.test_video_peers import channels_second, check_way_back
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.inputs import Input
from vdm_jax.conditions.text import EmbeddedText
from vdm_jax.networks.transformer.config import wan_image_tokens
from vdm_jax.weights import tensor_names
from vdm_jax.weights.pretrained import load_pretrained
from vdm_jax.weights.single_file import split_single_file
from vdm_jax.weights.transformer_fields import wan_names

OPTIONS = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "text_dim": 12,
           "freq_dim": 32, "ffn_dim": 48, "num_layers": 3}
SIGMAS = np.array([0.999, 0.31], np.float32)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def text(rng):
    """Embeddings of two texts of different lengths, and both of them padded with zeros as the pipeline does."""
    mask = np.arange(7)[None] < np.array([[7], [3]])
    embeddings = rng.normal(size=(2, 7, 12)).astype(np.float32)
    padded = np.zeros((2, 512, 12), np.float32)
    padded[:, :7] = np.where(mask[..., None], embeddings, 0)
    return Conditioning(embeddings=embeddings[:, None], text_mask=mask[:, None]), padded


def check(torch, folder, options, conditioning, x, more=(), **given):
    """Ours and theirs of the same input, and the way back."""
    model = peer(torch, "diffusers", "WanTransformer3DModel", options)
    model.save_pretrained(folder / "in")
    loaded = load_pretrained(folder / "in")
    timestep = given.pop("timestep", torch.from_numpy(1000 * SIGMAS))
    seen = np.concatenate([x, *more], axis=-1) if more else given.pop("seen", x)
    theirs = model(channels_second(torch, seen), timestep, **given).sample.permute(0, 2, 3, 4, 1)
    level = 2 * np.log((1 - SIGMAS) / SIGMAS)
    module = loaded.module if "network" not in given else given["network"]
    ours = jax.jit(lambda x: module.apply({"params": loaded.params}, x, level, conditioning))(x)
    close(ours, theirs)
    check_way_back(torch, model, loaded, folder / "out")
    return model, loaded, theirs


@pytest.mark.full
@pytest.mark.parametrize("shape", [(3, 8, 12), (1, 4, 4)])
def test_text_to_video(shape, torch, tmp_path):
    rng = np.random.default_rng(0)
    conditioning, padded = text(rng)
    x = rng.normal(size=(2, *shape, 4)).astype(np.float32)
    check(torch, tmp_path, OPTIONS, conditioning, x, encoder_hidden_states=torch.from_numpy(padded))


@pytest.mark.full
@pytest.mark.parametrize("places", [None, 6])
def test_image_to_video(places, torch, tmp_path):
    rng = np.random.default_rng(1)
    conditioning, padded = text(rng)
    options = {**OPTIONS, "in_channels": 12, "image_dim": 20, "added_kv_proj_dim": 32, "pos_embed_seq_len": places}
    x, picture, mask = (rng.normal(size=(2, 3, 4, 8, 4)).astype(np.float32) for _ in range(3))
    tokens = rng.normal(size=(2, 6, 20)).astype(np.float32)
    conditioning = conditioning.replace(conditioning_frames=picture, conditioning_mask=mask,
                                        inputs={"image_tokens": tokens[:, None]})
    # With positions they take the tokens of both pictures as two samples.
    theirs = tokens if places is None else tokens.reshape(4, 3, 20)
    check(torch, tmp_path, options, conditioning, x, more=(mask, picture),
          encoder_hidden_states=torch.from_numpy(padded), encoder_hidden_states_image=torch.from_numpy(theirs))


@pytest.mark.full
def test_the_first_frame_in_place_has_time_zero(torch, tmp_path):
    import dataclasses

    rng = np.random.default_rng(2)
    conditioning, padded = text(rng)
    x, picture = (rng.normal(size=(2, 3, 4, 8, 4)).astype(np.float32) for _ in range(2))
    mask = np.zeros((2, 3, 4, 8, 1), np.float32)
    mask[:, 0] = 1
    conditioning = conditioning.replace(conditioning_frames=picture, conditioning_mask=mask)
    model = peer(torch, "diffusers", "WanTransformer3DModel", OPTIONS)
    model.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path)
    module = type(loaded.module)(dataclasses.replace(loaded.config, frame_conditioning="in_place"))
    times = np.repeat(1000 * SIGMAS[:, None], 3 * 2 * 4, axis=1).reshape(2, 3, 8)
    times[:, 0] = 0
    theirs = model(channels_second(torch, np.where(mask > 0, picture, x)), torch.from_numpy(times.reshape(2, -1)),
                   encoder_hidden_states=torch.from_numpy(padded)).sample.permute(0, 2, 3, 4, 1)
    level = 2 * np.log((1 - SIGMAS) / SIGMAS)
    close(jax.jit(lambda x: module.apply({"params": loaded.params}, x, level, conditioning))(x), theirs)


def authors(name: str) -> str:
    """The authors' name of a tensor, as diffusers' converter of checkpoints has it, backwards."""
    pairs = (
        (r"\.attn1\.to_([qkv])\.", r".self_attn.\1."), (r"\.attn1\.to_out\.0\.", ".self_attn.o."),
        (r"\.attn1\.norm_", ".self_attn.norm_"), (r"\.attn2\.add_([kv])_proj", r".cross_attn.\1_img"),
        (r"\.attn2\.norm_added_k", ".cross_attn.norm_k_img"), (r"\.attn2\.to_([qkv])\.", r".cross_attn.\1."),
        (r"\.attn2\.to_out\.0\.", ".cross_attn.o."), (r"\.attn2\.norm_", ".cross_attn.norm_"),
        (r"\.norm2\.", ".norm3."), (r"\.ffn\.net\.0\.proj", ".ffn.0"), (r"\.ffn\.net\.2", ".ffn.2"),
        (r"^scale_shift_table", "head.modulation"), (r"scale_shift_table", "modulation"), ("proj_out", "head.head"),
        (r"condition_embedder\.time_proj", "time_projection.1"),
        (r"condition_embedder\.(time|text)_embedder\.linear_1", r"\1_embedding.0"),
        (r"condition_embedder\.(time|text)_embedder\.linear_2", r"\1_embedding.2"))
    if name.startswith("condition_embedder.image_embedder"):
        ends = {"norm1": "0", "ff.net.0.proj": "1", "ff.net.2": "3", "norm2": "4"}
        name = name.removeprefix("condition_embedder.image_embedder.")
        module, _, leaf = name.rpartition(".")
        return "img_emb.emb_pos" if name == "pos_embed" else f"img_emb.proj.{ends[module]}.{leaf}"
    for pattern, replacement in pairs:
        name = re.sub(pattern, replacement, name)
    return name


def test_a_file_of_the_authors_is_read_and_split(tmp_path):
    """By its names and shapes alone; a tensor that is missing is named."""
    config = wan_image_tokens(width=128, heads=1, hidden=8, layers=2, text=EmbeddedText(width=6), out_channels=2,
                              level_channels=8, conditions=(Input(name="image_tokens", width=5),), image_places=4)
    tensors = tensors_of(config)
    save_file({authors(name): tensor for name, tensor in tensors.items()}, tmp_path / "wan.safetensors")
    assert split_single_file(tmp_path / "wan.safetensors", tmp_path / "out") == {"transformer": config}
    found = load_pretrained(tmp_path / "out" / "transformer")
    wanted = load_pretrained(write(tmp_path / "same", config, tensors))
    assert found.config == wanted.config == config
    jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)
    lacking = {authors(name): tensor for name, tensor in tensors.items() if name != "blocks.1.attn1.to_q.bias"}
    save_file(lacking, tmp_path / "b.safetensors")
    with refused("pretrained.parameters_of", "blocks.1.attn1.to_q.bias"):
        split_single_file(tmp_path / "b.safetensors", tmp_path / "b")


@pytest.mark.full
def test_files_of_the_authors_have_the_same_tensors(torch):
    model = peer(torch, "diffusers", "WanTransformer3DModel", {
        **OPTIONS, "image_dim": 20, "added_kv_proj_dim": 32, "pos_embed_seq_len": 6})
    names = set(model.state_dict())
    theirs = {authors(name) for name in names}
    assert not theirs & names - {"patch_embedding.weight", "patch_embedding.bias"}
    assert set(tensor_names.canonical(theirs, wan_names())) == names
