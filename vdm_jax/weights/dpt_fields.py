"""DPT in the layout of transformers (`DPTForDepthEstimation`): fields and names."""

from __future__ import annotations

from typing import Any

from vdm_jax.errors import UserError
from vdm_jax.networks.dpt import DPT
from vdm_jax.weights.fields import Fields
from vdm_jax.weights.tensor_names import HEADS, Names, prefixed

FIXED = {"qkv_bias": True, "add_projection": False, "head_in_index": -1, "use_batch_norm_in_fusion_residual": False}
_LAYER, _NECK = r"dpt.encoder.layer.\1", "neck.reassemble_stage"

NAMES = Names(
    modules=(
        *((rf"layer_(\d+)/self_attention/{name}", rf"{_LAYER}.attention.attention.{name}") for name in HEADS),
        *prefixed(r"layer_(\d+)", _LAYER, {
            "self_attention/out": "attention.output.dense", "norm_attention": "layernorm_before",
            "norm_feed_forward": "layernorm_after", "feed_forward/expand": "intermediate.dense",
            "feed_forward/out": "output.dense"}),
        ("patches", "dpt.embeddings.patch_embeddings.projection"), ("norm", "dpt.layernorm"),
        (r"reassemble_(\d+)/readout", rf"{_NECK}.readout_projects.\1.0"),
        (r"reassemble_(\d+)/project", rf"{_NECK}.layers.\1.projection"),
        (r"reassemble_(\d+)/resize", rf"{_NECK}.layers.\1.resize"),
        (r"convert_(\d+)", r"neck.convs.\1"),
        (r"fuse_(\d+)/residual_(\d)/conv_(\d)", r"neck.fusion_stage.layers.\1.residual_layer\2.convolution\3"),
        (r"fuse_(\d+)/project", r"neck.fusion_stage.layers.\1.projection"),
        ("head_in", "head.head.0"), ("head_middle", "head.head.2"), ("head_out", "head.head.4")),
    tensors=(("summary", "dpt.embeddings.cls_token"), ("places", "dpt.embeddings.position_embeddings")))


def read_dpt(fields: Fields) -> DPT:
    """The config of a `DPTForDepthEstimation` with a plain vision transformer. Raises `UserError` for other backbones,
    and for layers that no released one of these has."""
    if fields.get("is_hybrid", False):
        raise UserError(f"{fields.where}: is_hybrid=True, a DPT with a convolutional backbone, is not supported; "
                        "permitted: False, as that of Intel/dpt-large")
    if fields.data.get("backbone_config") is not None or fields.data.get("backbone") is not None:
        raise UserError(f"{fields.where}: a backbone of another kind (backbone_config) is not supported; permitted: "
                        "the vision transformer of DPT itself, as that of Intel/dpt-large")
    fields.require(**FIXED)
    if fields.data.get("use_bias_in_fusion_residual") is False:
        raise UserError(f"{fields.where}: use_bias_in_fusion_residual=False is not supported; permitted: True, null")
    return DPT(
        size=fields.get("image_size", 384), patch=fields.get("patch_size", 16), channels=fields.get("num_channels", 3),
        width=fields.get("hidden_size", 768), layers=fields.get("num_hidden_layers", 12),
        heads=fields.get("num_attention_heads", 12), hidden=fields.get("intermediate_size", 3072),
        activation=fields.get("hidden_act", "gelu"), epsilon=fields.get("layer_norm_eps", 1e-12),
        taps=fields.get("backbone_out_indices", (2, 5, 8, 11)), readout=fields.get("readout_type", "project"),
        factors=tuple(map(float, fields.get("reassemble_factors", (4, 2, 1, 0.5)))),
        widths=fields.get("neck_hidden_sizes", (96, 192, 384, 768)), fusion=fields.get("fusion_hidden_size", 256))


def write_dpt(config: DPT) -> dict[str, Any]:
    """The fields of a `DPTForDepthEstimation`."""
    return {**FIXED, "model_type": "dpt", "is_hybrid": False, "image_size": config.size, "patch_size": config.patch,
            "num_channels": config.channels, "hidden_size": config.width, "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads, "intermediate_size": config.hidden, "hidden_act": config.activation,
            "layer_norm_eps": config.epsilon, "backbone_out_indices": list(config.taps),
            "readout_type": config.readout, "neck_hidden_sizes": list(config.widths),
            "reassemble_factors": [int(factor) if factor.is_integer() else factor for factor in config.factors],
            "fusion_hidden_size": config.fusion}
