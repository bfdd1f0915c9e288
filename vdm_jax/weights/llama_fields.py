"""Llama in the layout of transformers: fields and names."""

from __future__ import annotations

from typing import Any

from vdm_jax.networks.encoders.llama import LlamaText
from vdm_jax.weights.fields import Fields
from vdm_jax.weights.tensor_names import HEADS, Names, prefixed

FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "rope_scaling": None}
BASE = 10_000.0  # where files say none

LLAMA = Names(
    modules=(*((rf"layer_(\d+)_self_attention/{a}", rf"layers.\1.self_attn.{b}_proj")
               for a, b in {**HEADS, "out": "o"}.items()),
             *prefixed(r"layer_(\d+)_feed_forward", r"layers.\1.mlp", {"gate": "gate_proj", "expand": "up_proj",
                                                                       "out": "down_proj"}),
             (r"layer_(\d+)_norm_attention", r"layers.\1.input_layernorm"),
             (r"layer_(\d+)_norm_feed_forward", r"layers.\1.post_attention_layernorm"), ("norm", "norm")),
    tensors=(("words", "embed_tokens.weight"),), aliases=((r"model\.", ""),),
    dropped=r"lm_head\..*|(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def read_llama(fields: Fields) -> LlamaText:
    """The config of a `LlamaModel`, whose hidden states are those before the last two layers. Raises `UserError` for
    scaled positions."""
    fields.require(**FIXED)
    rope = fields.get("rope_parameters", {})
    Fields(rope, f"{fields.where}: rope_parameters").require(rope_type="default")
    heads, width, layers = (fields.get(name, default) for name, default in (
        ("num_attention_heads", 32), ("hidden_size", 4096), ("num_hidden_layers", 32)))
    return LlamaText(
        vocabulary=fields.get("vocab_size", 32000), width=width, layers=layers, heads=heads,
        key_heads=fields.get("num_key_value_heads", heads), head_dim=fields.get("head_dim", width // heads),
        hidden=fields.get("intermediate_size", 11008), epsilon=fields.get("rms_norm_eps", 1e-6),
        base=float(rope.get("rope_theta", fields.get("rope_theta", BASE))))


def write_llama(config: LlamaText) -> dict[str, Any]:
    """The fields of a `LlamaModel`."""
    return {**FIXED, "model_type": "llama", "vocab_size": config.vocabulary, "hidden_size": config.width,
            "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
            "num_key_value_heads": config.key_heads, "head_dim": config.head_dim, "intermediate_size": config.hidden,
            "rms_norm_eps": config.epsilon, "rope_theta": config.base}


def accepts(config: LlamaText) -> bool:
    """Whether a file that says nothing of it gives the same hidden state."""
    return config.skipped == LlamaText().skipped
