"""The transformers of CogVideoX in the layout of diffusers: fields and names."""

from __future__ import annotations

import dataclasses
from typing import Any

from vdm_jax.attention.positions import RotaryAxes
from vdm_jax.conditions.text import EmbeddedText
from vdm_jax.diffusion.beta_tables import ShiftedBetaSchedule
from vdm_jax.networks.transformer.config import AddedSinusoids, VideoTransformer
from vdm_jax.networks.transformer.members import cogvideox, cogvideox_rotary
from vdm_jax.weights.fields import Fields
from vdm_jax.weights.tensor_names import Names, prefixed
from vdm_jax.weights.transformer_fields import ATTENTION, same_layers

# What the class takes where a file says nothing, of fields that have one value in all releases
FIXED = {"flip_sin_to_cos": True, "freq_shift": 0, "ofs_embed_dim": None, "dropout": 0.0, "attention_bias": True,
         "temporal_compression_ratio": 4, "activation_fn": "gelu-approximate", "timestep_activation_fn": "silu",
         "norm_elementwise_affine": True, "use_learned_positional_embeddings": False}
SIDES, FRAMES = (60, 90), 49  # of the latents and the videos of training, by which positions of other sizes are fitted
LONGEST = 300  # sides of the table of positions of CogVideoX1.5
PATCH = 2  # rows and columns of a token
WITHIN = {**{f"self_attention/{a}": f"attn1.{b}" for a, b in ATTENTION.items()},
          "attention_modulated/modulation": "norm1.linear", "attention_norm": "norm1.norm",
          "feed_forward_modulated/modulation": "norm2.linear", "feed_forward_norm": "norm2.norm",
          "feed_forward/expand": "ff.net.0.proj", "feed_forward/out": "ff.net.2"}


def cogvideox_names(config: VideoTransformer) -> Names:
    """How the tensors of a transformer of CogVideoX are called. Patches of several frames are a map of their values."""
    return Names(
        modules=(*prefixed(r"block_(\d+)", r"transformer_blocks.\1", WITHIN), ("patches", "patch_embed.proj"),
                 ("embedding/text_in", "patch_embed.text_proj"), ("embedding/level_in", "time_embedding.linear_1"),
                 ("embedding/level_out", "time_embedding.linear_2"), ("final_norm", "norm_final"),
                 ("out_norm", "norm_out.norm"), ("out_modulated/modulation", "norm_out.linear"), ("out", "proj_out")),
        stacked="blocks", flat=r"patches/kernel" if config.patch[0] > 1 else r"(?!)")


def read_cogvideox(fields: Fields) -> VideoTransformer:
    """The config of a folder. Raises `UserError` for models from pictures, which take more channels than they make."""
    heads, head_dim = fields.get("num_attention_heads", 30), fields.get("attention_head_dim", 64)
    out, side = fields.get("out_channels", 16), fields.get("patch_size", PATCH)
    frames = fields.data.get("patch_size_t")
    fields.require(**FIXED, in_channels=out, patch_bias=frames is None)
    if fields.data.get("use_rotary_positional_embeddings"):
        sides = (fields.get("sample_height", SIDES[0]), fields.get("sample_width", SIDES[1]))
        grid = None if frames is not None else tuple(size // side for size in sides)
        positions = {"rotary": cogvideox_rotary(head_dim, grid), "timesteps": ShiftedBetaSchedule(snr_shift=1.0)}
    else:
        over = fields.get("spatial_interpolation_scale", 1.875)
        positions = {"sinusoids": AddedSinusoids(scales=(fields.get("temporal_interpolation_scale", 1.0), over, over))}
    return cogvideox(
        out_channels=out, patch=(frames or 1, side, side), width=heads * head_dim, heads=heads,
        layers=fields.get("num_layers", 30), text=EmbeddedText(width=fields.get("text_embed_dim", 4096)),
        text_length=fields.get("max_text_seq_length", 226), level_width=fields.get("time_embed_dim", 512),
        epsilon=fields.get("norm_eps", 1e-5), **positions)


def write_cogvideox(config: VideoTransformer) -> dict[str, Any]:
    """The fields of a config."""
    frames, side, _ = config.patch
    grid, scales = config.rotary and config.rotary.grid, (config.sinusoids or AddedSinusoids()).scales
    sides = (LONGEST, LONGEST) if frames > 1 else [side * size for size in grid] if grid else SIDES
    return {**FIXED, "num_attention_heads": config.heads, "attention_head_dim": config.head_dim,
            "in_channels": config.out_channels, "out_channels": config.out_channels,
            "time_embed_dim": config.level_width, "text_embed_dim": config.text.width, "num_layers": config.layers,
            "sample_height": sides[0], "sample_width": sides[1], "sample_frames": 81 if frames > 1 else FRAMES,
            "patch_size": side, "patch_size_t": frames if frames > 1 else None,
            "max_text_seq_length": config.text_length, "norm_eps": config.epsilon,
            "temporal_interpolation_scale": scales[0], "spatial_interpolation_scale": scales[1],
            "use_rotary_positional_embeddings": config.rotary is not None, "patch_bias": frames == 1}


def is_cogvideox(config: VideoTransformer) -> bool:
    """Whether a config has the layers of CogVideoX, and no others."""
    if config.text_stream != "joint" or config.patch[1] != config.patch[2]:
        return False
    own = cogvideox(width=config.width, heads=config.heads, layers=config.layers)
    rotary, table = config.rotary, config.timesteps
    positions = config.sinusoids is not None if rotary is None else isinstance(rotary, RotaryAxes) and (
        config.head_dim % 16 == 0 and rotary == cogvideox_rotary(config.head_dim, rotary.grid))
    own_table = isinstance(table, ShiftedBetaSchedule) and (
        dataclasses.replace(table, snr_shift=3.0) == ShiftedBetaSchedule())
    return positions and own_table and (config.hidden, config.conditions, config.frame_conditioning) == (
        own.hidden, (), "none") and same_layers(config, own, ("rotary", "sinusoids", "timesteps"))
