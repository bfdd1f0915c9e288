"""The transformers of Wan in the layout of diffusers: fields and names.

Layers of all blocks stand in one parameter of ours and in tensors of their own there (`tensor_names.layers`). A trap of
these names: `norm2` is the norm before the attention to text, and the authors' own files call it `norm3`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.image_tokens import IMAGE_TOKENS
from vdm_jax.conditions.inputs import Input
from vdm_jax.conditions.text import EmbeddedText
from vdm_jax.errors import UserError
from vdm_jax.networks.transformer.config import VideoTransformer, wan
from vdm_jax.weights.fields import Fields
from vdm_jax.weights.tensor_files import Tensor
from vdm_jax.weights.tensor_names import Lines, Names, prefixed

ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0", "query_norm": "norm_q",
             "key_norm": "norm_k"}
PERCEPTRON = {"expand": "ffn.net.0.proj", "out": "ffn.net.2"}
HEAD = 128  # channels of a head in all sizes of Wan
PLACES = 1024  # length of the table of positions there, beyond which they have none
# Names of the authors' files, in the order in which they are replaced: their third norm is before the text
AUTHORS: Lines = (
    (r"blocks\.(\d+)\.self_attn\.([qkv])\.", r"blocks.\1.attn1.to_\2."),
    (r"blocks\.(\d+)\.cross_attn\.([qkv])\.", r"blocks.\1.attn2.to_\2."),
    (r"blocks\.(\d+)\.self_attn\.o\.", r"blocks.\1.attn1.to_out.0."),
    (r"blocks\.(\d+)\.cross_attn\.o\.", r"blocks.\1.attn2.to_out.0."),
    (r"blocks\.(\d+)\.self_attn\.norm_", r"blocks.\1.attn1.norm_"),
    (r"blocks\.(\d+)\.cross_attn\.norm_([qk])\.", r"blocks.\1.attn2.norm_\2."),
    (r"blocks\.(\d+)\.norm3\.", r"blocks.\1.norm2."),
    (r"blocks\.(\d+)\.ffn\.0\.", r"blocks.\1.ffn.net.0.proj."), (r"blocks\.(\d+)\.ffn\.2\.", r"blocks.\1.ffn.net.2."),
    (r"blocks\.(\d+)\.modulation$", r"blocks.\1.scale_shift_table"), (r"head\.modulation$", "scale_shift_table"),
    (r"head\.head\.", "proj_out."), (r"time_projection\.1\.", "condition_embedder.time_proj."),
    (r"time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
    (r"time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
    (r"text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
    (r"text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
    (r"blocks\.(\d+)\.cross_attn\.([kv])_img\.", r"blocks.\1.attn2.add_\2_proj."),
    (r"blocks\.(\d+)\.cross_attn\.norm_k_img\.", r"blocks.\1.attn2.norm_added_k."),
    (r"img_emb\.proj\.0\.", "condition_embedder.image_embedder.norm1."),
    (r"img_emb\.proj\.1\.", "condition_embedder.image_embedder.ff.net.0.proj."),
    (r"img_emb\.proj\.3\.", "condition_embedder.image_embedder.ff.net.2."),
    (r"img_emb\.proj\.4\.", "condition_embedder.image_embedder.norm2."),
    (r"img_emb\.emb_pos$", "condition_embedder.image_embedder.pos_embed"))
IMAGE = {"image_key": "add_k_proj", "image_value": "add_v_proj", "image_key_norm": "norm_added_k"}
IMAGE_EMBEDDER = {"norm_in": "norm1", "image_in": "ff.net.0.proj", "image_out": "ff.net.2", "norm_out": "norm2"}


def wan_names() -> Names:
    """How the tensors of a transformer of Wan are called."""
    block, embedder = r"blocks.\1", "condition_embedder"
    attention = {**{f"self_attention/{a}": f"attn1.{b}" for a, b in ATTENTION.items()},
                 **{f"cross_attention/{a}": f"attn2.{b}" for a, b in (ATTENTION | IMAGE).items()},
                 **{f"feed_forward/{a}": b for a, b in PERCEPTRON.items()}, "cross_attention/norm": "norm2"}
    return Names(
        modules=(*prefixed(r"block_(\d+)", block, attention), ("patches", "patch_embedding"), ("out", "proj_out"),
                 *((f"embedding/{a}_{b}", f"{embedder}.{c}_embedder.linear_{d}")
                   for a, c in (("level", "time"), ("text", "text")) for b, d in (("in", 1), ("out", 2))),
                 *prefixed("image", f"{embedder}.image_embedder", IMAGE_EMBEDDER),
                 ("modulation", f"{embedder}.time_proj")),
        tensors=((r"block_(\d+)/modulated/table", r"blocks.\1.scale_shift_table"),
                 ("out_modulated/table", "scale_shift_table"),
                 ("image/places", f"{embedder}.image_embedder.pos_embed")),
        aliases=AUTHORS, stacked="blocks", volumes="patches")


def read_wan(fields: Fields) -> VideoTransformer:
    """The config of a folder; conditioning frames enter as channels where there are more of them than leave."""
    patch, heads = fields.get("patch_size", (1, 2, 2)), fields.get("num_attention_heads", 40)
    head_dim, out = fields.get("attention_head_dim", 128), fields.get("out_channels", 16)
    picture = fields.data.get("image_dim") is not None
    fields.require(cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=PLACES,
                   added_kv_proj_dim=heads * head_dim if picture else None)
    more = fields.get("in_channels", 16) - out
    if more and more <= out:
        raise UserError(f"{fields.where}: in_channels={out + more} with out_channels={out}; permitted: as many, or "
                        "more than twice as many, for latents of a picture and their mask")
    given = {"frame_conditioning": "channels", "mask_channels": more - out} if more else {}
    if picture:
        given |= {"conditions": (Input(name=IMAGE_TOKENS, width=fields.get("image_dim", 1280)),),
                  "image_places": fields.get("pos_embed_seq_len", 0)}
    return wan(
        patch=patch, width=heads * head_dim, heads=heads, hidden=fields.get("ffn_dim", 13824),
        layers=fields.get("num_layers", 40), out_channels=out, text=EmbeddedText(width=fields.get("text_dim", 4096)),
        level_channels=fields.get("freq_dim", 256), epsilon=fields.get("eps", 1e-6), **given)


def is_original(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors have the names of a transformer of Wan's authors."""
    return {"head.modulation", "blocks.0.self_attn.q.weight", "patch_embedding.weight"} <= set(tensors)


def config_of(tensors: Mapping[str, Tensor], where: str) -> VideoTransformer:
    """The config of tensors by their authors' names, from shapes. Heads have 128 channels, as those of all sizes that
    are released. Raises `UserError` for shapes that are none of Wan's."""
    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        found = tuple(tensors[name].shape) if name in tensors else ()
        if len(found) != dimensions:
            raise UserError(f"{where}: tensor {name!r} of shape {list(found)}; permitted: {dimensions} dimensions, as "
                            "in the files of Wan")
        return found

    width, channels, *patch = shape("patch_embedding.weight", 5)
    if width % HEAD:
        raise UserError(f"{where}: {width} channels; permitted: multiples of {HEAD}, the channels of a head of Wan")
    numbers = [int(name.split(".")[1]) for name in tensors if re.match(r"blocks\.\d+\.", name)]
    picture = "img_emb.proj.0.weight" in tensors
    fields = {"patch_size": patch, "num_attention_heads": width // HEAD, "attention_head_dim": HEAD,
              "in_channels": channels, "out_channels": shape("head.head.weight", 2)[0] // math.prod(patch),
              "text_dim": shape("text_embedding.0.weight", 2)[1], "freq_dim": shape("time_embedding.0.weight", 2)[1],
              "ffn_dim": shape("blocks.0.ffn.0.weight", 2)[0], "num_layers": 1 + max(numbers),
              "image_dim": shape("img_emb.proj.0.weight", 1)[0] if picture else None,
              "added_kv_proj_dim": width if picture else None,
              "pos_embed_seq_len": shape("img_emb.emb_pos", 3)[1] if "img_emb.emb_pos" in tensors else None}
    return read_wan(Fields(fields, where))


def write_wan(config: VideoTransformer) -> dict[str, Any]:
    """The fields of a config."""
    picture = config.image_tokens
    return {
        "patch_size": list(config.patch), "num_attention_heads": config.heads, "attention_head_dim": config.head_dim,
        "in_channels": sum(config.stacked.values()), "out_channels": config.out_channels,
        "text_dim": config.text.width, "freq_dim": config.level_channels, "ffn_dim": config.hidden,
        "num_layers": config.layers, "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "eps": config.epsilon,
        "image_dim": picture and picture.width, "added_kv_proj_dim": picture and config.width,
        "rope_max_seq_len": PLACES, "pos_embed_seq_len": config.image_places or None}


# Fields that decide about layers, which members of a family share; further ones are sizes, or how it is computed.
LAYERS = ("patterns", "rotary", "sinusoids", "qk_norm", "qk_epsilon", "norm", "modulation", "level_encoding",
          "timesteps", "text_stream", "text_tokens", "text_perceptron", "cross_norm", "classes", "scalars",
          "low_resolution", "patch_order", "boundary", "guidance_perceptron", "out_scale_first", "single_layers",
          "text_refiner")


def same_layers(config: VideoTransformer, own: VideoTransformer, but: tuple[str, ...] = ()) -> bool:
    """Whether two configs have the same layers, `but` for some fields."""
    return all(getattr(config, name) == getattr(own, name) for name in LAYERS if name not in but)


def is_wan(config: VideoTransformer) -> bool:
    """Whether a config has the layers of Wan, and no others."""
    if config.text is None or config.conditions not in ((), (config.image_tokens,)) or config.level_width:
        return False
    return same_layers(config, wan(width=config.width, heads=config.heads, hidden=config.hidden, layers=config.layers))


def example(config: VideoTransformer) -> tuple[Any, ...]:
    """Inputs of a transformer, of one token."""
    frames, height, width = config.patch
    shape = (1, frames, height, width)
    text = {} if config.text is None else {"embeddings": jnp.zeros((1, 1, 1, config.text.width)),
                                           "text_mask": jnp.ones((1, 1, 1), bool)}
    given = {"conditioning_frames": jnp.zeros((*shape, config.out_channels)),
             "conditioning_mask": jnp.zeros((*shape, config.mask_channels))} if config.conditioning_frames else {}
    inputs = {entry.name: jnp.zeros((1, 1, 1, entry.width)) for entry in config.entering("tokens")}
    inputs |= {entry.name: jnp.zeros((1, entry.width)) for entry in config.entering("vector")}
    scalars = {name: jnp.zeros(1) for name in config.scalars}
    return jnp.zeros((*shape, config.out_channels)), jnp.zeros(1), Conditioning(**text, **given, inputs=inputs,
                                                                              scalars=scalars)
