"""The autoencoder of CogVideoX in the layout of diffusers, `AutoencoderKLCogVideoX`."""

from __future__ import annotations

from typing import Any

from vdm_jax.networks.autoencoders.piecewise import AUTOENCODER_COGVIDEOX, PiecewiseAutoencoder
from vdm_jax.weights.fields import Fields
from vdm_jax.weights.tensor_names import Names, prefixed

CONVOLUTIONS = {"conv_in": "conv1.conv", "conv_out": "conv2.conv", "shortcut": "conv_shortcut"}
NORM = {"norm": "norm_layer", "scale_map": "conv_y.conv", "shift_map": "conv_b.conv"}
ENCODER = {**CONVOLUTIONS, "norm_in": "norm1", "norm_out": "norm2"}
DECODER = {**CONVOLUTIONS, **{f"norm_{ours}/{a}": f"norm{theirs}.{b}" for ours, theirs in (("in", 1), ("out", 2))
                              for a, b in NORM.items()}}


def _names() -> Names:
    lines = (("encoder/norm", "encoder.norm_out"), *prefixed("decoder/norm", "decoder.norm_out", NORM),
             (r"encoder/downsample_(\d+)", r"encoder.down_blocks.\1.downsamplers.0.conv"),
             (r"decoder/upsample_(\d+)/conv", r"decoder.up_blocks.\1.upsamplers.0.conv"))
    for side, way, within in (("encoder", "down", ENCODER), ("decoder", "up", DECODER)):
        lines += ((f"{side}/stem", f"{side}.conv_in.conv"), (f"{side}/out", f"{side}.conv_out.conv"),
                  *prefixed(rf"{side}/{way}_(\d+)_(\d+)", rf"{side}.{way}_blocks.\1.resnets.\2", within),
                  *prefixed(f"{side}/middle_in", f"{side}.mid_block.resnets.0", within),
                  *prefixed(f"{side}/middle_out", f"{side}.mid_block.resnets.1", within))
    return Names(lines, ranks=((r".*/(shortcut|scale_map|shift_map)/kernel", 5),))


NAMES = _names()


def read_piecewise(fields: Fields) -> PiecewiseAutoencoder:
    """The config of an `AutoencoderKLCogVideoX`, whose `invert_scale_latents` is about pictures that videos begin with.
    """
    default = AUTOENCODER_COGVIDEOX
    widths, channels = fields.get("block_out_channels", default.widths), fields.get("in_channels", 3)
    fields.require(
        act_fn="silu", norm_eps=1e-6, out_channels=channels, shift_factor=None, latents_mean=None, latents_std=None,
        use_quant_conv=False, use_post_quant_conv=False,
        down_block_types=["CogVideoXDownBlock3D"] * len(widths), up_block_types=["CogVideoXUpBlock3D"] * len(widths))
    return PiecewiseAutoencoder(
        channels=channels, widths=widths, blocks=fields.get("layers_per_block", 3),
        latent_channels=fields.get("latent_channels", 16), groups=fields.get("norm_num_groups", 32),
        time_factor=int(fields.get("temporal_compression_ratio", 4.0)),
        scale=fields.get("scaling_factor", default.scale))


def write_piecewise(config: PiecewiseAutoencoder) -> dict[str, Any]:
    """The fields of an `AutoencoderKLCogVideoX`."""
    levels = len(config.widths)
    return {"in_channels": config.channels, "out_channels": config.channels, "block_out_channels": list(config.widths),
            "down_block_types": ["CogVideoXDownBlock3D"] * levels, "up_block_types": ["CogVideoXUpBlock3D"] * levels,
            "layers_per_block": config.blocks, "latent_channels": config.latent_channels,
            "norm_num_groups": config.groups, "temporal_compression_ratio": config.time_factor,
            "scaling_factor": config.scale, "act_fn": "silu", "norm_eps": 1e-6}


def accepts(config: PiecewiseAutoencoder) -> bool:
    """Whether the class of diffusers cuts clips alike, which no file says."""
    return config.pieces == AUTOENCODER_COGVIDEOX.pieces
