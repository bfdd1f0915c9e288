"""Causal autoencoders in files: the layout of diffusers (`AutoencoderKLWan`), and that of the authors, one file of the
autoencoder alone (`Wan2.1_VAE`, `Wan2.2_VAE`).

Both number their layers differently; each has a table of names from our paths. Sizes are in `config.json` in the first
layout and read from shapes in the second. Latent means and deviations are in neither file of tensors: those of the
authors' code are taken for files of their sizes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from vdm_jax.errors import UserError
from vdm_jax.networks.autoencoders.causal_config import AUTOENCODER_WAN21, AUTOENCODER_WAN22, CausalAutoencoder
from vdm_jax.weights.fields import Fields
from vdm_jax.weights.tensor_files import Tensor
from vdm_jax.weights.tensor_names import RESIDUAL, Lines, Names, prefixed

# Dimensions of tensors that we store with fewer: norms and pointwise convolutions have sizes of 1 at the end.
RANKS = ((r".*/frame_attention/norm/scale", 3), (r".*/frame_attention/.*/kernel", 4), (r".*/scale", 4),
         (r"(.*/shortcut|quant|post_quant)/kernel", 5))
ORIGINAL = {"norm_in": "residual.0", "conv_in": "residual.2", "norm_out": "residual.3", "conv_out": "residual.6",
            "shortcut": "shortcut"}
ATTENTION = {"norm": "norm", "qkv": "to_qkv", "out": "proj"}
RESAMPLE = {"space": "resample.1", "time": "time_conv"}


def names(config: CausalAutoencoder) -> Names:
    """Of diffusers."""
    lines = _lines(_places(config), RESIDUAL)
    for side in ("encoder", "decoder"):
        lines += ((f"{side}/stem", f"{side}.conv_in"), (f"{side}/norm", f"{side}.norm_out"),
                  (f"{side}/out", f"{side}.conv_out"),
                  *prefixed(f"{side}/middle/in", f"{side}.mid_block.resnets.0", RESIDUAL),
                  *prefixed(f"{side}/middle/out", f"{side}.mid_block.resnets.1", RESIDUAL),
                  *prefixed(f"{side}/middle/frame_attention", f"{side}.mid_block.attentions.0", ATTENTION))
    return Names((*lines, ("quant", "quant_conv"), ("post_quant", "post_quant_conv")), ranks=RANKS, scale="gamma")


def original_names(config: CausalAutoencoder) -> Names:
    """Of the authors."""
    lines = _lines(_original_places(config), ORIGINAL)
    for side in ("encoder", "decoder"):
        lines += ((f"{side}/stem", f"{side}.conv1"), (f"{side}/norm", f"{side}.head.0"),
                  (f"{side}/out", f"{side}.head.2"), *prefixed(f"{side}/middle/in", f"{side}.middle.0", ORIGINAL),
                  *prefixed(f"{side}/middle/out", f"{side}.middle.2", ORIGINAL),
                  *prefixed(f"{side}/middle/frame_attention", f"{side}.middle.1", ATTENTION))
    return Names((*lines, ("quant", "conv1"), ("post_quant", "conv2")), ranks=RANKS, scale="gamma")


def _lines(places: Iterator[tuple[str, str]], within: Mapping[str, str]) -> Lines:
    return tuple(line for ours, theirs in places for line in prefixed(
        ours, theirs, RESAMPLE if "sample_" in ours.partition("/")[2] else within))


def _levels(config: CausalAutoencoder) -> Iterator[tuple[str, int, list[str]]]:
    """Side, number and layers, by our names, of each level."""
    count = len(config.widths)
    for side, way, blocks in (("encoder", "down", config.blocks), ("decoder", "up", config.blocks + 1)):
        for i in range(count):
            resample = [f"{way}sample_{i}"] if i < count - 1 else []
            yield side, i, [*(f"{way}_{i}_{j}" for j in range(blocks)), *resample]


def _places(config: CausalAutoencoder) -> Iterator[tuple[str, str]]:
    """Our layers of the levels and those of diffusers, whose encoder is one list unless it has shortcuts."""
    number = 0
    for side, i, layers in _levels(config):
        way = "down" if side == "encoder" else "up"
        for j, layer in enumerate(layers):
            place = f"resnets.{j}"
            if "sample_" in layer:
                place = f"{way}sampler" if config.shortcuts else f"{way}samplers.0"
            flat = side == "encoder" and not config.shortcuts
            yield f"{side}/{layer}", f"{side}.{way}_blocks." + (str(number) if flat else f"{i}.{place}")
            number += flat


def _original_places(config: CausalAutoencoder) -> Iterator[tuple[str, str]]:
    """Our layers of the levels and those of the authors, which are one list unless they have shortcuts."""
    number = {"encoder": 0, "decoder": 0}
    for side, i, layers in _levels(config):
        way = "downsamples" if side == "encoder" else "upsamples"
        for j, layer in enumerate(layers):
            yield f"{side}/{layer}", f"{side}.{way}." + (f"{i}.{way}.{j}" if config.shortcuts else str(number[side]))
            number[side] += 1


def read_causal(fields: Fields) -> CausalAutoencoder:
    """The config of an `AutoencoderKLWan`."""
    fields.require(attn_scales=[], dropout=0.0, clip_output=True)
    base, patch = fields.get("base_dim", 96), fields.data.get("patch_size") or 1
    multiples, channels = fields.get("dim_mult", (1, 2, 4, 4)), fields.get("in_channels", 3)
    if multiples[0] != 1 or type(patch) is not int or channels % patch**2:
        raise UserError(f"{fields.where}: dim_mult={multiples}, in_channels={channels}, patch_size={patch}; permitted: "
                        "a first multiple of 1, and channels of whole patches")
    fields.require(out_channels=channels)
    decoder = fields.data.get("decoder_base_dim") or base
    default = AUTOENCODER_WAN21
    return CausalAutoencoder(
        channels=channels // patch**2, widths=tuple(base * n for n in multiples),
        decoder_widths=None if decoder == base else tuple(decoder * n for n in multiples),
        blocks=fields.get("num_res_blocks", 2), latent_channels=fields.get("z_dim", 16), patch=patch,
        halve_frames=fields.get("temperal_downsample", default.halve_frames),
        shortcuts=fields.get("is_residual", False), mean=_numbers(fields, "latents_mean", default.mean),
        std=_numbers(fields, "latents_std", default.std))


def _numbers(fields: Fields, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(value) for value in fields.get(name, default))


def write_causal(config: CausalAutoencoder) -> dict[str, Any]:
    """The fields of an `AutoencoderKLWan`."""
    channels = config.channels * config.patch**2
    return {"base_dim": config.widths[0], "decoder_base_dim": config.decoder_widths and config.decoder_widths[0],
            "dim_mult": [width // config.widths[0] for width in config.widths], "num_res_blocks": config.blocks,
            "z_dim": config.latent_channels, "temperal_downsample": list(config.halve_frames), "attn_scales": [],
            "dropout": 0.0, "latents_mean": list(config.mean), "latents_std": list(config.std),
            "is_residual": config.shortcuts, "in_channels": channels, "out_channels": channels,
            "patch_size": None if config.patch == 1 else config.patch, "scale_factor_temporal": config.time_factor,
            "scale_factor_spatial": config.factor}


def accepts(config: CausalAutoencoder) -> bool:
    """Whether the class of diffusers has autoencoders of these sizes: both halves widen alike."""
    one, other = config.widths, config.decoder_widths or config.widths
    return all(a * other[0] == b * one[0] for a, b in zip(one, other, strict=True))


def is_original(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of an autoencoder by the authors' names."""
    return {"encoder.conv1.weight", "decoder.conv1.weight", "conv1.weight", "conv2.weight"} <= set(tensors)


def config_of(tensors: Mapping[str, Tensor], where: str) -> CausalAutoencoder:
    """The autoencoder whose tensors these are, by the authors' names. Raises `UserError` where layers are missing that
    say its sizes."""
    shortcuts = any(name.startswith("encoder.downsamples.0.downsamples.") for name in tensors)
    try:
        return _config_of(tensors, AUTOENCODER_WAN22 if shortcuts else AUTOENCODER_WAN21)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise UserError(f"{where} has the names of Wan's autoencoder but lacks layers ({error}); permitted: all "
                        "tensors of the file as its authors wrote it") from error


def _config_of(tensors: Mapping[str, Tensor], published: CausalAutoencoder) -> CausalAutoencoder:
    down = _found_levels(tensors, r"encoder\.downsamples\.")
    up = _found_levels(tensors, r"decoder\.upsamples\.")[::-1]
    widths, decoder_widths = (tuple(width for width, _, _ in levels) for levels in (down, up))
    channels = tensors["conv2.weight"].shape[0]
    same = channels == published.latent_channels
    return dataclasses.replace(
        published, channels=tensors["encoder.conv1.weight"].shape[1] // published.patch**2, widths=widths,
        decoder_widths=None if decoder_widths == widths else decoder_widths, blocks=down[0][1],
        halve_frames=tuple(halved for _, _, halved in down[:-1]), latent_channels=channels,
        mean=published.mean if same else (0.0,) * channels, std=published.std if same else (1.0,) * channels)


def _found_levels(tensors: Mapping[str, Tensor], prefix: str) -> list[tuple[int, int, bool]]:
    """Channels, blocks and whether frames are halved or doubled of each level, which a resampling layer ends."""
    layers: dict[tuple[int, ...], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := re.match(prefix + r"(\d+)\.(?:(?:down|up)samples\.(\d+)\.)?(.*)", name):
            place = tuple(int(number) for number in match.groups()[:2] if number is not None)
            layers.setdefault(place, {})[match[3]] = tensor
    levels = [[0, 0, False]]
    for place in sorted(layers):
        level = levels[-1]
        if "resample.1.weight" in layers[place]:
            level[2] = "time_conv.weight" in layers[place]
            levels.append([0, 0, False])
        else:
            levels[-1] = [layers[place]["residual.6.weight"].shape[0], level[1] + 1, False]
    return [tuple(level) for level in levels]
