"""The U-Nets of Stable Diffusion and Stable Video Diffusion in the layout of diffusers: fields and names.

A trap of these fields: `attention_head_dim` of `UNet2DConditionModel` is the number of heads.
"""

from __future__ import annotations

from typing import Any

from vdm_jax.errors import UserError
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.weights.fields import Fields
from vdm_jax.weights.tensor_names import Lines, Names, prefixed, residual_lines

EPSILON = 1e-5  # of the norms in `UNet2DConditionModel`
IMAGE_TYPES = ("CrossAttn{}Block2D", "{}Block2D")  # of levels with and without attention
VIDEO_EPSILONS = (1e-6, 1e-5, 1e-5, 1e-6)  # of `UNetSpatioTemporalConditionModel`


ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
# Ours, and where theirs are: residual blocks, transformers.
PLACES = ((r"(down|up)_(\d+)_(\d+)", r"\1_blocks.\2.resnets.\3", r"\1_blocks.\2.attentions.\3"),
          ("middle_in", "mid_block.resnets.0", ""), ("middle_out", "mid_block.resnets.1", ""),
          ("middle", "", "mid_block.attentions.0"))


def _within(first: str, second: str, feed_forward: str) -> dict[str, str]:
    """Of a transformer's block with two attentions, by our names of these and of the feed-forward."""
    return {**{f"{first}/{a}": f"attn1.{b}" for a, b in ATTENTION.items()},
            **{f"{second}/{a}": f"attn2.{b}" for a, b in ATTENTION.items()},
            f"{feed_forward}/expand": "ff.net.0.proj", f"{feed_forward}/out": "ff.net.2"}


def unet_names(temporal: bool) -> Names:
    """How the tensors of a `LatentUNet` are called, alone or with mixed temporal layers."""
    block = {**_within("self_attention", "cross_attention", "feed_forward_1"),
             "norm_attention": "norm1", "norm_context": "norm2", "norm_feed_forward": "norm3",
             **{f"temporal_attention/{a}": f"attn_temp.{b}" for a, b in ATTENTION.items()},
             "norm_temporal_attention": "norm_temp"}
    before = {"norm_in": "norm_in", "feed_forward_0/expand": "ff_in.net.0.proj", "feed_forward_0/out": "ff_in.net.2"}
    transformer = {
        "norm": "norm", "in": "proj_in", "out": "proj_out",
        "places_in": "time_pos_embed.linear_1", "places_out": "time_pos_embed.linear_2",
        **{f"space/{a}": f"transformer_blocks.0.{b}" for a, b in block.items()},
        **{f"time/{a}": f"temporal_transformer_blocks.0.{b}" for a, b in {**block, **before}.items()}}
    modules: Lines = (
        ("stem", "conv_in"), ("norm", "conv_norm_out"), ("out", "conv_out"),
        ("weight", "time_embedding.cond_proj"),
        *((f"{a}_{b}", f"{c}_embedding.linear_{d}") for a, c in (("level", "time"), ("scalars", "add"))
          for b, d in (("in", 1), ("out", 2))),
        (r"downsample_(\d+)", r"down_blocks.\1.downsamplers.0.conv"),
        (r"upsample_(\d+)/conv", r"up_blocks.\1.upsamplers.0.conv"))
    tensors: Lines = (("classes", "class_embedding.weight"),)
    for ours, residual, attentions in PLACES:
        if residual:
            modules += residual_lines(ours, residual, temporal)
            tensors += ((f"{ours}/mix/factor", f"{residual}.time_mixer.mix_factor"),)
        if attentions:
            modules += prefixed(f"{ours}_transformer", attentions, transformer)
            tensors += ((f"{ours}_transformer/mix/factor", f"{attentions}.time_mixer.mix_factor"),)
    return Names(modules=modules, tensors=tensors)


def motion_lines(ours: str, theirs: str) -> Lines:
    """Of a temporal transformer."""
    block = {**_within("self_attention_0", "self_attention_1", "feed_forward"),
             "norm_attention_0": "norm1", "norm_attention_1": "norm2", "norm_feed_forward": "norm3"}
    return prefixed(ours, theirs, {"norm": "norm", "in": "proj_in", "out": "proj_out",
                                   **{a: f"transformer_blocks.0.{b}" for a, b in block.items()}})


def read_levels(
    fields: Fields, attending: str, plain: str, both_ways: bool = True
) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Widths, and which levels have attention, the same on both ways where the model has a way up."""
    widths = fields.get("block_out_channels", (320, 640, 1280, 1280))
    kinds = {attending.format("Down"): True, plain.format("Down"): False}
    down = fields.get("down_block_types", tuple([attending.format("Down")] * 3 + [plain.format("Down")]))
    if len(down) != len(widths) or any(kind not in kinds for kind in down):
        raise UserError(f"{fields.where}: down_block_types={list(down)} for {len(widths)} widths is not supported; "
                        f"permitted: {', '.join(kinds)}, one per width")
    attention = tuple(kinds[kind] for kind in down)
    if both_ways:
        fields.require(up_block_types=[(attending if a else plain).format("Up") for a in reversed(attention)])
    return widths, attention


def read_each(fields: Fields, name: str, default: Any, levels: int) -> tuple:
    """A field with a value per level, or one for all."""
    value = fields.data.get(name)
    value = default if value is None else value
    if isinstance(value, list) and len(value) != levels:
        raise UserError(f"{fields.where}: {name}={value!r}; permitted: one for all levels or {levels}")
    return tuple(value) if isinstance(value, list) else (value,) * levels


def read_image_unet(fields: Fields, both_ways: bool = True) -> LatentUNet:
    """Our config of a `UNet2DConditionModel`, or of a model that has its way down only."""
    widths, attention = read_levels(fields, *IMAGE_TYPES, both_ways)
    fields.require(
        center_input_sample=False, flip_sin_to_cos=True, freq_shift=0, mid_block_type="UNetMidBlock2DCrossAttn",
        downsample_padding=1, mid_block_scale_factor=1, act_fn="silu", norm_eps=EPSILON, encoder_hid_dim=None,
        transformer_layers_per_block=1, dual_cross_attention=False, num_attention_heads=None, class_embed_type=None,
        addition_embed_type=None, resnet_time_scale_shift="default", time_embedding_type="positional",
        time_embedding_dim=None, time_embedding_act_fn=None, timestep_post_act=None,
        conv_in_kernel=3, conv_out_kernel=3, attention_type="default", class_embeddings_concat=False,
        cross_attention_norm=None, resnet_skip_time_act=False, resnet_out_scale_factor=1.0)
    if fields.data.get("only_cross_attention") is True or fields.data.get("mid_block_only_cross_attention"):
        raise UserError(f"{fields.where}: only_cross_attention in the middle is not supported; permitted: a list with "
                        "an entry per level")
    return LatentUNet(
        in_channels=fields.get("in_channels", 4), out_channels=fields.get("out_channels", 4), widths=widths,
        blocks=fields.get("layers_per_block", 2), attention=attention,
        heads=read_each(fields, "attention_head_dim", 8, len(widths)),
        only_cross_attention=read_each(fields, "only_cross_attention", False, len(widths)),
        token_channels=fields.get("cross_attention_dim", 1280),
        use_linear_projection=fields.get("use_linear_projection", False),
        weight_channels=fields.data.get("time_cond_proj_dim") or 0,
        classes=fields.data.get("num_class_embeds") or 0, groups=fields.get("norm_num_groups", 32))


def image_fields(config: LatentUNet) -> dict[str, Any]:
    """Fields of a `UNet2DConditionModel`. Raises `UserError` for what the class does not have."""
    if config.scalars or config.epsilons != (EPSILON,) * 4:
        raise UserError(f"LatentUNet with scalars={config.scalars}, epsilons={config.epsilons} is no "
                        f"UNet2DConditionModel; permitted: 0, {(EPSILON,) * 4}")
    return {
        **shared_fields(config, *IMAGE_TYPES), "attention_head_dim": list(config.heads),
        "only_cross_attention": list(config.only_cross_attention),
        "use_linear_projection": config.use_linear_projection,
        "time_cond_proj_dim": config.weight_channels or None,
        "num_class_embeds": config.classes or None, "norm_num_groups": config.groups, "norm_eps": EPSILON}


def shared_fields(config: LatentUNet, attending: str, plain: str) -> dict[str, Any]:
    """Fields that all classes of U-Nets have. Raises `UserError` for what none has."""
    own = {name: getattr(config, name)
           for name in ("norm_over", "scale_shift_norm", "mix_frames", "conditioning_channels", "image_prompt")}
    over = "residual" if config.temporal_attention else "frame"
    if own != {"norm_over": over, "scale_shift_norm": False, "mix_frames": 0, "conditioning_channels": 0,
               "image_prompt": False}:
        raise UserError(f"LatentUNet with {own} is in no class elsewhere; permitted: {over!r}, False, 0, 0, False")
    kinds = [attending if attention else plain for attention in config.attention]
    return {
        "in_channels": config.in_channels, "out_channels": config.out_channels,
        "block_out_channels": list(config.widths), "layers_per_block": config.blocks,
        "cross_attention_dim": config.token_channels, "down_block_types": [kind.format("Down") for kind in kinds],
        "up_block_types": [kind.format("Up") for kind in reversed(kinds)]}


def read_video_unet(fields: Fields) -> LatentUNet:
    """Our config of a `UNetSpatioTemporalConditionModel`."""
    widths, attention = read_levels(fields, "CrossAttn{}BlockSpatioTemporal", "{}BlockSpatioTemporal")
    fields.require(transformer_layers_per_block=1)
    channels = fields.get("addition_time_embed_dim", 256)
    scalars, rest = divmod(fields.get("projection_class_embeddings_input_dim", 768), channels)
    if rest:
        raise UserError(f"{fields.where}: projection_class_embeddings_input_dim is no multiple of "
                        f"addition_time_embed_dim={channels}")
    return LatentUNet(
        in_channels=fields.get("in_channels", 8), out_channels=fields.get("out_channels", 4), widths=widths,
        blocks=fields.get("layers_per_block", 2), attention=attention,
        heads=read_each(fields, "num_attention_heads", [5, 10, 20, 20], len(widths)),
        only_cross_attention=(False,) * len(widths), token_channels=fields.get("cross_attention_dim", 1024),
        use_linear_projection=True, scalars=scalars, scalar_channels=channels, temporal=True, epsilons=VIDEO_EPSILONS)


def write_video_unet(config: LatentUNet) -> dict[str, Any]:
    """Fields of a `UNetSpatioTemporalConditionModel`. Raises `UserError` for what the class does not have."""
    if config.classes or config.weight_channels or config.groups != 32 or not config.use_linear_projection or (
            any(config.only_cross_attention) or not config.scalars or config.epsilons != VIDEO_EPSILONS):
        raise UserError(f"{config} is no UNetSpatioTemporalConditionModel; permitted: scalars, no classes, groups=32, "
                        f"epsilons={VIDEO_EPSILONS}, no level with only_cross_attention, use_linear_projection=True")
    return {
        **shared_fields(config, "CrossAttn{}BlockSpatioTemporal", "{}BlockSpatioTemporal"),
        "num_attention_heads": list(config.heads), "addition_time_embed_dim": config.scalar_channels,
        "projection_class_embeddings_input_dim": config.scalars * config.scalar_channels}
