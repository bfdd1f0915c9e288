"""How tensors of PyTorch models are called and laid out, seen from ours.

A table has a line per kind of layer: a pattern of our module's path and what stands for it there. The names of the
tensors within a layer and their layouts are the same for all models:

    ours      theirs     layout
    kernel    weight     dense (in, out): (out, in)
                         convolution (kt, kh, kw, in, out): (out, in, kt, kh, kw), without kt where it is 1
    scale     weight     the same
    bias      bias       the same
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

import numpy as np

from vdm_jax.errors import UserError

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
RESIDUAL = {"norm_in": "norm1", "conv_in": "conv1", "norm_out": "norm2", "conv_out": "conv2",
            "shortcut": "conv_shortcut", "embedding": "time_emb_proj"}
HEADS = {"query": "q", "key": "k", "value": "v"}

Lines = tuple[tuple[str, str], ...]  # pattern of ours, template of theirs


@dataclasses.dataclass(frozen=True)
class Names:
    """The table of one model."""

    modules: Lines  # path of a module -> name of theirs
    tensors: Lines = ()  # path of a parameter that belongs to no such module -> full name of theirs
    aliases: Lines = ()  # older or shorter names in files: pattern at the beginning, replacement
    dropped: str = r"(?!)"  # pattern of tensors in files that are no parameters of the model
    # Tensors stored twice: the second name is dropped where the first is there, and stands for it where it is not.
    twice: Lines = ()
    # Path of a parameter -> dimensions of its tensor, which has more than ours: the last have a size of 1.
    ranks: tuple[tuple[str, int], ...] = ()
    volumes: str = r"(?!)"  # pattern of convolutions that are 3-D elsewhere though their kernel has one frame
    # Pattern of parameters that have fewer axes elsewhere: kernels of patches, which are maps of all values of a patch
    # (channel slowest), and tables whose first axis has a size of 1
    flat: str = r"(?!)"
    scale: str = LEAVES["scale"]  # what scales are called
    # Pattern of the beginning of paths of parameters whose first axis is the layers of a scan, `blocks/block_0/...`:
    # the tables have lines for the layers one by one, `block_7/...`; "": there are none
    stacked: str = ""
    turn: int = 1  # blocks of a turn of the scan

    def rank(self, path: str) -> int:
        """Dimensions that the tensor of a parameter has at least."""
        return next((rank for pattern, rank in self.ranks if re.fullmatch(pattern, path)), 0)


PLAIN = Names(modules=())  # of no model: layouts that need no table


def their_name(path: str, names: Names) -> str:
    """Name of the tensor for our parameter `a/b/kernel`. Raises `UserError` for a path that the table does not know."""
    for pattern, template in names.tensors:
        if match := re.fullmatch(pattern, path):
            return match.expand(template)
    module, _, leaf = path.rpartition("/")
    for pattern, template in names.modules:
        if leaf in LEAVES and (match := re.fullmatch(pattern, module)):
            return f"{match.expand(template)}.{names.scale if leaf == 'scale' else LEAVES[leaf]}"
    raise UserError(f"parameter {path!r} has no name in the other layout; permitted: parameters of the model's config")


def layers(path: str, shape: tuple[int, ...], names: Names) -> list[tuple[str, tuple[int, ...]]]:
    """Path and shape of each layer of a parameter that a scan stacks, in their order; of another one, its own.

    A turn of the scan may have several blocks, `blocks/block_0/...` and `blocks/block_1/...`, which follow each other:
    layer i of the second of two is block 2 i + 1.
    """
    scan, _, inside = path.partition("/")
    if not names.stacked or not re.fullmatch(names.stacked, scan):
        return [(path, shape)]
    block, _, rest = inside.partition("/")
    name, _, place = block.rpartition("_")
    return [(f"{name}_{i * names.turn + int(place)}/{rest}", shape[1:]) for i in range(shape[0])]


def their_shape(path: str, shape: tuple[int, ...], names: Names = PLAIN) -> tuple[int, ...]:
    """Shape of the tensor for our parameter."""
    found = tuple(shape[axis] for axis in _axes(path, shape, names))
    if re.fullmatch(names.flat, path):
        return (found[0], math.prod(found[1:])) if path.endswith("kernel") else found[1:]
    return found + (1,) * (names.rank(path) - len(found))


def to_theirs(path: str, array: np.ndarray, names: Names = PLAIN) -> np.ndarray:
    """Our parameter in the other layout, a view."""
    axes = _axes(path, array.shape, names)
    turned = (array[0] if len(axes) < array.ndim else array).transpose([a - array.ndim + len(axes) for a in axes])
    return turned.reshape(their_shape(path, array.shape, names))


def to_ours(path: str, tensor: np.ndarray, shape: tuple[int, ...], names: Names = PLAIN) -> np.ndarray:
    """Their tensor as our parameter of `shape`, a view."""
    axes = _axes(path, shape, names)
    tensor = tensor.reshape([shape[axis] for axis in axes])  # what is left out has a size of 1
    return tensor.transpose(np.argsort(np.array(axes, int))).reshape(shape)


def _axes(path: str, shape: tuple[int, ...], names: Names = PLAIN) -> tuple[int, ...]:
    """Which of our axes theirs are, in their order; an axis of one frame that a 2-D convolution lacks is not listed."""
    if path.rpartition("/")[2] != "kernel":
        return tuple(range(len(shape)))
    if len(shape) == 2:
        return (1, 0)
    volume = shape[0] > 1 or re.fullmatch(names.volumes, path.rpartition("/")[0])
    return (4, 3, 0, 1, 2) if volume else (4, 3, 1, 2)


def canonical(found: Iterable[str], names: Names) -> dict[str, str]:
    """Canonical name -> name in the file, of those that are parameters.

    Raises `UserError` where two tensors of the file have the same canonical name.
    """
    found, result = set(found), {}
    for name in sorted(found):
        if re.fullmatch(names.dropped, name):
            continue
        full = name
        for pattern, replacement in names.aliases:
            full = re.sub(f"^{pattern}", replacement, full)
        for first, second in names.twice:
            if name == second:
                full = first
        if full in result:
            if (full, name) in names.twice:
                continue
            if (full, result[full]) not in names.twice:
                raise UserError(f"tensors {result[full]!r} and {name!r} are both {full!r}; permitted: one of the two")
        result[full] = name
    return result


def prefixed(ours: str, theirs: str, within: Mapping[str, str]) -> Lines:
    """Lines for the modules inside one."""
    return tuple((f"{ours}/{a}", f"{theirs}.{b}") for a, b in within.items())


def _clip_layers(root: str) -> Lines:
    layer, attention = rf"{root}.encoder.layers.\1", {**HEADS, "out": "out"}
    return (
        *((rf"layer_(\d+)/self_attention/{a}", rf"{layer}.self_attn.{b}_proj") for a, b in attention.items()),
        *prefixed(r"layer_(\d+)", layer, {"norm_attention": "layer_norm1", "norm_feed_forward": "layer_norm2",
                                           "feed_forward/expand": "mlp.fc1", "feed_forward/out": "mlp.fc2"}))


# Newer versions of transformers leave out the prefix in models that consist of one encoder.
CLIP_TEXT = Names(
    modules=(*_clip_layers("text_model"), ("norm", "text_model.final_layer_norm"), ("project", "text_projection")),
    tensors=(("words", "text_model.embeddings.token_embedding.weight"),
             ("places", "text_model.embeddings.position_embedding.weight")),
    aliases=((r"(?=(embeddings|encoder|final_layer_norm)\.)", "text_model."),),
    dropped=r"(text_model\.)?embeddings\.position_ids")

CLIP_VISION = Names(
    modules=(*_clip_layers("vision_model"), ("patches", "vision_model.embeddings.patch_embedding"),
             ("norm_in", "vision_model.pre_layrnorm"), ("norm", "vision_model.post_layernorm"),
             ("project", "visual_projection")),
    tensors=(("summary", "vision_model.embeddings.class_embedding"),
             ("places", "vision_model.embeddings.position_embedding.weight")),
    aliases=((r"(?=(embeddings|encoder|pre_layrnorm|post_layernorm)\.)", "vision_model."),),
    dropped=r"(vision_model\.)?embeddings\.position_ids")


def t5_names(gated: bool, offsets_per_layer: bool) -> Names:
    """Of the encoder of T5 or UMT5; files of the whole model have a decoder too."""
    attention, feed_forward = r"encoder.block.\1.layer.0", r"encoder.block.\1.layer.1"
    offsets = ".SelfAttention.relative_attention_bias.weight"
    within = {"gate": "wi_0", "expand": "wi_1", "out": "wo"} if gated else {"expand": "wi", "out": "wo"}
    return Names(
        modules=(*prefixed(r"layer_(\d+)_self_attention", f"{attention}.SelfAttention", {**HEADS, "out": "o"}),
                 *prefixed(r"layer_(\d+)_feed_forward", f"{feed_forward}.DenseReluDense", within),
                 (r"layer_(\d+)_norm_attention", f"{attention}.layer_norm"),
                 (r"layer_(\d+)_norm_feed_forward", f"{feed_forward}.layer_norm"),
                 ("norm", "encoder.final_layer_norm")),
        tensors=(("words", "shared.weight"),
                 (r"layer_(\d+)_offsets", attention + offsets) if offsets_per_layer
                 else ("offsets", f"encoder.block.0.layer.0{offsets}")),
        dropped=r"decoder\..*|lm_head\..*", twice=(("shared.weight", "encoder.embed_tokens.weight"),))


# UMT5 by the names of the code of Wan, which has the encoder alone.
UMT5_ORIGINAL = Names(
    modules=(*prefixed(r"layer_(\d+)_self_attention", r"blocks.\1.attn", {**HEADS, "out": "o"}),
             *prefixed(r"layer_(\d+)_feed_forward", r"blocks.\1.ffn", {"gate": "gate.0", "expand": "fc1",
                                                                      "out": "fc2"}),
             (r"layer_(\d+)_norm_attention", r"blocks.\1.norm1"),
             (r"layer_(\d+)_norm_feed_forward", r"blocks.\1.norm2"), ("norm", "norm")),
    tensors=(("words", "token_embedding.weight"),
             (r"layer_(\d+)_offsets", r"blocks.\1.pos_embedding.embedding.weight")))


def residual_lines(ours: str, theirs: str, over_time: bool) -> Lines:
    """Of a residual block, alone or with a temporal one next to it."""
    if not over_time:
        return prefixed(f"{ours}/residual", theirs, RESIDUAL)
    return (*prefixed(f"{ours}/residual", f"{theirs}.spatial_res_block", RESIDUAL),
            *prefixed(f"{ours}/temporal_residual", f"{theirs}.temporal_res_block", RESIDUAL))


def autoencoder_names(temporal: bool) -> Names:
    """Of the KL autoencoders, with a decoder for images or for video."""

    def half(side: str, way: str, over_time: bool) -> Lines:
        attention = {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
        return (
            (f"{side}/stem", f"{side}.conv_in"), (f"{side}/norm", f"{side}.conv_norm_out"),
            (f"{side}/out", f"{side}.conv_out"),
            *residual_lines(rf"{side}/{way}_(\d+)_(\d+)", rf"{side}.{way}_blocks.\1.resnets.\2", over_time),
            *residual_lines(f"{side}/middle/in", f"{side}.mid_block.resnets.0", over_time),
            *residual_lines(f"{side}/middle/out", f"{side}.mid_block.resnets.1", over_time),
            *prefixed(f"{side}/middle/frame_attention", f"{side}.mid_block.attentions.0", attention))

    older = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return Names(
        modules=(*half("encoder", "down", False), *half("decoder", "up", temporal),
                 (r"encoder/downsample_(\d+)", r"encoder.down_blocks.\1.downsamplers.0.conv"),
                 (r"decoder/upsample_(\d+)/conv", r"decoder.up_blocks.\1.upsamplers.0.conv"),
                 ("decoder/out_temporal", "decoder.time_conv_out"),
                 ("quant", "quant_conv"), ("post_quant", "post_quant_conv")),
        tensors=((r"decoder/up_(\d+)_(\d+)/mix/factor", r"decoder.up_blocks.\1.resnets.\2.time_mixer.mix_factor"),
                 ("decoder/middle/in/mix/factor", "decoder.mid_block.resnets.0.time_mixer.mix_factor"),
                 ("decoder/middle/out/mix/factor", "decoder.mid_block.resnets.1.time_mixer.mix_factor")),
        aliases=tuple((rf"(encoder|decoder)\.mid_block\.attentions\.0\.{a}\.", rf"\1.mid_block.attentions.0.{b}.")
                      for a, b in older.items()))
