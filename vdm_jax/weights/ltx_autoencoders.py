"""The autoencoders of LTX-Video in the layout of diffusers, `AutoencoderKLLTXVideo`."""

from __future__ import annotations

from typing import Any

from vdm_jax.errors import UserError
from vdm_jax.networks.autoencoders.ltx_config import LTXAutoencoder
from vdm_jax.weights.fields import Fields
from vdm_jax.weights.tensor_names import Names, prefixed

BLOCK = {"conv_in": "conv1.conv", "conv_out": "conv2.conv", "norm_shortcut": "norm3", "shortcut": "conv_shortcut.conv"}
TIME = {"expand": "time_embedder.timestep_embedder.linear_1", "out": "time_embedder.timestep_embedder.linear_2"}
SHRINKS = {"conv": "conv", "space": "spatial", "time": "temporal", "both": "spatiotemporal"}


def names(config: LTXAutoencoder) -> Names:
    """Of diffusers."""
    places = {r"encoder/down_(\d+)_(\d+)": r"encoder.down_blocks.\1.resnets.\2",
              r"encoder/widen_(\d+)": r"encoder.down_blocks.\1.conv_out",
              r"decoder/narrow_(\d+)": r"decoder.up_blocks.\1.conv_in",
              r"decoder/up_(\d+)_(\d+)": r"decoder.up_blocks.\1.resnets.\2",
              r"encoder/middle_(\d+)": r"encoder.mid_block.resnets.\1",
              r"decoder/middle_(\d+)": r"decoder.mid_block.resnets.\1"}
    lines = tuple(line for ours, theirs in places.items() for line in prefixed(ours, theirs, BLOCK))
    down = r"encoder.down_blocks.\1.downsamplers.0.conv"
    lines += ((r"encoder/downsample_(\d+)/conv", f"{down}.conv"), (r"encoder/downsample_(\d+)", down),
              (r"decoder/upsample_(\d+)/conv", r"decoder.up_blocks.\1.upsamplers.0.conv.conv"),
              *((f"{side}/{ours}", f"{side}.{theirs}.conv") for side in ("encoder", "decoder")
                for ours, theirs in (("stem", "conv_in"), ("out", "conv_out"))),
              *prefixed("decoder/time_middle", "decoder.mid_block", TIME),
              *prefixed(r"decoder/time_(\d+)", r"decoder.up_blocks.\1", TIME),
              *prefixed("decoder/time_out", "decoder", TIME))
    tensors = tuple((f"{ours}/{leaf}", f"{theirs}.{name}") for ours, theirs in places.items() for leaf, name in (
        ("table", "scale_shift_table"), ("noise_in", "per_channel_scale1"), ("noise_out", "per_channel_scale2")))
    tensors += (("decoder/table", "decoder.scale_shift_table"), ("decoder/time_scale",
                                                                 "decoder.timestep_scale_multiplier"),
                ("mean", "latents_mean"), ("std", "latents_std"))
    return Names(lines, tensors, ranks=((r".*/noise_(in|out)", 3), (r".*/shortcut/kernel", 5)))


def read_ltx(fields: Fields) -> LTXAutoencoder:
    """The config of an `AutoencoderKLLTXVideo`."""
    default = LTXAutoencoder()
    widths, scaling = fields.get("block_out_channels", default.widths), fields.get(
        "spatio_temporal_scaling", default.grow)
    fine, levels = fields.get("decoder_block_out_channels", default.decoder_widths), len(scaling)
    kinds = fields.get("down_block_types", ("LTXVideoDownBlock3D",) * levels)
    folds = kinds[-1] == "LTXVideo095DownBlock3D"
    factors = set(fields.get("upsample_factor", (1,) * len(fine)))
    shortcuts = set(fields.get("upsample_residual", (False,) * len(fine)))
    ways = fields.get("downsample_type", ("conv",) * levels)
    known = {theirs: ours for ours, theirs in SHRINKS.items() if (ours != "conv") == folds}
    if len(factors) != 1 or len(shortcuts) != 1 or not set(ways) <= set(known) or len(set(kinds)) != 1:
        raise UserError(f"{fields.where}: upsample_factor={sorted(factors)}, upsample_residual={sorted(shortcuts)}, "
                        f"downsample_type={ways}, down_block_types={kinds}; permitted: the same for all levels of the "
                        f"decoder, one kind of levels of the encoder, and {', '.join(known)}")
    channels = fields.get("in_channels", 3)
    fields.require(out_channels=channels, patch_size_t=1, encoder_causal=True, decoder_causal=False)
    return LTXAutoencoder(
        channels=channels, patch=fields.get("patch_size", 4), latent_channels=fields.get("latent_channels", 128),
        widths=widths[:-1] if folds else widths, out_width=widths[-1],
        blocks=fields.get("layers_per_block", default.blocks),
        shrink=tuple(known[way] if shrinks else "none" for way, shrinks in zip(ways, scaling, strict=True)),
        decoder_widths=fine, decoder_blocks=fields.get("decoder_layers_per_block", default.decoder_blocks),
        grow=fields.get("decoder_spatio_temporal_scaling", default.grow),
        noise=fields.get("decoder_inject_noise", (False,) * (len(fine) + 1)), narrowing=factors.pop(),
        shortcuts=shortcuts.pop(), timed=fields.get("timestep_conditioning", False),
        scale=fields.get("scaling_factor", 1.0), epsilon=fields.get("resnet_norm_eps", 1e-6))


def write_ltx(config: LTXAutoencoder) -> dict[str, Any]:
    """The fields of an `AutoencoderKLLTXVideo`."""
    levels, up = len(config.widths), len(config.decoder_widths)
    return {
        "in_channels": config.channels, "out_channels": config.channels, "latent_channels": config.latent_channels,
        "block_out_channels": [*config.widths, *([config.out_width] if config.folds else [])],
        "down_block_types": ["LTXVideo095DownBlock3D" if config.folds else "LTXVideoDownBlock3D"] * levels,
        "layers_per_block": list(config.blocks), "spatio_temporal_scaling": [way != "none" for way in config.shrink],
        "downsample_type": [SHRINKS.get(way, "spatial" if config.folds else "conv") for way in config.shrink],
        "decoder_block_out_channels": list(config.decoder_widths),
        "decoder_layers_per_block": list(config.decoder_blocks), "decoder_inject_noise": list(config.noise),
        "decoder_spatio_temporal_scaling": list(config.grow), "upsample_residual": [config.shortcuts] * up,
        "upsample_factor": [config.narrowing] * up, "timestep_conditioning": config.timed, "patch_size": config.patch,
        "patch_size_t": 1, "resnet_norm_eps": config.epsilon, "scaling_factor": config.scale, "encoder_causal": True,
        "decoder_causal": False, "spatial_compression_ratio": config.factor,
        "temporal_compression_ratio": config.time_factor}


def accepts(config: LTXAutoencoder) -> bool:
    """Whether the class of diffusers has the sizes: without folding, the last level keeps its width."""
    return config.folds or config.out_width == config.widths[-1]
