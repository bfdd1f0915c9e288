"""Original checkpoints: of Stable Diffusion 1.x and 2.x and Stable Video Diffusion, one safetensors file of all parts;
of Wan, that of the autoencoder and that of the text encoder.

The authors' names become those of the folders of diffusers, tensor by tensor, and from there on a part is read like any
other (`pretrained.py`). Sizes are read from shapes; what shapes do not show is the released models': 8 attention heads
in 1.x, heads of 64 channels in 2.x and Stable Video Diffusion.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Mapping

from vdm_jax.errors import UserError
from vdm_jax.networks.autoencoders.causal_config import CausalAutoencoder
from vdm_jax.networks.autoencoders.config import Autoencoder
from vdm_jax.networks.encoders.clip_text import CLIP_TEXT_H_23, CLIPText
from vdm_jax.networks.encoders.clip_vision import CLIPVision
from vdm_jax.networks.encoders.t5 import T5Encoder
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.weights import causal_autoencoders, model_kinds, tensor_names, transformer_fields
from vdm_jax.weights.model_kinds import Config
from vdm_jax.weights.pretrained import export, parameters_of
from vdm_jax.weights.tensor_files import Tensor, open_file
from vdm_jax.weights.unet_fields import VIDEO_EPSILONS

Tensors = Mapping[str, Tensor]
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT_1, TEXT_2 = "cond_stage_model.transformer.", "cond_stage_model.model."
IMAGE = "conditioner.embedders.0.open_clip.model.visual."
HEAD = 64  # channels of a head, in 2.x and in encoders of OpenCLIP's ViT-H

# Prefix of a name -> whose it is, of models that are something else.
OTHERS = {
    "conditioner.embedders.1.model.": "Stable Diffusion XL", "control_model.": "a ControlNet", "lora_": "a LoRA",
    "model.diffusion_model.double_blocks.": "Flux", "model.diffusion_model.joint_blocks.": "Stable Diffusion 3"}
RESIDUAL = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
            "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}
ENCODER_LAYER = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
                 "attn.out_proj": "self_attn.out_proj"}


@dataclasses.dataclass(frozen=True)
class Part:
    """One network of a file: its config and its tensors under the names of diffusers."""

    config: Config
    tensors: dict[str, Tensor]


def open_single_file(path: str | os.PathLike) -> dict[str, Part]:
    """Parts of an original checkpoint by the name of their folder: unet, transformer, vae, text_encoder, image_encoder.

    Nothing is read but the header. Raises `UserError` for a file that is none, or another model's, which it names;
    pickles are refused as anywhere.
    """
    tensors = open_file(path)
    if causal_autoencoders.is_original(tensors):
        config = causal_autoencoders.config_of(tensors, str(path))
        return {"vae": Part(config, _of_wan(config, tensors))}
    if {"token_embedding.weight", "blocks.0.pos_embedding.embedding.weight"} <= set(tensors):
        config = _umt5(tensors)
        return {"text_encoder": Part(config, _of_wan(config, tensors))}
    if transformer_fields.is_original(tensors):
        return {"transformer": Part(transformer_fields.config_of(tensors, str(path)), dict(tensors))}
    name = system(tensors, str(path))
    parts = {"unet": _unet(_under(tensors, UNET)), "vae": _vae(_under(tensors, VAE))}
    if name == "Stable Video Diffusion":
        parts["image_encoder"] = _open_clip_image(_under(tensors, IMAGE))
    elif name == "Stable Diffusion 1.x":
        parts["text_encoder"] = _clip_text(_under(tensors, TEXT_1))
    else:
        parts["text_encoder"] = _open_clip_text(_under(tensors, TEXT_2))
    return parts


def split_single_file(path: str | os.PathLike, out: str | os.PathLike) -> dict[str, Config]:
    """Rewrites an original checkpoint as folders in the layout of diffusers and transformers, one per part and tensor
    by tensor; returns their configs. Scheduler and tokenizer are not in such a file.

    Raises `UserError` for tensors that are missing, unexpected or misshapen, by name, and for folders that have tensors
    already.
    """
    parts = open_single_file(path)
    adopted = {name: _parameters(path, name, part) for name, part in parts.items()}  # all, before anything is written
    for name, part in parts.items():
        export(pathlib.Path(out) / name, part.config, adopted[name], {})
    return {name: part.config for name, part in parts.items()}


def _of_wan(config: CausalAutoencoder | T5Encoder, tensors: Tensors) -> dict[str, Tensor]:
    """Tensors under the names of diffusers and transformers; names that are not the authors' stay."""
    theirs, original = model_kinds.names(config), model_kinds.original_names(config)
    table = {tensor_names.their_name(path, original): tensor_names.their_name(path, theirs)
             for path in model_kinds.shapes(config)}
    return {table.get(name, name): tensor for name, tensor in tensors.items()}


def _umt5(tensors: Tensors) -> T5Encoder:
    words, query = _at(tensors, "token_embedding.weight"), _at(tensors, "blocks.0.attn.q.weight")
    buckets, heads = _at(tensors, "blocks.0.pos_embedding.embedding.weight").shape
    return T5Encoder(
        vocabulary=words.shape[0], width=words.shape[1], heads=heads, head_dim=query.shape[0] // heads, buckets=buckets,
        layers=1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")),
        hidden=_at(tensors, "blocks.0.ffn.fc1.weight").shape[0], offsets_per_layer=True)


def _parameters(path: str | os.PathLike, name: str, part: Part) -> dict[str, Tensor]:
    return parameters_of(part.config, part.tensors, f"{path}: tensors of its {name} are not those of the model")


def system(tensors: Tensors, where: str) -> str:
    """Whose checkpoint it is, by its names. Raises `UserError` for one that is not read here."""
    for prefix, name in OTHERS.items():
        if any(tensor.startswith(prefix) for tensor in tensors):
            raise UserError(f"{where} holds {name}; permitted: {PERMITTED}")
    if any("motion_modules." in tensor for tensor in tensors):
        raise UserError(f"{where} holds motion modules of AnimateDiff (motion_files.load_motion_file reads them); "
                        f"permitted here: {PERMITTED}")
    beginnings = {"Stable Diffusion 1.x": TEXT_1, "Stable Diffusion 2.x": TEXT_2, "Stable Video Diffusion": IMAGE}
    for name, prefix in beginnings.items():
        if all(any(tensor.startswith(start) for tensor in tensors) for start in (prefix, UNET, VAE)):
            return name
    some = ", ".join(sorted(tensors)[:3])
    raise UserError(f"{where} is no original checkpoint that is known (it has {some}, ...); permitted: {PERMITTED}")


PERMITTED = ("Stable Diffusion 1.x, Stable Diffusion 2.x, Stable Video Diffusion, with all parts in one file; the "
             "autoencoder of Wan; the text encoder of Wan")


def _under(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _renamed(tensors: Tensors, lines: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors with the beginning of their names changed by the first line that matches; others keep theirs."""
    patterns = [(re.compile(rf"{ours}(?=\.|$)"), theirs) for ours, theirs in lines.items()]
    found = {}
    for name, tensor in tensors.items():
        for pattern, template in patterns:
            if match := pattern.match(name):
                name = match.expand(template) + name[match.end() :]
                break
        found[name] = tensor
    return found


def _fitted(config: Config, tensors: dict[str, Tensor]) -> Part:
    """Tensors in the shapes of diffusers: what is stored as a 1x1 convolution there and a matrix here."""
    wanted = model_kinds.inventory(config)

    def fit(name: str, tensor: Tensor) -> Tensor:
        shape = wanted.get(name)
        if shape is None or tensor.shape != (*shape, 1, 1):
            return tensor
        return Tensor(shape, tensor.dtype, lambda: tensor.read().reshape(shape))

    return Part(config, {name: fit(name, tensor) for name, tensor in tensors.items()})


def _unet(tensors: Tensors) -> Part:
    """The U-Net; its sizes from the order and shapes of its blocks."""
    config, lines = _walk_unet(tensors)
    inner = "|".join(map(re.escape, RESIDUAL))

    def residual(template: str) -> Callable[[re.Match], str]:
        return lambda match: template.format(RESIDUAL[match[1]])

    found = {}
    for name, tensor in _renamed(tensors, lines).items():
        if ".resnets." in name:
            name = re.sub(rf"time_stack\.({inner})(?=\.)", residual("temporal_res_block.{}"), name)
            name = re.sub(rf"(?<=\d\.)({inner})(?=\.)",
                          residual("spatial_res_block.{}" if config.temporal else "{}"), name)
        name = name.replace("time_stack.0.", "temporal_transformer_blocks.0.")
        name = name.replace("time_pos_embed.0.", "time_pos_embed.linear_1.")
        found[name.replace("time_pos_embed.2.", "time_pos_embed.linear_2.")] = tensor
    return _fitted(config, found)


def _walk_unet(tensors: Tensors) -> tuple[LatentUNet, dict[str, str]]:
    """Config, and where each block of the authors is."""
    blocks = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("input_blocks."))
    lines = {r"time_embed\.0": "time_embedding.linear_1", r"time_embed\.2": "time_embedding.linear_2",
             r"label_emb\.0\.0": "add_embedding.linear_1", r"label_emb\.0\.2": "add_embedding.linear_2",
             r"input_blocks\.0\.0": "conv_in", r"out\.0": "conv_norm_out", r"out\.2": "conv_out",
             r"middle_block\.0": "mid_block.resnets.0", r"middle_block\.1": "mid_block.attentions.0",
             r"middle_block\.2": "mid_block.resnets.1"}
    widths, attention, counts = [], [], [0]
    for n in range(1, blocks):
        if f"input_blocks.{n}.0.op.weight" in tensors:
            lines[rf"input_blocks\.{n}\.0\.op"] = f"down_blocks.{len(counts) - 1}.downsamplers.0.conv"
            counts.append(0)
            continue
        level, place = len(counts) - 1, counts[-1]
        lines[rf"input_blocks\.{n}\.0"] = f"down_blocks.{level}.resnets.{place}"
        lines[rf"input_blocks\.{n}\.1"] = f"down_blocks.{level}.attentions.{place}"
        counts[-1] += 1
        if place == 0:
            widths.append(_at(tensors, f"input_blocks.{n}.0.out_layers.3.weight").shape[0])
            attention.append(f"input_blocks.{n}.1.norm.weight" in tensors)
    each = counts[0]
    for n in range(len(counts) * (each + 1)):
        level, place = divmod(n, each + 1)
        lines[rf"output_blocks\.{n}\.([12])\.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
        lines[rf"output_blocks\.{n}\.0"] = f"up_blocks.{level}.resnets.{place}"
        lines[rf"output_blocks\.{n}\.1"] = f"up_blocks.{level}.attentions.{place}"
    stem, middle = _at(tensors, "input_blocks.0.0.weight"), "middle_block.1."
    context = _at(tensors, f"{middle}transformer_blocks.0.attn2.to_k.weight").shape[1]
    convolved = len(_at(tensors, f"{middle}proj_in.weight").shape) == 4
    temporal, scalars = "middle_block.0.time_mixer.mix_factor" in tensors, tensors.get("label_emb.0.0.weight")
    channels = 256  # of the code of each scalar
    small = scalars is not None and scalars.shape[1] % channels
    config = LatentUNet(
        in_channels=stem.shape[1], out_channels=_at(tensors, "out.2.weight").shape[0], widths=tuple(widths),
        blocks=each, attention=tuple(attention), token_channels=context, use_linear_projection=not convolved,
        heads=tuple(8 if convolved else max(width // HEAD, 1) for width in widths),
        only_cross_attention=(False,) * len(widths), temporal=temporal,
        epsilons=VIDEO_EPSILONS if temporal else (1e-5,) * 4,
        scalars=0 if scalars is None else 3 if small else scalars.shape[1] // channels,
        scalar_channels=scalars.shape[1] // 3 if small else channels)
    return config, lines


def _vae(tensors: Tensors) -> Part:
    """The autoencoder, whose decoder counts its levels from the finest."""
    levels = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.down."))
    blocks = 1 + max(int(name.split(".")[4]) for name in tensors if name.startswith("encoder.down.0.block."))
    temporal = "decoder.conv_out.time_mix_conv.weight" in tensors
    config = Autoencoder(
        channels=_at(tensors, "encoder.conv_in.weight").shape[1], blocks=blocks,
        widths=tuple(_at(tensors, f"encoder.down.{i}.block.0.conv2.weight").shape[0] for i in range(levels)),
        latent_channels=_at(tensors, "decoder.conv_in.weight").shape[1],
        post_quant="post_quant_conv.weight" in tensors, decoder="temporal" if temporal else "frames")
    lines = {r"decoder\.conv_out\.time_mix_conv": "decoder.time_conv_out"}
    attention = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": r"to_out.0"}
    for side in ("encoder", "decoder"):
        lines |= {rf"{side}\.norm_out": f"{side}.conv_norm_out",
                  rf"{side}\.mid\.block_1": f"{side}.mid_block.resnets.0",
                  rf"{side}\.mid\.block_2": f"{side}.mid_block.resnets.1"}
        lines |= {rf"{side}\.mid\.attn_1\.{ours}": f"{side}.mid_block.attentions.0.{theirs}"
                  for ours, theirs in attention.items()}
    for i in range(levels):
        lines |= {rf"encoder\.down\.{i}\.block\.(\d+)": rf"encoder.down_blocks.{i}.resnets.\1",
                  rf"encoder\.down\.{i}\.downsample\.conv": f"encoder.down_blocks.{i}.downsamplers.0.conv",
                  rf"decoder\.up\.{i}\.block\.(\d+)": rf"decoder.up_blocks.{levels - 1 - i}.resnets.\1",
                  rf"decoder\.up\.{i}\.upsample\.conv": f"decoder.up_blocks.{levels - 1 - i}.upsamplers.0.conv"}
    inner = "|".join(map(re.escape, RESIDUAL))
    found = {}
    for name, tensor in _renamed(tensors, lines).items():
        name = name.replace("nin_shortcut", "conv_shortcut")
        if temporal and name.startswith("decoder.") and ".resnets." in name:
            name = re.sub(rf"(resnets\.\d+)\.time_stack\.({inner})(?=\.)",
                          lambda match: f"{match[1]}.temporal_res_block.{RESIDUAL[match[2]]}", name)
            name = re.sub(r"(resnets\.\d+)\.(norm\d|conv\d|conv_shortcut)(?=\.)", r"\1.spatial_res_block.\2", name)
            name = name.replace(".mix_factor", ".time_mixer.mix_factor")
        if not re.match(r"loss\.|model_ema\.", name):
            found[name] = tensor
    return _fitted(config, found)


def _clip_text(tensors: Tensors) -> Part:
    """The text encoder of 1.x, which has the names of transformers."""
    words = _at(tensors, "text_model.embeddings.token_embedding.weight")
    places = _at(tensors, "text_model.embeddings.position_embedding.weight")
    layers = 1 + max(int(name.split(".")[3]) for name in tensors if name.startswith("text_model.encoder.layers."))
    hidden = _at(tensors, "text_model.encoder.layers.0.mlp.fc1.weight").shape[0]
    config = CLIPText(vocabulary=words.shape[0], width=words.shape[1], length=places.shape[0], layers=layers,
                      heads=max(words.shape[1] // HEAD, 1), hidden=hidden)
    return Part(config, dict(tensors))


def _open_clip_text(tensors: Tensors) -> Part:
    """The text encoder of 2.x up to its penultimate layer, which is the one that is used."""
    words, places = _at(tensors, "token_embedding.weight"), _at(tensors, "positional_embedding")
    layers = _layers(tensors) - 1
    found = {"text_model.embeddings.token_embedding.weight": words,
             "text_model.embeddings.position_embedding.weight": places,
             **_open_clip_layers(tensors, "text_model", layers)}
    found |= {f"text_model.final_layer_norm.{leaf}": _at(tensors, f"ln_final.{leaf}") for leaf in ("weight", "bias")}
    config = dataclasses.replace(
        CLIP_TEXT_H_23, vocabulary=words.shape[0], width=words.shape[1], length=places.shape[0], layers=layers,
        heads=max(words.shape[1] // HEAD, 1), hidden=_at(tensors, "transformer.resblocks.0.mlp.c_fc.weight").shape[0])
    return Part(config, found)


def _open_clip_image(tensors: Tensors) -> Part:
    """The image encoder of Stable Video Diffusion."""
    kernel, project = _at(tensors, "conv1.weight"), _at(tensors, "proj")
    places = _at(tensors, "positional_embedding")
    width, patch, side = kernel.shape[0], kernel.shape[-1], round((places.shape[0] - 1) ** 0.5)
    config = CLIPVision(
        size=patch * side, patch=patch, width=width, layers=_layers(tensors), heads=max(width // 80, 1),
        hidden=_at(tensors, "transformer.resblocks.0.mlp.c_fc.weight").shape[0], activation="gelu",
        project=project.shape[1])
    found = {"vision_model.embeddings.class_embedding": _at(tensors, "class_embedding"),
             "vision_model.embeddings.position_embedding.weight": places,
             "vision_model.embeddings.patch_embedding.weight": kernel,
             "visual_projection.weight": Tensor(project.shape[::-1], project.dtype, lambda: project.read().T),
             **_open_clip_layers(tensors, "vision_model", _layers(tensors))}
    for ours, theirs in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        found |= {f"vision_model.{theirs}.{leaf}": _at(tensors, f"{ours}.{leaf}") for leaf in ("weight", "bias")}
    return Part(config, found)


def _layers(tensors: Tensors) -> int:
    return 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("transformer.resblocks."))


def _open_clip_layers(tensors: Tensors, root: str, layers: int) -> dict[str, Tensor]:
    """The first layers of an OpenCLIP transformer; queries, keys and values are one tensor there."""
    found = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", name)
        if not match or int(match[1]) >= layers:
            continue
        layer, module, leaf = f"{root}.encoder.layers.{match[1]}", match[2], match[3]
        if module != "attn.in_proj":
            found[f"{layer}.{ENCODER_LAYER.get(module, module)}.{leaf}"] = tensor
            continue
        size = tensor.shape[0] // 3
        for i, head in enumerate("qkv"):
            found[f"{layer}.self_attn.{head}_proj.{leaf}"] = Tensor(
                (size, *tensor.shape[1:]), tensor.dtype,
                lambda tensor=tensor, i=i, size=size: tensor.read()[i * size : (i + 1) * size])
    return found


def _at(tensors: Tensors, name: str) -> Tensor:
    if name not in tensors:
        raise UserError(f"tensor {name!r} is missing from the checkpoint; permitted: {PERMITTED}")
    return tensors[name]
