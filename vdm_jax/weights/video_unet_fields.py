"""U-Nets with temporal layers after those within, motion modules, ControlNets, SparseCtrl and T2I-Adapters in the
layout of diffusers.

A trap of these fields: `attention_head_dim` of `UNet3DConditionModel` is the channels of a head, while it is the number
of heads in `ControlNetModel`, as in `UNet2DConditionModel`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vdm_jax.attention import SparseCausal
from vdm_jax.errors import UserError
from vdm_jax.networks.blocks.sinusoids import frame_code
from vdm_jax.networks.control_net import ControlNet
from vdm_jax.networks.latent_frames import Motion, TemporalConv
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.networks.motion_adapter import MotionAdapter
from vdm_jax.networks.sparse_control import SparseControlNet
from vdm_jax.networks.t2i_adapter import T2IAdapter
from vdm_jax.weights.fields import Fields
from vdm_jax.weights.tensor_files import Tensor
from vdm_jax.weights.tensor_names import Lines, Names, prefixed
from vdm_jax.weights.unet_fields import (
    EPSILON,
    PLACES,
    image_fields,
    motion_lines,
    read_each,
    read_image_unet,
    read_levels,
    shared_fields,
    unet_names,
)

TUNED_MIDDLE = ("UNetMidBlock3DCrossAttn", "UNetMidBlock2DCrossAttn")  # in files of Tune-A-Video's class
STACK_TYPES, MOTION_TYPES = ("CrossAttn{}Block3D", "{}Block3D"), ("CrossAttn{}BlockMotion", "{}BlockMotion")
# Names of motion modules as their authors store them; each pattern is replaced once, in this order.
ORIGINAL: Lines = (
    (r"module\.", ""), (r"(.*\.motion_modules\.\d+)\.temporal_transformer\.", r"\1."),
    (r"(.*)\.attention_blocks\.0\.", r"\1.attn1."), (r"(.*)\.attention_blocks\.1\.", r"\1.attn2."),
    (r"(.*)\.norms\.0\.", r"\1.norm1."), (r"(.*)\.norms\.1\.", r"\1.norm2."), (r"(.*)\.ff_norm\.", r"\1.norm3."))
CODES = r".*\.(pos_embed|pos_encoder)\.pe"  # of the frames' numbers, stored next to the weights


def stack_unet_names() -> Names:
    """Of a `UNet3DConditionModel`. A layer that has no parameters moves the numbers of the convolutions after it."""
    image, modules = unet_names(temporal=False), motion_lines("stem_motion", "transformer_in")
    for ours, residual, attentions in PLACES:
        if residual:
            convolutions = residual.replace("resnets", "temp_convs")
            modules += prefixed(f"{ours}_frames", convolutions, {
                f"{layer}_{i}": f"conv{i + 1}.{number}" for i in range(4)
                for layer, number in (("norm", 0), ("conv", 3 if i else 2))})
        if attentions:
            modules += motion_lines(f"{ours}_motion", attentions.replace("attentions", "temp_attentions"))
    return dataclasses.replace(image, modules=(*modules, *image.modules))


def motion_names() -> Names:
    """Of a `MotionAdapter`, and of files in its authors' naming."""
    modules: Lines = ()
    for ours, _, attentions in PLACES:
        if attentions:
            modules += motion_lines(f"{ours}_motion", attentions.replace("attentions", "motion_modules"))
    return Names(modules=modules, aliases=ORIGINAL, dropped=CODES)


def motion_unet_names() -> Names:
    """Of a `UNetMotionModel`."""
    image, motion = unet_names(temporal=False), motion_names()
    return dataclasses.replace(motion, modules=(*motion.modules, *image.modules), tensors=image.tensors)


def control_names() -> Names:
    """Of a `ControlNetModel`."""
    hint = {"in": "conv_in", "out": "conv_out", r"conv_(\d+)": r"blocks.\1"}
    image = unet_names(temporal=False)
    modules = (*prefixed("hint", "controlnet_cond_embedding", hint), ("control_middle", "controlnet_mid_block"),
               (r"control_(\d+)", r"controlnet_down_blocks.\1"))
    return dataclasses.replace(image, modules=(*modules, *image.modules))


# Of a `T2IAdapter`.
ADAPTER = Names(modules=(
    ("adapter_in", "adapter.conv_in"), (r"adapter_(\d+)_in", r"adapter.body.\1.in_conv"),
    (r"adapter_(\d+)_out", r"adapter.body.\1.out_conv"),
    (r"adapter_(\d+)_(\d+)_first", r"adapter.body.\1.resnets.\2.block1"),
    (r"adapter_(\d+)_(\d+)_second", r"adapter.body.\1.resnets.\2.block2")))


def read_t2i_adapter(fields: Fields) -> T2IAdapter:
    """Our config of a `T2IAdapter`. Raises `UserError` for that of Stable Diffusion XL."""
    kind = fields.get("adapter_type", "full_adapter")
    if kind not in ("full_adapter", "light_adapter"):
        raise UserError(f"{fields.where}: adapter_type={kind!r} is not supported; permitted: full_adapter, "
                        "light_adapter")
    widths, light = tuple(fields.get("channels", (320, 640, 1280, 1280))), kind == "light_adapter"
    return T2IAdapter(
        hint_channels=fields.get("in_channels", 3), widths=(*widths, widths[-1]) if light else widths,
        blocks=fields.get("num_res_blocks", 2), factor=fields.get("downscale_factor", 8), light=light)


def write_t2i_adapter(config: T2IAdapter) -> dict[str, Any]:
    """Fields of a `T2IAdapter`."""
    return {"in_channels": config.hint_channels, "num_res_blocks": config.blocks, "downscale_factor": config.factor,
            "channels": list(config.widths[:-1] if config.light else config.widths),
            "adapter_type": "light_adapter" if config.light else "full_adapter"}


def frame_codes(motion: Motion, inventory: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Name -> code of the frames' numbers, one stored with each motion module among these tensors."""
    modules = r"(.*\.motion_modules\.\d+\.transformer_blocks\.0)\.norm1\.weight"
    return {f"{match[1]}.pos_embed.pe": frame_code(motion.frames, shape[0])[None]
            for name, shape in inventory.items() if (match := re.fullmatch(modules, name))}


def check_frame_codes(motion: Motion, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises `UserError` where a file has another code of the frames' numbers than the one that is computed here."""
    for name, tensor in tensors.items():
        if re.fullmatch(CODES, name):
            wanted = frame_code(motion.frames, tensor.shape[-1])[None]
            if tensor.shape != wanted.shape or np.abs(tensor.read().astype(np.float32) - wanted).max() > 0.01:
                raise UserError(f"{where}: tensor {name!r} of shape {list(tensor.shape)} is not the code of "
                                f"{motion.frames} frames; permitted: sines and cosines of the frame's number")


def _same(fields: Fields, name: str, default: int) -> int:
    """A field with one value for all levels, or the same for each."""
    value = fields.data.get(name)
    values = value if isinstance(value, list) and value else [default if value is None else value]
    if any(v != values[0] or not isinstance(v, int) for v in values):
        raise UserError(f"{fields.where}: {name}={value!r} is not supported; permitted: one number for all levels")
    return values[0]


def read_stack_unet(fields: Fields) -> LatentUNet:
    """Our config of a `UNet3DConditionModel`, that of diffusers (ModelScope) or that of Tune-A-Video's authors, whose
    block in the middle has a name."""
    if fields.data.get("mid_block_type") in TUNED_MIDDLE:
        return _read_tuned_unet(fields)
    widths, attention = read_levels(fields, *STACK_TYPES)
    fields.require(downsample_padding=1, mid_block_scale_factor=1, act_fn="silu", norm_eps=EPSILON,
                   num_attention_heads=None, time_cond_proj_dim=None)
    head_dim = fields.get("attention_head_dim", 64)
    if any(width % head_dim for width in widths):
        raise UserError(f"{fields.where}: attention_head_dim={head_dim} for widths={widths}; permitted: a divisor")
    return LatentUNet(
        in_channels=fields.get("in_channels", 4), out_channels=fields.get("out_channels", 4), widths=widths,
        blocks=fields.get("layers_per_block", 2), attention=attention,
        heads=tuple(width // head_dim for width in widths), only_cross_attention=(False,) * len(widths),
        token_channels=fields.get("cross_attention_dim", 1024), use_linear_projection=True,
        temporal_conv=TemporalConv(), groups=fields.get("norm_num_groups", 32))


def write_stack_unet(config: LatentUNet) -> dict[str, Any]:
    """Fields of a `UNet3DConditionModel`, one of the two. Raises `UserError` for what the class does not have."""
    if config.temporal_attention:
        return _write_tuned_unet(config)
    head_dims = {width // heads for width, heads in zip(config.widths, config.heads, strict=True)}
    if (config.classes or config.scalars or config.weight_channels or not config.use_linear_projection
            or any(config.only_cross_attention) or len(head_dims) > 1
            or config.epsilons != (EPSILON,) * 4 or config.temporal_conv != TemporalConv()):
        raise UserError(f"{config} is no UNet3DConditionModel; permitted: no classes, no scalars, heads of one size, "
                        f"epsilons={(EPSILON,) * 4}, {TemporalConv()}, no level with only_cross_attention, "
                        "use_linear_projection=True")
    return {**shared_fields(config, *STACK_TYPES), "attention_head_dim": head_dims.pop(),
            "norm_num_groups": config.groups, "norm_eps": EPSILON}


def _read_tuned_unet(fields: Fields) -> LatentUNet:
    """Our config of Tune-A-Video's class: an image U-Net's fields with other names of blocks."""
    data = {name: value for name, value in fields.data.items() if name != "mid_block_type"}
    for way in ("down_block_types", "up_block_types"):
        if way in data:
            data[way] = [str(kind).replace("Block3D", "Block2D") for kind in data[way]]
    unet = read_image_unet(Fields(data, fields.where))
    return dataclasses.replace(unet, temporal_attention=True, norm_over="residual",
                               spatial_pattern=SparseCausal(first=True, previous=True, own=False))


def _write_tuned_unet(config: LatentUNet) -> dict[str, Any]:
    """Fields of Tune-A-Video's class. Raises `UserError` for what it does not have."""
    fields = image_fields(config)
    for way in ("down_block_types", "up_block_types"):
        fields[way] = [kind.replace("Block2D", "Block3D") for kind in fields[way]]
    del fields["time_cond_proj_dim"]
    return {**fields, "mid_block_type": TUNED_MIDDLE[0]}


def read_motion_unet(fields: Fields) -> LatentUNet:
    """Our config of a `UNetMotionModel`."""
    widths, attention = read_levels(fields, *MOTION_TYPES)
    fields.require(
        downsample_padding=1, mid_block_scale_factor=1, act_fn="silu", norm_eps=EPSILON, mid_block_layers=1,
        reverse_transformer_layers_per_block=None, reverse_temporal_transformer_layers_per_block=None,
        reverse_motion_num_attention_heads=None, encoder_hid_dim=None, encoder_hid_dim_type=None,
        addition_embed_type=None, time_cond_proj_dim=None)
    _one_layer(fields, "transformer_layers_per_block", "temporal_transformer_layers_per_block",
               "transformer_layers_per_mid_block", "temporal_transformer_layers_per_mid_block")
    groups = fields.get("norm_num_groups", 32)
    return LatentUNet(
        in_channels=fields.get("in_channels", 4), out_channels=fields.get("out_channels", 4), widths=widths,
        blocks=_same(fields, "layers_per_block", 2), attention=attention,
        heads=read_each(fields, "num_attention_heads", 8, len(widths)), only_cross_attention=(False,) * len(widths),
        token_channels=_same(fields, "cross_attention_dim", 1280),
        use_linear_projection=fields.get("use_linear_projection", False), groups=groups,
        motion=Motion(heads=_same(fields, "motion_num_attention_heads", 8), groups=groups,
                      frames=fields.get("motion_max_seq_length", 32), middle=fields.get("use_motion_mid_block", True)))


def write_motion_unet(config: LatentUNet) -> dict[str, Any]:
    """Fields of a `UNetMotionModel`. Raises `UserError` for what the class does not have."""
    motion = config.motion
    if config.classes or config.scalars or config.weight_channels or any(config.only_cross_attention) or (
            motion.groups != config.groups or motion.attentions != 2 or config.epsilons != (EPSILON,) * 4):
        raise UserError(f"{config} is no UNetMotionModel; permitted: no classes, no scalars, no level with "
                        f"only_cross_attention, two attentions and the same groups in its motion modules, "
                        f"epsilons={(EPSILON,) * 4}")
    return {**shared_fields(config, *MOTION_TYPES), "num_attention_heads": list(config.heads),
            "use_linear_projection": config.use_linear_projection, "norm_num_groups": config.groups,
            "norm_eps": EPSILON, "motion_num_attention_heads": motion.heads, "motion_max_seq_length": motion.frames,
            "use_motion_mid_block": motion.middle}


def read_adapter(fields: Fields) -> MotionAdapter:
    """Our config of a `MotionAdapter`."""
    fields.require(motion_mid_block_layers_per_block=1, conv_in_channels=None)
    _one_layer(fields, "motion_transformer_layers_per_block", "motion_transformer_layers_per_mid_block")
    motion = Motion(
        heads=_same(fields, "motion_num_attention_heads", 8), groups=fields.get("motion_norm_num_groups", 32),
        frames=fields.get("motion_max_seq_length", 32), middle=fields.get("use_motion_mid_block", True))
    return MotionAdapter(widths=fields.get("block_out_channels", (320, 640, 1280, 1280)),
                         blocks=_same(fields, "motion_layers_per_block", 2), motion=motion)


def write_adapter(config: MotionAdapter) -> dict[str, Any]:
    """Fields of a `MotionAdapter`. Raises `UserError` for modules of another number of attentions than two."""
    if config.motion.attentions != 2:
        raise UserError(f"{config.motion} is of no MotionAdapter; permitted: attentions=2", "Motion.attentions")
    return {"block_out_channels": list(config.widths), "motion_layers_per_block": config.blocks,
            "motion_num_attention_heads": config.motion.heads, "motion_norm_num_groups": config.motion.groups,
            "motion_max_seq_length": config.motion.frames, "use_motion_mid_block": config.motion.middle}


def read_control(fields: Fields) -> ControlNet:
    """Our config of a `ControlNetModel`."""
    fields.require(controlnet_conditioning_channel_order="rgb", global_pool_conditions=False)
    return ControlNet(unet=read_image_unet(fields, both_ways=False),
                      hint_channels=fields.get("conditioning_channels", 3),
                      hint_widths=fields.get("conditioning_embedding_out_channels", (16, 32, 96, 256)))


def write_control(config: ControlNet) -> dict[str, Any]:
    """Fields of a `ControlNetModel`. Raises `UserError` for what the class does not have."""
    image = image_fields(config.unet)
    others = ("out_channels", "up_block_types", "time_cond_proj_dim")
    return {**{name: value for name, value in image.items() if name not in others},
            "conditioning_channels": config.hint_channels,
            "conditioning_embedding_out_channels": list(config.hint_widths)}


def sparse_names(config: SparseControlNet) -> Names:
    """Of a `SparseControlNetModel`."""
    control, motion = control_names(), motion_names()
    single = (("hint", "controlnet_cond_embedding"),) if config.of_latents else ()
    return dataclasses.replace(control, modules=(*single, *motion.modules, *control.modules), dropped=CODES)


def read_sparse(fields: Fields) -> SparseControlNet:
    """Our config of a `SparseControlNetModel`."""
    fields.require(controlnet_conditioning_channel_order="rgb", global_pool_conditions=False, upcast_attention=False,
                   concat_conditioning_mask=True, transformer_layers_per_mid_block=None)
    _one_layer(fields, "transformer_layers_per_block", "temporal_transformer_layers_per_block")
    data = {name: value for name, value in fields.data.items() if name != "num_attention_heads"}
    data = {"cross_attention_dim": 768} | data | {"attention_head_dim": fields.data.get("num_attention_heads")
                                                  or fields.data.get("attention_head_dim", 8)}
    if "down_block_types" in data:
        data["down_block_types"] = [str(kind).replace("BlockMotion", "Block2D") for kind in data["down_block_types"]]
    unet = read_image_unet(Fields(data, fields.where), both_ways=False)
    motion = Motion(heads=_same(fields, "motion_num_attention_heads", 8), groups=unet.groups, attentions=1,
                    frames=fields.get("motion_max_seq_length", 32), middle=False)
    widths = () if fields.get("use_simplified_condition_embedding", True) else fields.get(
        "conditioning_embedding_out_channels", (16, 32, 96, 256))
    return SparseControlNet(unet=dataclasses.replace(unet, motion=motion), hint_widths=widths,
                            channels=fields.get("conditioning_channels", 4))


def write_sparse(config: SparseControlNet) -> dict[str, Any]:
    """Fields of a `SparseControlNetModel`. Raises `UserError` for what the class does not have."""
    unet, motion = config.unet, config.motion
    if motion.attentions != 1 or motion.groups != unet.groups or unet.classes:
        raise UserError(f"{config} is no SparseControlNetModel; permitted: motion modules of one attention and of the "
                        "norm groups of the network, no classes", "SparseControlNet.unet")
    image = image_fields(unet)
    others = ("out_channels", "up_block_types", "time_cond_proj_dim", "num_class_embeds")
    widths = {} if config.of_latents else {"conditioning_embedding_out_channels": list(config.hint_widths)}
    return {**{name: value for name, value in image.items() if name not in others}, **widths,
            "down_block_types": [kind.replace("Block2D", "BlockMotion") for kind in image["down_block_types"]],
            "conditioning_channels": config.channels, "use_simplified_condition_embedding": config.of_latents,
            "concat_conditioning_mask": True, "motion_max_seq_length": motion.frames,
            "motion_num_attention_heads": motion.heads}


def _one_layer(fields: Fields, *names: str) -> None:
    """Refuses transformers of several layers."""
    for name in names:
        if _same(fields, name, 1) != 1:
            raise UserError(f"{fields.where}: {name}={fields.data[name]!r} is not supported; permitted: 1")
