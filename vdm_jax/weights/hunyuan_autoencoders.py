"""The autoencoder of HunyuanVideo in the layout of diffusers, `AutoencoderKLHunyuanVideo`."""

from __future__ import annotations

from typing import Any

from vdm_jax.networks.autoencoders.hunyuan import AUTOENCODER_HUNYUAN, HunyuanAutoencoder
from vdm_jax.weights.fields import Fields
from vdm_jax.weights.tensor_names import Names, prefixed

BLOCK = {"conv_in": "conv1.conv", "conv_out": "conv2.conv", "shortcut": "conv_shortcut.conv", "norm_in": "norm1",
         "norm_out": "norm2"}
ATTENTION = {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}


def _names() -> Names:
    lines = (("quant", "quant_conv"), ("post_quant", "post_quant_conv"),
             (r"encoder/downsample_(\d+)", r"encoder.down_blocks.\1.downsamplers.0.conv.conv"),
             (r"decoder/upsample_(\d+)/conv", r"decoder.up_blocks.\1.upsamplers.0.conv.conv"))
    for side, way in (("encoder", "down"), ("decoder", "up")):
        middle = f"{side}.mid_block"
        lines += ((f"{side}/stem", f"{side}.conv_in.conv"), (f"{side}/norm", f"{side}.conv_norm_out"),
                  (f"{side}/out", f"{side}.conv_out.conv"),
                  *prefixed(rf"{side}/{way}_(\d+)_(\d+)", rf"{side}.{way}_blocks.\1.resnets.\2", BLOCK),
                  *prefixed(f"{side}/middle_in", f"{middle}.resnets.0", BLOCK),
                  *prefixed(f"{side}/middle_out", f"{middle}.resnets.1", BLOCK),
                  *prefixed(f"{side}/middle_attention", f"{middle}.attentions.0", ATTENTION))
    return Names(lines, ranks=((r"(.*/shortcut|quant|post_quant)/kernel", 5),))


NAMES = _names()


def read_hunyuan_autoencoder(fields: Fields) -> HunyuanAutoencoder:
    """The config of an `AutoencoderKLHunyuanVideo`."""
    default = AUTOENCODER_HUNYUAN
    widths, channels = fields.get("block_out_channels", default.widths), fields.get("in_channels", 3)
    fields.require(
        act_fn="silu", out_channels=channels, temporal_compression_ratio=default.time_factor,
        down_block_types=["HunyuanVideoDownBlock3D"] * len(widths),
        up_block_types=["HunyuanVideoUpBlock3D"] * len(widths), spatial_compression_ratio=2 ** (len(widths) - 1))
    return HunyuanAutoencoder(
        channels=channels, widths=widths, blocks=fields.get("layers_per_block", default.blocks),
        latent_channels=fields.get("latent_channels", default.latent_channels),
        groups=fields.get("norm_num_groups", default.groups), attention=fields.get("mid_block_add_attention", True),
        scale=fields.get("scaling_factor", default.scale))


def write_hunyuan_autoencoder(config: HunyuanAutoencoder) -> dict[str, Any]:
    """The fields of an `AutoencoderKLHunyuanVideo`."""
    levels = len(config.widths)
    return {"in_channels": config.channels, "out_channels": config.channels, "block_out_channels": list(config.widths),
            "down_block_types": ["HunyuanVideoDownBlock3D"] * levels,
            "up_block_types": ["HunyuanVideoUpBlock3D"] * levels, "layers_per_block": config.blocks,
            "latent_channels": config.latent_channels, "norm_num_groups": config.groups, "act_fn": "silu",
            "scaling_factor": config.scale, "spatial_compression_ratio": config.factor,
            "temporal_compression_ratio": config.time_factor, "mid_block_add_attention": config.attention}


def accepts(config: HunyuanAutoencoder) -> bool:
    """Whether the class of diffusers cuts clips alike, which no file says."""
    return config.pieces == AUTOENCODER_HUNYUAN.pieces
