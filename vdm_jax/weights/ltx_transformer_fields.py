"""The transformers of LTX-Video in the layout of diffusers: fields and names."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from vdm_jax.attention.positions import RotaryCoordinates
from vdm_jax.conditions.text import EmbeddedText
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.networks.transformer.members import LTX_13B, LTX_CAUSAL, ltx
from vdm_jax.weights.fields import Fields
from vdm_jax.weights.tensor_names import Names, prefixed
from vdm_jax.weights.transformer_fields import ATTENTION, same_layers

FIXED = {"patch_size": 1, "patch_size_t": 1, "activation_fn": "gelu-approximate", "qk_norm": "rms_norm_across_heads",
         "norm_elementwise_affine": False, "attention_bias": True, "attention_out_bias": True}
WITHIN = {**{f"self_attention/{a}": f"attn1.{b}" for a, b in ATTENTION.items()},
          **{f"cross_attention/{a}": f"attn2.{b}" for a, b in ATTENTION.items()},
          "feed_forward/expand": "ff.net.0.proj", "feed_forward/out": "ff.net.2"}
CAUSAL = "causal_temporal_positioning"
LEVEL = "time_embed.emb.timestep_embedder"


def ltx_names() -> Names:
    """How the tensors of a transformer of LTX-Video are called."""
    return Names(
        modules=(*prefixed(r"block_(\d+)", r"transformer_blocks.\1", WITHIN), ("patches", "proj_in"),
                 ("embedding/level_in", f"{LEVEL}.linear_1"), ("embedding/level_out", f"{LEVEL}.linear_2"),
                 ("embedding/text_in", "caption_projection.linear_1"),
                 ("embedding/text_out", "caption_projection.linear_2"), ("modulation", "time_embed.linear"),
                 ("out", "proj_out")),
        tensors=((r"block_(\d+)/modulated/table", r"transformer_blocks.\1.scale_shift_table"),
                 ("out_modulated/table", "scale_shift_table")),
        stacked="blocks", flat=r"patches/kernel|(block_\d+/|out_)modulated/table")


def read_ltx(fields: Fields) -> VideoTransformer:
    """The config of a folder. Positions are those of clips of 25 frames per second, which the pipeline says. Whether
    the first token is shorter, as from version 0.9.5 on, is what the field `CAUSAL` of the authors' own files says;
    diffusers' have none, and then it is so in the 13B model alone, of which there is no older version: add the field to
    config.json of a later 2B model."""
    heads, head_dim = fields.get("num_attention_heads", 32), fields.get("attention_head_dim", 64)
    channels, width = fields.get("in_channels", 128), heads * head_dim
    fields.require(**FIXED, out_channels=channels, cross_attention_dim=width)
    rotary = LTX_CAUSAL if fields.get(CAUSAL, width == LTX_13B.width) else RotaryCoordinates()
    return ltx(out_channels=channels, width=width, heads=heads, layers=fields.get("num_layers", 28), rotary=rotary,
               text=EmbeddedText(width=fields.get("caption_channels", 4096)), epsilon=fields.get("norm_eps", 1e-6))


def write_ltx(config: VideoTransformer) -> dict[str, Any]:
    """The fields of a config."""
    said = {CAUSAL: config.rotary.lead > 0} if (config.rotary.lead > 0) != (config.width == LTX_13B.width) else {}
    return {**FIXED, "in_channels": config.out_channels, "out_channels": config.out_channels,
            "num_attention_heads": config.heads, "attention_head_dim": config.head_dim,
            "cross_attention_dim": config.width, "num_layers": config.layers, "norm_eps": config.epsilon,
            "caption_channels": config.text.width, **said}


def is_ltx(config: VideoTransformer) -> bool:
    """Whether a config has the layers of LTX-Video, and no others."""
    if config.text is None or config.patch != (1, 1, 1) or config.conditions or config.level_width or (
            not isinstance(config.rotary, RotaryCoordinates) or "channels" == config.frame_conditioning):
        return False
    axes, own = config.rotary, ltx(width=config.width, heads=config.heads, layers=config.layers)
    if dataclasses.replace(axes, steps=own.rotary.steps, lead=0.0) != own.rotary or not (
            axes.lead == 0 or math.isclose(axes.lead, 7 / 8 * axes.steps[0])):
        return False
    return config.hidden == own.hidden and same_layers(config, own, ("rotary",))
