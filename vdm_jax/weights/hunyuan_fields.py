"""The transformers of HunyuanVideo in the layout of diffusers: fields and names."""

from __future__ import annotations

from typing import Any

from vdm_jax.attention.positions import RotaryAxes
from vdm_jax.conditions.inputs import Input
from vdm_jax.conditions.pooled_text import POOLED_TEXT
from vdm_jax.conditions.text import EmbeddedText
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.networks.transformer.members import hunyuan
from vdm_jax.weights.fields import Fields
from vdm_jax.weights.tensor_names import Names, prefixed
from vdm_jax.weights.transformer_fields import ATTENTION, same_layers

FIXED = {"qk_norm": "rms_norm", "mlp_ratio": 4.0, "guidance_embeds": True, "image_condition_type": None}
OWN = {"outside_query": "add_q_proj", "outside_key": "add_k_proj", "outside_value": "add_v_proj",
       "outside_query_norm": "norm_added_q", "outside_key_norm": "norm_added_k", "outside_out": "to_add_out"}
ATTENDING = {f"self_attention/{a}": f"attn.{b}" for a, b in (ATTENTION | OWN).items()}
DOUBLE = {**ATTENDING, "modulated/modulation": "norm1.linear", "text_modulated/modulation": "norm1_context.linear",
          "feed_forward/expand": "ff.net.0.proj", "feed_forward/out": "ff.net.2",
          "text_feed_forward/expand": "ff_context.net.0.proj", "text_feed_forward/out": "ff_context.net.2"}
SINGLE = {**ATTENDING, "modulated/modulation": "norm.linear", "expand": "proj_mlp", "out": "proj_out"}
REFINER = {**{f"attention/{a}": f"attn.{b}" for a, b in ATTENTION.items()}, "norm_attention": "norm1",
           "norm_feed_forward": "norm2", "feed_forward/expand": "ff.net.0.proj", "feed_forward/out": "ff.net.2",
           "gates": "norm_out.linear"}
PERCEPTRONS = {"level": "timestep_embedder", "pooled": "text_embedder", "scale": "guidance_embedder"}


def _perceptrons(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}/{a}_{side}": f"{theirs}.time_text_embed.{b}.linear_{number}".removeprefix(".")
            for a, b in PERCEPTRONS.items() for side, number in (("in", 1), ("out", 2))}


def hunyuan_names() -> Names:
    """How the tensors of a transformer of HunyuanVideo are called."""
    refiner, context = "embedding/text_refiner", "context_embedder"
    return Names(
        modules=(*prefixed(r"block_(\d+)", r"transformer_blocks.\1", DOUBLE),
                 *prefixed(r"single_(\d+)", r"single_transformer_blocks.\1", SINGLE),
                 *prefixed(rf"{refiner}/refiner_(\d+)", rf"{context}.token_refiner.refiner_blocks.\1", REFINER),
                 *_perceptrons(refiner, context).items(), *_perceptrons("embedding", "").items(),
                 (f"{refiner}/text_in", f"{context}.proj_in"), ("patches", "x_embedder.proj"),
                 ("out_modulated/modulation", "norm_out.linear"), ("out", "proj_out")),
        stacked="blocks|single_blocks", volumes="patches")


def read_hunyuan(fields: Fields) -> VideoTransformer:
    """The config of a folder. Raises `UserError` for models from pictures and those without the guidance inside."""
    heads, head_dim = fields.get("num_attention_heads", 24), fields.get("attention_head_dim", 128)
    out, side, theta = fields.get("out_channels", 16), fields.get("patch_size", 2), fields.get("rope_theta", 256.0)
    fields.require(**FIXED, in_channels=out)
    return hunyuan(
        out_channels=out, patch=(fields.get("patch_size_t", 1), side, side), width=heads * head_dim, heads=heads,
        layers=fields.get("num_layers", 20), single_layers=fields.get("num_single_layers", 40),
        text_refiner=fields.get("num_refiner_layers", 2), text=EmbeddedText(width=fields.get("text_embed_dim", 4096)),
        rotary=RotaryAxes(dims=fields.get("rope_axes_dim", (16, 56, 56)), bases=(float(theta),) * 3),
        conditions=(Input(name=POOLED_TEXT, width=fields.get("pooled_projection_dim", 768)),))


def write_hunyuan(config: VideoTransformer) -> dict[str, Any]:
    """The fields of a config."""
    return {**FIXED, "in_channels": config.out_channels, "out_channels": config.out_channels,
            "num_attention_heads": config.heads, "attention_head_dim": config.head_dim, "num_layers": config.layers,
            "num_single_layers": config.single_layers, "num_refiner_layers": config.text_refiner,
            "patch_size": config.patch[1], "patch_size_t": config.patch[0], "text_embed_dim": config.text.width,
            "pooled_projection_dim": config.conditions[0].width, "rope_theta": config.rotary.bases[0],
            "rope_axes_dim": list(config.rotary.dims)}


def is_hunyuan(config: VideoTransformer) -> bool:
    """Whether a config has the layers of HunyuanVideo, and no others."""
    if config.text is None or config.patch[1] != config.patch[2] or config.frame_conditioning != "none" or (
            [entry.name for entry in config.conditions] != [POOLED_TEXT] or not isinstance(config.rotary, RotaryAxes)):
        return False
    own = hunyuan(width=config.width, heads=config.heads, layers=config.layers)
    return config.hidden == own.hidden and len(set(config.rotary.bases)) == 1 and config.rotary.grid is None and (
        config.epsilon == own.epsilon) and same_layers(
            config, own, ("rotary", "single_layers", "text_refiner"))
