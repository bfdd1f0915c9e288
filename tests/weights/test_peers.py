"""Reduced models of diffusers and transformers: their folders read here, outputs compared, written and read there."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from vdm_jax.stages.latent import Latent, decode, encode
from vdm_jax.weights.pretrained import load_pretrained, save_pretrained

pytestmark = pytest.mark.full
TEXT = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": 16, "eos_token_id": 98, "bos_token_id": 97, "pad_token_id": 0, "projection_dim": 24}
IMAGE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
         "patch_size": 8, "projection_dim": 16}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 3}
VAE = {"block_out_channels": (32, 64), "layers_per_block": 2, "latent_channels": 4,
       "down_block_types": ("DownEncoderBlock2D",) * 2}
TOKENS = np.array([[97, 5, 6, 7, 98, 0, 0], [97, 8, 98, 3, 98, 0, 0]])


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def peer(torch, library, name, options, config=""):
    """A model of theirs with random weights of which none are zero or one."""
    library = pytest.importorskip(library)
    torch.manual_seed(0)
    made = getattr(library, name)
    model = made(getattr(library, config)(**options)) if config else made(**options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval().float()


def close(ours, theirs):
    """Within 1e-4 of the largest value."""
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=1e-4)


def brought(model, folder):
    """Their model here, and its network with parameters bound."""
    model.save_pretrained(folder)
    loaded = load_pretrained(folder)
    return loaded, lambda *x, **o: jax.jit(lambda *x: loaded.module.apply({"params": loaded.params}, *x, **o))(*x)


def check_way_back(torch, model, loaded, folder):
    """What we write is read there, and is what they wrote."""
    save_pretrained(folder, loaded)
    again = type(model).from_pretrained(folder)
    found = again.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(found[name], tensor), name
    return again


@pytest.mark.parametrize("name", ["CLIPTextModel", "CLIPTextModelWithProjection"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("end", [2, 98])
def test_clip_text(name, activation, end, torch, tmp_path):
    options = {**TEXT, "hidden_act": activation, "eos_token_id": end}
    model = peer(torch, "transformers", name, options, "CLIPTextConfig")
    loaded, run = brought(model, tmp_path / "in")
    theirs = model(torch.from_numpy(TOKENS), output_hidden_states=True)
    ours = run(TOKENS)
    close(ours.tokens, theirs.last_hidden_state)
    close(ours.pooled, theirs.text_embeds if "Projection" in name else theirs.pooler_output)
    penultimate = dataclasses.replace(loaded.config, hidden_state=-2, final_norm=False)
    module = dataclasses.replace(loaded, config=penultimate).module
    found = jax.jit(module.apply)({"params": loaded.params}, TOKENS).tokens
    close(found, theirs.hidden_states[-2])
    mask = TOKENS > 0
    masked = model(torch.from_numpy(TOKENS), attention_mask=torch.from_numpy(mask.astype(int))).last_hidden_state
    close(run(TOKENS, mask).tokens, masked)
    check_way_back(torch, model, loaded, tmp_path / "out")


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_vision(activation, torch, tmp_path):
    options = {**IMAGE, "hidden_act": activation}
    model = peer(torch, "transformers", "CLIPVisionModelWithProjection", options, "CLIPVisionConfig")
    loaded, run = brought(model, tmp_path / "in")
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    theirs, ours = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())), run(images)
    close(ours.tokens, theirs.last_hidden_state)
    close(ours.pooled, theirs.image_embeds)
    check_way_back(torch, model, loaded, tmp_path / "out")


@pytest.mark.parametrize("activation", ["gated-gelu", "relu", "gated-silu"])
def test_t5(activation, torch, tmp_path):
    options = {**T5, "feed_forward_proj": activation}
    model = peer(torch, "transformers", "T5EncoderModel", options, "T5Config")
    loaded, run = brought(model, tmp_path / "in")
    tokens = np.random.default_rng(0).integers(1, 64, (2, 150))  # longer than the furthest bucket
    mask = np.arange(150)[None] < np.array([[150], [90]])
    close(run(tokens), model(torch.from_numpy(tokens)).last_hidden_state)
    theirs = model(torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask.astype(int))).last_hidden_state
    ours = run(tokens, mask)
    close(ours[0], theirs[0])
    close(ours[1, :90], theirs[1, :90])
    check_way_back(torch, model, loaded, tmp_path / "out")


def test_umt5(torch, tmp_path):
    model = peer(torch, "transformers", "UMT5EncoderModel", {**T5, "feed_forward_proj": "gated-gelu"}, "UMT5Config")
    loaded, run = brought(model, tmp_path / "in")
    assert loaded.config.offsets_per_layer
    tokens, mask = np.random.default_rng(0).integers(1, 64, (2, 150)), np.arange(150)[None] < np.array([[150], [90]])
    theirs = model(torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask.astype(int))).last_hidden_state
    ours = run(tokens, mask)
    close(ours[0], theirs[0])
    close(ours[1, :90], theirs[1, :90])
    check_way_back(torch, model, loaded, tmp_path / "out")


@pytest.mark.parametrize("key_heads", [4, 2])
def test_llama(key_heads, torch, tmp_path):
    """The hidden states before the last two layers, of texts of two lengths."""
    model = peer(torch, "transformers", "LlamaModel", {
        "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "rope_theta": 500.0,
        "num_key_value_heads": key_heads, "head_dim": 6, "intermediate_size": 24}, "LlamaConfig")
    loaded, run = brought(model, tmp_path / "in")
    assert loaded.config.base == 500
    tokens, mask = np.random.default_rng(0).integers(1, 64, (2, 40)), np.arange(40)[None] < np.array([[40], [13]])
    theirs = model(torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask.astype(int)),
                   output_hidden_states=True).hidden_states[-3]
    ours = run(tokens, mask)
    close(ours[0], theirs[0])
    close(ours[1, :13], theirs[1, :13])
    check_way_back(torch, model, loaded, tmp_path / "out")


def frames(video):
    """Videos as their batch of frames, channels first."""
    return video.reshape(-1, *video.shape[2:]).transpose(0, 3, 1, 2).copy()


@pytest.mark.parametrize("name, more", [
    ("AutoencoderKL", {"up_block_types": ("UpDecoderBlock2D",) * 2}),
    ("AutoencoderKL", {"up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 8, "use_quant_conv": False,
                       "use_post_quant_conv": False, "mid_block_add_attention": False, "layers_per_block": 1}),
    ("AutoencoderKLTemporalDecoder", {}),
])
def test_autoencoders(name, more, torch, tmp_path):
    model = peer(torch, "diffusers", name, {**VAE, **more})
    loaded, run = brought(model, tmp_path / "in")
    rng = np.random.default_rng(0)
    video = rng.uniform(-1, 1, (2, 3, 16, 24, 3)).astype(np.float32)
    latents = rng.normal(size=(2, 3, 8, 12, 4)).astype(np.float32)
    theirs, ours = model.encode(torch.from_numpy(frames(video))).latent_dist, run(video, method="encode")
    close(frames(np.asarray(ours.mean)), theirs.mean)
    close(frames(np.asarray(ours.logvar)), theirs.logvar)
    options = {"num_frames": 3} if "Temporal" in name else {}
    decoded = model.decode(torch.from_numpy(frames(latents)), **options).sample
    close(frames(np.asarray(run(latents, method="decode"))), decoded)
    again = check_way_back(torch, model, loaded, tmp_path / "out")
    assert torch.equal(again.decode(torch.from_numpy(frames(latents)), **options).sample, decoded)
    assert again.config.scaling_factor == model.config.scaling_factor


WAN = {"base_dim": 4, "z_dim": 2, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "temperal_downsample": [True, True],
       "latents_mean": [0.1, -0.2], "latents_std": [0.5, 2.0], "scale_factor_spatial": 4}
WAN22 = {**WAN, "is_residual": True, "decoder_base_dim": 8, "patch_size": 2, "in_channels": 12, "out_channels": 12,
         "scale_factor_spatial": 8}


@pytest.mark.parametrize("options", [WAN, WAN22], ids=["2.1", "2.2"])
def test_causal_autoencoders(options, torch, tmp_path):
    """1, 5 and 9 frames, whole here and in pieces there, means and deviations as stored."""
    model = peer(torch, "diffusers", "AutoencoderKLWan", options)
    loaded, run = brought(model, tmp_path / "in")
    for frames in (1, 5, 9):
        video = np.random.default_rng(frames).uniform(-1, 1, (2, frames, 16, 24, 3)).astype(np.float32)
        there = torch.from_numpy(video.transpose(0, 4, 1, 2, 3).copy())
        theirs, ours = model.encode(there).latent_dist, run(video, method="encode")
        close(np.asarray(ours.mean).transpose(0, 4, 1, 2, 3), theirs.mean)
        close(np.asarray(ours.logvar).transpose(0, 4, 1, 2, 3), theirs.logvar)
        decoded = model.decode(theirs.mean).sample
        close(np.clip(run(np.asarray(ours.mean), method="decode"), -1, 1).transpose(0, 4, 1, 2, 3), decoded)
    assert (loaded.config.mean, loaded.config.std) == ((0.1, -0.2), (0.5, 2.0))
    again = check_way_back(torch, model, loaded, tmp_path / "out")
    assert torch.equal(again.decode(theirs.mean).sample, decoded)


def check_in_pieces(torch, model, frames, tmp_path):
    """Latents and videos of an autoencoder that takes clips in pieces are those of theirs."""
    loaded, _ = brought(model, tmp_path / "in")
    latent = Latent(autoencoder=loaded.config, encode="mode")
    video = np.random.default_rng(0).uniform(-1, 1, (2, frames, 8, 16, 3)).astype(np.float32)
    theirs = model.encode(torch.from_numpy(video.transpose(0, 4, 1, 2, 3).copy())).latent_dist.mean
    z = jax.jit(lambda x: encode(latent, loaded.params, x))(video)
    close(np.asarray(z).transpose(0, 4, 1, 2, 3) / loaded.config.scale, theirs)
    x = jax.jit(lambda z: decode(latent, loaded.params, z))(z)
    close(np.asarray(x).transpose(0, 4, 1, 2, 3), model.decode(theirs).sample.clamp(-1, 1))
    check_way_back(torch, model, loaded, tmp_path / "out")


@pytest.mark.parametrize("frames", [1, 9, 17])
def test_the_autoencoder_of_cogvideox(frames, torch, tmp_path):
    """In the pieces that their class takes, over which its norms are."""
    model = peer(torch, "diffusers", "AutoencoderKLCogVideoX", {
        "block_out_channels": (4, 8, 8), "down_block_types": ("CogVideoXDownBlock3D",) * 3, "layers_per_block": 1,
        "up_block_types": ("CogVideoXUpBlock3D",) * 3, "latent_channels": 2, "norm_num_groups": 2})
    check_in_pieces(torch, model, frames, tmp_path)


@pytest.mark.parametrize("frames, attention", [(1, True), (5, False), (17, True), (33, True)])
def test_the_autoencoder_of_hunyuanvideo(frames, attention, torch, tmp_path):
    """In the pieces that their class takes: longer clips in several, which are blended."""
    model = peer(torch, "diffusers", "AutoencoderKLHunyuanVideo", {
        "block_out_channels": (4, 8, 8), "down_block_types": ("HunyuanVideoDownBlock3D",) * 3, "layers_per_block": 1,
        "up_block_types": ("HunyuanVideoUpBlock3D",) * 3, "latent_channels": 2, "norm_num_groups": 2,
        "spatial_compression_ratio": 4, "mid_block_add_attention": attention})
    check_in_pieces(torch, model, frames, tmp_path)


LTX = {"latent_channels": 2, "patch_size": 2, "block_out_channels": (4, 8, 8), "layers_per_block": (1,) * 4,
       "down_block_types": ("LTXVideoDownBlock3D",) * 3, "spatio_temporal_scaling": (True, True, False),
       "downsample_type": ("conv",) * 3, "decoder_block_out_channels": (4, 8, 8), "decoder_layers_per_block": (1,) * 4,
       "decoder_spatio_temporal_scaling": (True, True, False), "decoder_inject_noise": (False,) * 4,
       "upsample_residual": (False,) * 3, "upsample_factor": (1,) * 3}
LTX_TIMED = {"decoder_block_out_channels": (8, 16), "decoder_layers_per_block": (1,) * 3, "timestep_conditioning": True,
             "decoder_spatio_temporal_scaling": (True,) * 2, "decoder_inject_noise": (True, True, False),
             "upsample_residual": (True,) * 2, "upsample_factor": (2,) * 2}
LTX_FOLDED = {"block_out_channels": (4, 8, 16, 16), "down_block_types": ("LTXVideo095DownBlock3D",) * 3,
              "spatio_temporal_scaling": (True,) * 3, "downsample_type": ("spatial", "temporal", "spatiotemporal")}


@pytest.mark.parametrize("more", [{}, LTX_TIMED, {**LTX_TIMED, **LTX_FOLDED}], ids=["0.9.0", "0.9.1", "0.9.5"])
def test_the_autoencoders_of_ltx(more, torch, tmp_path):
    """Means and deviations are stored, and latents here are normalised by them. Without noise, which has other numbers
    there."""
    model = peer(torch, "diffusers", "AutoencoderKLLTXVideo", {**LTX, **more})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "per_channel_scale" in name:
                parameter.zero_()
    mean, std = torch.tensor([0.3, -0.5]), torch.tensor([1.5, 0.7])
    model.latents_mean.copy_(mean)
    model.latents_std.copy_(std)
    loaded, run = brought(model, tmp_path / "in")
    for frames in (1, 9):
        video = np.random.default_rng(frames).uniform(-1, 1, (2, frames, 16, 24, 3)).astype(np.float32)
        theirs = model.encode(torch.from_numpy(video.transpose(0, 4, 1, 2, 3).copy())).latent_dist
        ours = run(video, method="encode")
        shape = (1, 2, 1, 1, 1)
        close(np.asarray(ours.mean).transpose(0, 4, 1, 2, 3), (theirs.mean - mean.view(shape)) / std.view(shape))
        deviations = np.exp(np.asarray(ours.logvar) / 2).transpose(0, 4, 1, 2, 3)
        close(deviations, torch.exp(theirs.logvar / 2) / std.view(shape))
        time = torch.full((2,), loaded.config.decode_time) if more else None
        decoded = model.decode(theirs.mean, time).sample
        close(np.asarray(run(np.asarray(ours.mean), method="decode")).transpose(0, 4, 1, 2, 3), decoded)
    check_way_back(torch, model, loaded, tmp_path / "out")


UNET = {"block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 24, "sample_size": 8}
IMAGE_UNET = {**UNET, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "attention_head_dim": (2, 4),
              "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
VIDEO_UNET = {**UNET, "in_channels": 8, "addition_time_embed_dim": 16, "projection_class_embeddings_input_dim": 48,
              "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
              "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
              "num_attention_heads": (2, 4)}


@pytest.mark.parametrize("more", [
    {"attention_head_dim": 8}, {"use_linear_projection": True, "in_channels": 5},
    {"use_linear_projection": True, "in_channels": 7, "num_class_embeds": 10, "only_cross_attention": (True, False)},
    {"attention_head_dim": 8, "time_cond_proj_dim": 24},
], ids=["sd1", "sd2_depth", "upscaler", "lcm"])
def test_image_unets(more, torch, tmp_path):
    model = peer(torch, "diffusers", "UNet2DConditionModel", {**IMAGE_UNET, **more})
    loaded, _ = brought(model, tmp_path / "in")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 1, 8, 12, loaded.config.in_channels)).astype(np.float32)
    context, level = rng.normal(size=(2, 1, 5, 24)).astype(np.float32), np.array([981.0, 3.0], np.float32)
    classes = np.array([0, 7]) if loaded.config.classes else None
    weight = np.array([7.5, 0.0], np.float32) if loaded.config.weight_channels else None
    code = {}
    if weight is not None:  # what their pipeline makes of it
        angles = 1000 * weight[:, None] * np.exp(np.arange(12) * -np.log(10_000) / 11)
        code["timestep_cond"] = torch.from_numpy(np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32))
    theirs = model(torch.from_numpy(frames(x)), torch.from_numpy(level), torch.from_numpy(context[:, 0]), **code,
                   class_labels=None if classes is None else torch.from_numpy(classes)).sample
    ours = jax.jit(lambda x: loaded.module.apply({"params": loaded.params}, x, level, context, classes=classes,
                                                    weight=weight))(x)
    close(frames(np.asarray(ours)), theirs)
    check_way_back(torch, model, loaded, tmp_path / "out")


def test_video_unet(torch, tmp_path):
    model = peer(torch, "diffusers", "UNetSpatioTemporalConditionModel", VIDEO_UNET)
    loaded, _ = brought(model, tmp_path / "in")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 8, 12, 8)).astype(np.float32)
    context, scalars = rng.normal(size=(2, 1, 2, 24)).astype(np.float32), np.array([[6, 127, 0.02]] * 2, np.float32)
    theirs = model(torch.from_numpy(x.transpose(0, 1, 4, 2, 3).copy()), torch.tensor(1.637),
                   torch.from_numpy(context[:, 0]), torch.from_numpy(scalars)).sample
    level = np.full(2, 1.637, np.float32)
    ours = jax.jit(lambda x: loaded.module.apply({"params": loaded.params}, x, level, context, scalars=scalars))(x)
    close(np.asarray(ours).transpose(0, 1, 4, 2, 3), theirs)
    check_way_back(torch, model, loaded, tmp_path / "out")


def test_weights_in_half_precision_and_several_files(torch, tmp_path):
    model = peer(torch, "transformers", "CLIPTextModel", TEXT, "CLIPTextConfig").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "in", max_shard_size="20KB")
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 1
    loaded = load_pretrained(tmp_path / "in")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded.params)} == {"bfloat16"}
    save_pretrained(tmp_path / "out", loaded, shard_bytes=20_000)
    found = type(model).from_pretrained(tmp_path / "out", dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
