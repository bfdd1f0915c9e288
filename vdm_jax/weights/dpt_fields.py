"""DPT in the layout of transformers (`DPTForDepthEstimation`): fields and names."""

from __future__ import annotations

from typing import Any

from vdm_jax.errors import UserError
from vdm_jax.networks.bit import STRIDE, BiT
from vdm_jax.networks.dpt import DPT
from vdm_jax.weights.fields import Fields
from vdm_jax.weights.tensor_names import HEADS, Names, prefixed

FIXED = {"qkv_bias": True, "add_projection": False, "head_in_index": -1, "use_batch_norm_in_fusion_residual": False}
MAPS = 2  # of a backbone, which are neither reassembled nor made of tokens
# Of a backbone: what its class takes where `config.json` says nothing, and what is supported.
BACKBONE = {"embedding_size": 64, "hidden_sizes": (256, 512, 1024, 2048), "depths": (3, 4, 6, 3), "num_groups": 32}
BACKBONE_FIXED = {"model_type": "bit", "layer_type": "bottleneck", "embedding_dynamic_padding": True,
                  "hidden_act": "relu", "output_stride": 32, "width_factor": 1,
                  "out_features": ["stage1", "stage2", "stage3"]}
PADDINGS = ("same", "SAME")
# What DPT takes where it has no such field: a part of ResNet-50.
HYBRID = {**BACKBONE_FIXED, "global_padding": "SAME", "depths": [3, 4, 9]}
_LAYER, _NECK, _BACKBONE = r"dpt.encoder.layer.\1", "neck.reassemble_stage", "dpt.embeddings.backbone.bit"
_BLOCK = rf"{_BACKBONE}.encoder.stages.\1.layers.\2"

NAMES = Names(
    modules=(
        *((rf"layer_(\d+)/self_attention/{name}", rf"{_LAYER}.attention.attention.{name}") for name in HEADS),
        *prefixed(r"layer_(\d+)", _LAYER, {
            "self_attention/out": "attention.output.dense", "norm_attention": "layernorm_before",
            "norm_feed_forward": "layernorm_after", "feed_forward/expand": "intermediate.dense",
            "feed_forward/out": "output.dense"}),
        ("patches", "dpt.embeddings.patch_embeddings.projection"), ("project", "dpt.embeddings.projection"),
        ("backbone/stem", f"{_BACKBONE}.embedder.convolution"), ("backbone/stem/norm", f"{_BACKBONE}.embedder.norm"),
        (r"backbone/stage_(\d+)_(\d+)/conv_(\d)", rf"{_BLOCK}.conv\3"),
        (r"backbone/stage_(\d+)_(\d+)/conv_(\d)/norm", rf"{_BLOCK}.norm\3"),
        (r"backbone/stage_(\d+)_(\d+)/shortcut", rf"{_BLOCK}.downsample.conv"),
        (r"backbone/stage_(\d+)_(\d+)/shortcut/norm", rf"{_BLOCK}.downsample.norm"),
        ("norm", "dpt.layernorm"),
        (r"reassemble_(\d+)/readout", rf"{_NECK}.readout_projects.\1.0"),
        (r"reassemble_(\d+)/project", rf"{_NECK}.layers.\1.projection"),
        (r"reassemble_(\d+)/resize", rf"{_NECK}.layers.\1.resize"),
        (r"convert_(\d+)", r"neck.convs.\1"),
        (r"fuse_(\d+)/residual_(\d)/conv_(\d)", r"neck.fusion_stage.layers.\1.residual_layer\2.convolution\3"),
        (r"fuse_(\d+)/project", r"neck.fusion_stage.layers.\1.projection"),
        ("head_in", "head.head.0"), ("head_middle", "head.head.2"), ("head_out", "head.head.4")),
    tensors=(("summary", "dpt.embeddings.cls_token"), ("places", "dpt.embeddings.position_embeddings")))


def read_dpt(fields: Fields) -> DPT:
    """The config of a `DPTForDepthEstimation`, plain or hybrid. Raises `UserError` for other backbones, and for layers
    that none of the released ones of these has."""
    fields.require(**FIXED)
    if fields.data.get("use_bias_in_fusion_residual") is False:
        raise UserError(f"{fields.where}: use_bias_in_fusion_residual=False is not supported; permitted: True, null")
    backbone = _read_backbone(fields)
    maps = 0 if backbone is None else MAPS
    widths = fields.get("neck_hidden_sizes", (96, 192, 384, 768))
    if backbone is not None and widths[:maps] != backbone.widths[:maps]:
        raise UserError(f"{fields.where}: neck_hidden_sizes={widths} with hidden_sizes={backbone.widths} of the "
                        f"backbone; permitted: the same first {maps}")
    return DPT(
        size=fields.get("image_size", 384), patch=fields.get("patch_size", 16), channels=fields.get("num_channels", 3),
        width=fields.get("hidden_size", 768), layers=fields.get("num_hidden_layers", 12),
        heads=fields.get("num_attention_heads", 12), hidden=fields.get("intermediate_size", 3072),
        activation=fields.get("hidden_act", "gelu"), epsilon=fields.get("layer_norm_eps", 1e-12),
        taps=fields.get("backbone_out_indices", (2, 5, 8, 11))[maps:], readout=fields.get("readout_type", "project"),
        factors=tuple(map(float, fields.get("reassemble_factors", (4, 2, 1, 0.5))))[maps:], widths=widths[maps:],
        fusion=fields.get("fusion_hidden_size", 256), backbone=backbone)


def _read_backbone(fields: Fields) -> BiT | None:
    """The backbone of a hybrid network; None for a plain one."""
    given = fields.data.get("backbone_config")
    if not fields.get("is_hybrid", False):
        if given is not None or fields.data.get("backbone") is not None:
            raise UserError(f"{fields.where}: a backbone of another kind (backbone_config) is not supported; "
                            "permitted: the vision transformer of DPT itself (Intel/dpt-large), or is_hybrid=True with "
                            "a ResNet (Intel/dpt-hybrid-midas)")
        return None
    fields.require(neck_ignore_stages=[0, 1], readout_type="project")
    found = Fields(HYBRID if given is None else given, f"{fields.where}: backbone_config")
    padding = found.data.get("global_padding")
    for name in ("layer_type", "embedding_dynamic_padding", "out_features"):
        found.get(name, None)  # where one is missing the class takes what is not supported
    found.require(**BACKBONE_FIXED)
    if padding not in PADDINGS:
        raise UserError(f"{found.where}: global_padding={padding!r} is not supported; permitted: {PADDINGS}")
    stem, widths, blocks, groups = (found.get(name, default) for name, default in BACKBONE.items())
    return BiT(stem=stem, widths=widths[: len(blocks)], blocks=blocks, groups=groups)


def write_dpt(config: DPT) -> dict[str, Any]:
    """The fields of a `DPTForDepthEstimation`."""
    before = [] if config.backbone is None else list(range(MAPS))
    return {**FIXED, "model_type": "dpt", "image_size": config.size, "patch_size": config.patch,
            "num_channels": config.channels, "hidden_size": config.width, "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads, "intermediate_size": config.hidden, "hidden_act": config.activation,
            "layer_norm_eps": config.epsilon, "backbone_out_indices": [*before, *config.taps],
            "readout_type": config.readout, "fusion_hidden_size": config.fusion,
            "reassemble_factors": [*(1 for _ in before),
                                   *(int(factor) if factor.is_integer() else factor for factor in config.factors)],
            **_write_backbone(config)}


def _write_backbone(config: DPT) -> dict[str, Any]:
    """The fields of the backbone, and what depends on it."""
    backbone = config.backbone
    if backbone is None:
        return {"is_hybrid": False, "neck_hidden_sizes": list(config.widths)}
    side = config.size // STRIDE
    own = {**BACKBONE_FIXED, "global_padding": PADDINGS[1], "embedding_size": backbone.stem,
           "hidden_sizes": list(backbone.widths), "depths": list(backbone.blocks), "num_groups": backbone.groups}
    return {"is_hybrid": True, "backbone_config": own, "neck_ignore_stages": [0, 1],
            "neck_hidden_sizes": [*backbone.widths[:MAPS], *config.widths],
            "backbone_featmap_shape": [1, backbone.widths[-1], side, side]}
