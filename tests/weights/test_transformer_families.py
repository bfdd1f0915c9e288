"""Transformers of CogVideoX, LTX-Video and HunyuanVideo: tensors of the released ones, in full outputs of diffusers."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from tests.refusals import refused
from tests.weights.folders import recorded
from tests.weights.test_peers import close, peer
from tests.weights.test_video_peers import check_way_back
from vdm_jax.attention.positions import RotaryCoordinates
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.networks.transformer.members import (
    COGVIDEOX_2B,
    COGVIDEOX_5B,
    COGVIDEOX_15_5B,
    HUNYUAN,
    LTX_2B,
    LTX_2B_095,
    LTX_13B,
)
from vdm_jax.weights import ltx_transformer_fields, model_kinds
from vdm_jax.weights.fields import Fields
from vdm_jax.weights.pretrained import load_pretrained

COGVIDEOX = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
             "time_embed_dim": 8, "text_embed_dim": 12, "num_layers": 3, "sample_height": 8, "sample_width": 12,
             "sample_frames": 9, "max_text_seq_length": 5}
LTX = {"in_channels": 6, "out_channels": 6, "num_attention_heads": 2, "attention_head_dim": 16,
       "cross_attention_dim": 32, "num_layers": 3, "caption_channels": 12}
HUNYUAN_SMALL = {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16,
                 "num_layers": 2, "num_single_layers": 3, "num_refiner_layers": 2, "text_embed_dim": 12,
                 "pooled_projection_dim": 6, "rope_axes_dim": (4, 6, 6)}
TIMESTEPS = np.array([999.0, 412.0], np.float32)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize(("name", "config", "count"), [
    ("cogvideox_2b", COGVIDEOX_2B, 1_693_783_872), ("cogvideox_5b", COGVIDEOX_5B, 5_570_283_072),
    ("cogvideox_15_5b", COGVIDEOX_15_5B, 5_570_676_352), ("ltx_2b", LTX_2B, 1_923_385_472),
    ("ltx_2b", LTX_2B_095, 1_923_385_472), ("ltx_13b", LTX_13B, 13_042_569_344), ("hunyuan", HUNYUAN, 12_821_012_544)])
def test_tensors_of_the_released_ones(name, config, count):
    found = model_kinds.inventory(config)
    assert found == recorded(name) and sum(int(np.prod(shape)) for shape in found.values()) == count
    kind = model_kinds.kind_of(config)
    assert kind.read(Fields(kind.write(config), name)) == config


def test_models_from_pictures_are_refused():
    kind = model_kinds.kind_of(COGVIDEOX_5B)
    with refused("fields.Fields.require", "in_channels=32", "permitted: 16"):
        kind.read(Fields({**kind.write(COGVIDEOX_5B), "in_channels": 32}, "config.json"))
    with refused("fields.Fields.require", "cross_attention_dim=64", "permitted: 2048"):
        model_kinds.kind_of(LTX_2B).read(Fields({"cross_attention_dim": 64}, "config.json"))


def test_which_transformer_of_ltx_has_a_shorter_first_token():
    """A field says it; the folders of diffusers have none, and then the width tells the 13B model alone."""
    kind, said = model_kinds.kind_of(LTX_2B), "causal_temporal_positioning"
    fields, wide = kind.write(LTX_2B), kind.write(LTX_13B)
    assert said not in fields and said not in wide and kind.write(LTX_2B_095)[said] is True
    assert kind.read(Fields({**fields, said: True}, "")) == LTX_2B_095
    assert kind.read(Fields({**wide, said: False}, "")).rotary == RotaryCoordinates()
    assert LTX_13B.rotary.lead == LTX_2B_095.rotary.lead == 7 / 25 and LTX_2B.rotary.lead == 0
    for other in (RotaryCoordinates(lead=0.1), RotaryCoordinates(base=100.0)):
        assert not ltx_transformer_fields.is_ltx(dataclasses.replace(LTX_2B, rotary=other))


def ours_of(loaded, x, level, conditioning):
    return jax.jit(lambda x: loaded.module.apply({"params": loaded.params}, x, level, conditioning))(x)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["2b", "5b", "1.5"])
@pytest.mark.parametrize("sides", [(8, 12), (4, 12), (12, 4)])
def test_cogvideox(kind, sides, torch, tmp_path):
    """Of the size of training and of others, into whose grid positions are fitted."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    rng, options, frames = np.random.default_rng(0), COGVIDEOX, 2
    if kind != "2b":
        options = {**options, "use_rotary_positional_embeddings": True}
    if kind == "1.5":
        options = {**options, "patch_size_t": 2, "patch_bias": False}
    model = peer(torch, "diffusers", "CogVideoXTransformer3DModel", options)
    model.save_pretrained(tmp_path / "in")
    loaded = load_pretrained(tmp_path / "in")
    x = rng.normal(size=(2, frames, *sides, 4)).astype(np.float32)
    text = rng.normal(size=(2, 5, 12)).astype(np.float32)
    grid, rotary = (sides[0] // 2, sides[1] // 2), None
    if kind == "5b":
        rotary = get_3d_rotary_pos_embed(16, get_resize_crop_region_for_grid(grid, 6, 4), grid, frames)
    elif kind == "1.5":
        rotary = get_3d_rotary_pos_embed(16, None, grid, frames // 2, grid_type="slice", max_size=(6, 6))
    theirs = model(torch.from_numpy(x).permute(0, 1, 4, 2, 3), torch.from_numpy(text), torch.from_numpy(TIMESTEPS),
                   image_rotary_emb=rotary).sample.permute(0, 1, 3, 4, 2)
    conditioning = Conditioning(embeddings=text[:, None], text_mask=np.ones((2, 1, 5), bool))
    close(ours_of(loaded, x, loaded.config.timesteps.logsnr_at(TIMESTEPS), conditioning), theirs)
    if sides == (8, 12):
        check_way_back(torch, model, loaded, tmp_path / "out")


@pytest.mark.full
def test_the_noise_of_cogvideox(torch):
    """Shifted, and without signal at the end."""
    diffusers = pytest.importorskip("diffusers")
    for config, shift in ((COGVIDEOX_2B, 3.0), (COGVIDEOX_5B, 1.0)):
        theirs = diffusers.CogVideoXDDIMScheduler(snr_shift_scale=shift, rescale_betas_zero_snr=True)
        power = theirs.alphas_cumprod.double().numpy()[:-1]
        ours = config.timesteps.table()
        np.testing.assert_allclose(1 / (1 + np.exp(-ours[:-1])), power, rtol=2e-5)
        assert ours[-1] == -20 and theirs.alphas_cumprod[-1] == 0


@pytest.mark.full
@pytest.mark.parametrize("shape", [(3, 2, 4), (1, 3, 3)])
def test_ltx(shape, torch, tmp_path):
    rng = np.random.default_rng(0)
    model = peer(torch, "diffusers", "LTXVideoTransformer3DModel", LTX)
    model.save_pretrained(tmp_path / "in")
    loaded = load_pretrained(tmp_path / "in")
    x, text = rng.normal(size=(2, *shape, 6)).astype(np.float32), rng.normal(size=(2, 7, 12)).astype(np.float32)
    mask, sigmas = np.arange(7)[None] < np.array([[7], [3]]), np.array([0.999, 0.31], np.float32)
    theirs = model(torch.from_numpy(x.reshape(2, -1, 6)), torch.from_numpy(text), torch.from_numpy(1000 * sigmas),
                   torch.from_numpy(mask.astype(np.float32)), *shape, rope_interpolation_scale=(8 / 25, 32, 32))
    conditioning = Conditioning(embeddings=text[:, None], text_mask=mask[:, None])
    found = ours_of(loaded, x, 2 * np.log((1 - sigmas) / sigmas), conditioning)
    close(np.asarray(found).reshape(2, -1, 6), theirs.sample)
    check_way_back(torch, model, loaded, tmp_path / "out")


@pytest.mark.full
def test_the_first_frame_of_ltx_is_shorter(torch):
    """The authors' coordinates: seconds of pixel frames, of which the first token has one."""
    from diffusers.models.transformers.transformer_ltx import LTXVideoRotaryPosEmbed

    axes = dataclasses.replace(RotaryCoordinates(), lead=7 / 25)
    frames = torch.clamp(torch.arange(4) * 8 - 7, min=0) / 25
    coordinates = torch.stack([frames, torch.zeros(4), torch.zeros(4)])[None]
    cos, _ = LTXVideoRotaryPosEmbed(dim=12)(torch.zeros(1, 4, 12), video_coords=coordinates)
    angles = axes.angles(4, 0, 12)  # two frequencies
    np.testing.assert_allclose(np.cos(angles[:, 0]), cos[0, :, 0], atol=1e-5)
    np.testing.assert_allclose(np.cos(angles[:, 1]), cos[0, :, 6], atol=3e-3)  # of 15,708 radians in float32


@pytest.mark.full
def test_hunyuan(torch, tmp_path):
    """With texts of different lengths, and the scale of the guidance as an input."""
    rng = np.random.default_rng(0)
    model = peer(torch, "diffusers", "HunyuanVideoTransformer3DModel", HUNYUAN_SMALL)
    model.save_pretrained(tmp_path / "in")
    loaded = load_pretrained(tmp_path / "in")
    x, text = rng.normal(size=(2, 3, 4, 8, 4)).astype(np.float32), rng.normal(size=(2, 7, 12)).astype(np.float32)
    mask, pooled = np.arange(7)[None] < np.array([[7], [3]]), rng.normal(size=(2, 6)).astype(np.float32)
    text = np.where(mask[..., None], text, 0)
    sigmas = np.array([0.999, 0.31], np.float32)
    theirs = model(torch.from_numpy(x).permute(0, 4, 1, 2, 3), torch.from_numpy(1000 * sigmas), torch.from_numpy(text),
                   torch.from_numpy(mask.astype(np.int64)), torch.from_numpy(pooled),
                   torch.tensor([6000.0, 1000.0])).sample.permute(0, 2, 3, 4, 1)
    conditioning = Conditioning(embeddings=text[:, None], text_mask=mask[:, None], inputs={"pooled_text": pooled},
                                scalars={"guidance": np.array([5.0, 0.0], np.float32)})
    close(ours_of(loaded, x, 2 * np.log((1 - sigmas) / sigmas), conditioning), theirs)
    check_way_back(torch, model, loaded, tmp_path / "out")
