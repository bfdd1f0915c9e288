"""The models whose weights can be read and written: their classes elsewhere, their configs there and here."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.errors import UserError, unknown_kind
from vdm_jax.networks.autoencoders.causal import CausalAutoencoderKL
from vdm_jax.networks.autoencoders.causal_config import CausalAutoencoder
from vdm_jax.networks.autoencoders.config import Autoencoder
from vdm_jax.networks.autoencoders.hunyuan import HunyuanAutoencoder, HunyuanAutoencoderKL
from vdm_jax.networks.autoencoders.kl import AutoencoderKL
from vdm_jax.networks.autoencoders.ltx import LTXAutoencoderKL
from vdm_jax.networks.autoencoders.ltx_config import LTXAutoencoder
from vdm_jax.networks.autoencoders.piecewise import PiecewiseAutoencoder, PiecewiseAutoencoderKL
from vdm_jax.networks.control_net import ControlNet, ControlNetNetwork
from vdm_jax.networks.dpt import DPT, DPTNetwork
from vdm_jax.networks.encoders.clip_text import CLIPText, CLIPTextEncoder
from vdm_jax.networks.encoders.clip_vision import CLIPVision, CLIPVisionEncoder
from vdm_jax.networks.encoders.llama import LlamaText, LlamaTextEncoder
from vdm_jax.networks.encoders.t5 import T5Encoder, T5TextEncoder
from vdm_jax.networks.image_prompt import ImagePromptAdapter, ImagePromptAdapterNetwork
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.networks.latent_unet_network import LatentUNetNetwork
from vdm_jax.networks.motion_adapter import MotionAdapter, MotionAdapterNetwork
from vdm_jax.networks.sparse_control import SparseControlNet, SparseControlNetNetwork
from vdm_jax.networks.t2i_adapter import T2IAdapter, T2IAdapterNetwork
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.networks.transformer.network import VideoTransformerModule
from vdm_jax.weights import causal_autoencoders as causal
from vdm_jax.weights import cogvideox_fields as cogvideox
from vdm_jax.weights import dpt_fields, hunyuan_autoencoders, llama_fields, tensor_names
from vdm_jax.weights import hunyuan_fields as hunyuan
from vdm_jax.weights import ltx_autoencoders as ltx
from vdm_jax.weights import ltx_transformer_fields as ltx_transformer
from vdm_jax.weights import piecewise_autoencoders as piecewise
from vdm_jax.weights import transformer_fields as transformer
from vdm_jax.weights import unet_fields as image
from vdm_jax.weights import video_unet_fields as video
from vdm_jax.weights.fields import Fields
from vdm_jax.weights.image_prompt_names import adapter_names
from vdm_jax.weights.safetensors import flatten
from vdm_jax.weights.tensor_files import Tensor

Config = (Autoencoder | CausalAutoencoder | CLIPText | CLIPVision | ControlNet | DPT | HunyuanAutoencoder
          | ImagePromptAdapter | LatentUNet | LlamaText | LTXAutoencoder | MotionAdapter | PiecewiseAutoencoder
          | SparseControlNet | T2IAdapter | T5Encoder | VideoTransformer)


@dataclasses.dataclass(frozen=True)
class Kind:
    """One model."""

    name: str  # of its class there
    config: type  # ours
    stem: str  # of its files
    read: Callable[[Fields], Config]
    write: Callable[[Any], dict[str, Any]]  # the fields of `config.json` that we know
    accepts: Callable[[Any], bool] = lambda config: True  # which of our configs are this class
    also: tuple[str, ...] = ()  # further classes whose files hold the model


def module(config: Config) -> nn.Module:
    """The network of a config."""
    networks = {Autoencoder: AutoencoderKL, CausalAutoencoder: CausalAutoencoderKL, CLIPText: CLIPTextEncoder,
                CLIPVision: CLIPVisionEncoder, ControlNet: ControlNetNetwork, DPT: DPTNetwork,
                HunyuanAutoencoder: HunyuanAutoencoderKL, ImagePromptAdapter: ImagePromptAdapterNetwork,
                LatentUNet: LatentUNetNetwork, LlamaText: LlamaTextEncoder,
                LTXAutoencoder: LTXAutoencoderKL, MotionAdapter: MotionAdapterNetwork,
                PiecewiseAutoencoder: PiecewiseAutoencoderKL, SparseControlNet: SparseControlNetNetwork,
                T2IAdapter: T2IAdapterNetwork, T5Encoder: T5TextEncoder, VideoTransformer: VideoTransformerModule}
    if type(config) not in networks:
        raise unknown_kind("a model", config, Config)
    return networks[type(config)](config)


def names(config: Config) -> tensor_names.Names:
    """How the tensors of a config are called elsewhere."""
    if isinstance(config, Autoencoder):
        return tensor_names.autoencoder_names(config.decoder == "temporal")
    if isinstance(config, CausalAutoencoder):
        return causal.names(config)
    if isinstance(config, PiecewiseAutoencoder):
        return piecewise.NAMES
    if isinstance(config, HunyuanAutoencoder):
        return hunyuan_autoencoders.NAMES
    if isinstance(config, LTXAutoencoder):
        return ltx.names(config)
    if isinstance(config, LatentUNet):
        if config.temporal_conv:
            return video.stack_unet_names()
        return video.motion_unet_names() if config.motion else image.unet_names(config.temporal)
    if isinstance(config, MotionAdapter):
        return video.motion_names()
    if isinstance(config, ControlNet):
        return video.control_names()
    if isinstance(config, SparseControlNet):
        return video.sparse_names(config)
    if isinstance(config, T2IAdapter):
        return video.ADAPTER
    if isinstance(config, ImagePromptAdapter):
        return adapter_names(config)
    if isinstance(config, T5Encoder):
        return tensor_names.t5_names(config.gated, config.offsets_per_layer)
    if isinstance(config, VideoTransformer):
        if cogvideox.is_cogvideox(config):
            return cogvideox.cogvideox_names(config)
        if ltx_transformer.is_ltx(config):
            return ltx_transformer.ltx_names()
        if hunyuan.is_hunyuan(config):
            return hunyuan.hunyuan_names()
        return transformer.wan_names()
    if isinstance(config, LlamaText):
        return llama_fields.LLAMA
    if isinstance(config, CLIPText):
        return tensor_names.CLIP_TEXT
    if isinstance(config, CLIPVision):
        return tensor_names.CLIP_VISION
    if isinstance(config, DPT):
        return dpt_fields.NAMES
    raise unknown_kind("a model", config, Config)


def original_names(config: Config) -> tensor_names.Names:
    """How its authors call the tensors of a config. Raises `UserError` for models of which only the layout of diffusers
    and transformers is written."""
    if isinstance(config, CausalAutoencoder):
        return causal.original_names(config)
    if isinstance(config, ImagePromptAdapter):
        return adapter_names(config)
    if isinstance(config, T5Encoder) and config.offsets_per_layer and config.gated:
        return tensor_names.UMT5_ORIGINAL
    raise UserError(f"the authors' names of a {type(config).__name__} are not written; permitted: CausalAutoencoder, "
                    "ImagePromptAdapter, UMT5, or the layout of diffusers and transformers")


@functools.lru_cache(maxsize=32)
def shapes(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """Path -> shape of every parameter, without computing anything."""
    more: dict[str, Any] = {}
    if isinstance(config, Autoencoder):
        example = (jnp.zeros((1, config.time_factor, config.factor, config.factor, config.channels)),)
    elif isinstance(config, CausalAutoencoder | HunyuanAutoencoder | LTXAutoencoder | PiecewiseAutoencoder):
        example = (jnp.zeros((1, 1, config.factor, config.factor, config.channels)),)
    elif isinstance(config, CLIPVision | DPT):
        example = (jnp.zeros((1, config.size, config.size, config.channels)),)
    elif isinstance(config, LatentUNet):
        example, more = _example(config)
    elif isinstance(config, MotionAdapter):
        example = ({name: jnp.zeros((1, 1, 1, 1, width)) for name, width in config.places.items()},)
    elif isinstance(config, ControlNet | SparseControlNet):
        example, more = _example(config.unet)
        side = config.factor * example[0].shape[2]
        example, more = (*example, jnp.zeros((1, 1, side, side, config.hint_channels))), {"classes": more["classes"]}
    elif isinstance(config, ImagePromptAdapter):
        example = (jnp.zeros((1, 1, 1, config.projection.width)),)
    elif isinstance(config, T2IAdapter):
        example = (jnp.zeros((1, 1, config.factor, config.factor, config.hint_channels)),)
    elif isinstance(config, VideoTransformer):
        example = transformer.example(config)
    elif isinstance(config, CLIPText | LlamaText | T5Encoder):
        example = (jnp.zeros((1, 2), int),)
    else:
        raise unknown_kind("a model", config, Config)
    return flatten(jax.eval_shape(lambda: module(config).init(jax.random.key(0), *example, **more))["params"])


def _example(config: LatentUNet) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs of a U-Net."""
    side, frames = 2 ** (len(config.widths) - 1), config.mix_frames or 1
    inputs = (jnp.zeros((1, frames, side, side, config.in_channels)), jnp.zeros(1),
              jnp.zeros((1, 1, 1, config.token_channels)) if config.token_channels else None)
    conditioning_latents = jnp.zeros((1, frames, side, side,
                                      config.conditioning_channels)) if config.conditioning_channels else None
    return inputs, {"scalars": jnp.zeros((1, config.scalars)) if config.scalars else None,
                    "weight": jnp.zeros(1) if config.weight_channels else None,
                    "classes": jnp.zeros(1, int) if config.classes else None,
                    "conditioning_latents": conditioning_latents}


def parameters(config: Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensor of every parameter of a config as it is stored elsewhere."""
    table = names(config)
    return {tensor_names.their_name(inner, table): tensor_names.their_shape(inner, shape, table)
            for path, leaf in shapes(config).items() for inner, shape in tensor_names.layers(path, leaf.shape, table)}


def constants(config: Config) -> dict[str, np.ndarray]:
    """Name -> tensors that are stored elsewhere next to the parameters, and computed here."""
    motion = getattr(config, "motion", None)
    return video.frame_codes(motion, parameters(config)) if motion else {}


def check_constants(config: Config, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises `UserError` for a file that has other constants."""
    if motion := getattr(config, "motion", None):
        video.check_frame_codes(motion, tensors, where)


def inventory(config: Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a config as it is stored elsewhere."""
    return parameters(config) | {name: value.shape for name, value in constants(config).items()}


def _read_autoencoder(fields: Fields, temporal: bool) -> Autoencoder:
    widths = fields.get("block_out_channels", None)
    fields.require(act_fn="silu", latents_mean=None, latents_std=None,
                   down_block_types=["DownEncoderBlock2D"] * len(widths))
    if not temporal:
        fields.require(up_block_types=["UpDecoderBlock2D"] * len(widths))
    channels = fields.get("in_channels", 3)
    fields.require(out_channels=channels)
    return Autoencoder(
        channels=channels, widths=widths, blocks=fields.get("layers_per_block", 1),
        latent_channels=fields.get("latent_channels", 4), groups=32 if temporal else fields.get("norm_num_groups", 32),
        scale=fields.get("scaling_factor", 0.18215), shift=fields.get("shift_factor", 0.0),
        quant=temporal or fields.get("use_quant_conv", True),
        post_quant=not temporal and fields.get("use_post_quant_conv", True),
        middle_attention=temporal or fields.get("mid_block_add_attention", True),
        decoder="temporal" if temporal else "frames")


def _write_autoencoder(config: Autoencoder) -> dict[str, Any]:
    levels = len(config.widths)
    fields = {
        "in_channels": config.channels, "out_channels": config.channels, "block_out_channels": list(config.widths),
        "down_block_types": ["DownEncoderBlock2D"] * levels, "layers_per_block": config.blocks,
        "latent_channels": config.latent_channels, "scaling_factor": config.scale}
    if config.decoder == "temporal":
        return fields
    return fields | {
        "up_block_types": ["UpDecoderBlock2D"] * levels, "act_fn": "silu", "norm_num_groups": config.groups,
        "shift_factor": config.shift or None, "use_quant_conv": config.quant, "use_post_quant_conv": config.post_quant,
        "mid_block_add_attention": config.middle_attention}


def _read_text(fields: Fields, project: bool) -> CLIPText:
    return CLIPText(
        vocabulary=fields.get("vocab_size", 49408), length=fields.get("max_position_embeddings", 77),
        width=fields.get("hidden_size", 512), layers=fields.get("num_hidden_layers", 12),
        heads=fields.get("num_attention_heads", 8), hidden=fields.get("intermediate_size", 2048),
        activation=fields.get("hidden_act", "quick_gelu"), epsilon=fields.get("layer_norm_eps", 1e-5),
        project=fields.get("projection_dim", 512) if project else 0, end_token=fields.get("eos_token_id", 49407))


def _write_text(config: CLIPText) -> dict[str, Any]:
    return {"model_type": "clip_text_model", "vocab_size": config.vocabulary, "max_position_embeddings": config.length,
            "hidden_size": config.width, "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
            "intermediate_size": config.hidden, "hidden_act": config.activation, "layer_norm_eps": config.epsilon,
            "projection_dim": config.project or config.width, "eos_token_id": config.end_token}


def _read_vision(fields: Fields, project: bool) -> CLIPVision:
    return CLIPVision(
        size=fields.get("image_size", 224), patch=fields.get("patch_size", 32), channels=fields.get("num_channels", 3),
        width=fields.get("hidden_size", 768), layers=fields.get("num_hidden_layers", 12),
        heads=fields.get("num_attention_heads", 12), hidden=fields.get("intermediate_size", 3072),
        activation=fields.get("hidden_act", "quick_gelu"), epsilon=fields.get("layer_norm_eps", 1e-5),
        project=fields.get("projection_dim", 512) if project else 0)


def _write_vision(config: CLIPVision) -> dict[str, Any]:
    return {"model_type": "clip_vision_model", "image_size": config.size, "patch_size": config.patch,
            "num_channels": config.channels, "hidden_size": config.width, "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads, "intermediate_size": config.hidden, "hidden_act": config.activation,
            "layer_norm_eps": config.epsilon, "projection_dim": config.project or config.width}


# What the classes take where `config.json` says nothing.
T5_SIZES = {"vocab_size": 32128, "d_model": 512, "num_layers": 6, "num_heads": 8, "d_ff": 2048,
            "feed_forward_proj": "relu"}
UMT5_SIZES = {"vocab_size": 250112, "d_model": 512, "num_layers": 8, "num_heads": 6, "d_ff": 1024,
              "feed_forward_proj": "gated-gelu"}


def _read_t5(fields: Fields, umt5: bool) -> T5Encoder:
    default = UMT5_SIZES if umt5 else T5_SIZES
    sizes = {name: fields.get(name, value) for name, value in default.items()}
    *gate, activation = sizes["feed_forward_proj"].split("-")
    if gate not in ([], ["gated"]):
        raise UserError(f"{fields.where}: feed_forward_proj={fields.data['feed_forward_proj']!r} is not supported; "
                        "permitted: an activation, or one after 'gated-'")
    return T5Encoder(
        vocabulary=sizes["vocab_size"], width=sizes["d_model"], layers=sizes["num_layers"], heads=sizes["num_heads"],
        head_dim=fields.get("d_kv", 64), hidden=sizes["d_ff"], gated=bool(gate), offsets_per_layer=umt5,
        # The class reads "gated-gelu" as the tanh form, which the weights were trained with.
        activation="gelu_new" if gate and activation == "gelu" else activation,
        buckets=fields.get("relative_attention_num_buckets", 32),
        bucket_distance=fields.get("relative_attention_max_distance", 128),
        epsilon=fields.get("layer_norm_epsilon", 1e-6))


def _write_t5(config: T5Encoder) -> dict[str, Any]:
    activation = "gelu" if config.gated and config.activation == "gelu_new" else config.activation
    return {"model_type": "umt5" if config.offsets_per_layer else "t5",
            "vocab_size": config.vocabulary, "d_model": config.width, "num_layers": config.layers,
            "num_heads": config.heads, "d_kv": config.head_dim, "d_ff": config.hidden,
            "feed_forward_proj": f"gated-{activation}" if config.gated else activation,
            "relative_attention_num_buckets": config.buckets, "layer_norm_epsilon": config.epsilon,
            "relative_attention_max_distance": config.bucket_distance, "is_encoder_decoder": False, "use_cache": False}


_DIFFUSERS, _TRANSFORMERS = "diffusion_pytorch_model", "model"
KINDS = (
    Kind("AutoencoderKL", Autoencoder, _DIFFUSERS, lambda f: _read_autoencoder(f, False), _write_autoencoder,
         lambda c: c.decoder == "frames" and not c.ours_alone),
    Kind("AutoencoderKLTemporalDecoder", Autoencoder, _DIFFUSERS, lambda f: _read_autoencoder(f, True),
         _write_autoencoder, lambda c: c.decoder == "temporal"),
    Kind("AutoencoderKLWan", CausalAutoencoder, _DIFFUSERS, causal.read_causal, causal.write_causal, causal.accepts),
    Kind("AutoencoderKLCogVideoX", PiecewiseAutoencoder, _DIFFUSERS, piecewise.read_piecewise,
         piecewise.write_piecewise, piecewise.accepts),
    Kind("AutoencoderKLHunyuanVideo", HunyuanAutoencoder, _DIFFUSERS, hunyuan_autoencoders.read_hunyuan_autoencoder,
         hunyuan_autoencoders.write_hunyuan_autoencoder, hunyuan_autoencoders.accepts),
    Kind("AutoencoderKLLTXVideo", LTXAutoencoder, _DIFFUSERS, ltx.read_ltx, ltx.write_ltx, ltx.accepts),
    Kind("UNet2DConditionModel", LatentUNet, _DIFFUSERS, image.read_image_unet, image.image_fields,
         lambda c: not c.video),
    Kind("UNetSpatioTemporalConditionModel", LatentUNet, _DIFFUSERS, image.read_video_unet, image.write_video_unet,
         lambda c: c.temporal),
    Kind("UNet3DConditionModel", LatentUNet, _DIFFUSERS, video.read_stack_unet, video.write_stack_unet,
         lambda c: c.temporal_conv is not None or (c.temporal_attention and not c.temporal_rank)),
    Kind("UNetMotionModel", LatentUNet, _DIFFUSERS, video.read_motion_unet, video.write_motion_unet,
         lambda c: c.motion is not None),
    Kind("MotionAdapter", MotionAdapter, _DIFFUSERS, video.read_adapter, video.write_adapter),
    Kind("ControlNetModel", ControlNet, _DIFFUSERS, video.read_control, video.write_control),
    Kind("SparseControlNetModel", SparseControlNet, _DIFFUSERS, video.read_sparse, video.write_sparse),
    Kind("T2IAdapter", T2IAdapter, _DIFFUSERS, video.read_t2i_adapter, video.write_t2i_adapter),
    Kind("CLIPTextModel", CLIPText, _TRANSFORMERS, lambda f: _read_text(f, False), _write_text,
         lambda c: not c.project),
    Kind("CLIPTextModelWithProjection", CLIPText, _TRANSFORMERS, lambda f: _read_text(f, True), _write_text,
         lambda c: bool(c.project)),
    Kind("LlamaModel", LlamaText, _TRANSFORMERS, llama_fields.read_llama, llama_fields.write_llama,
         llama_fields.accepts, ("LlamaForCausalLM",)),
    Kind("CLIPVisionModel", CLIPVision, _TRANSFORMERS, lambda f: _read_vision(f, False), _write_vision,
         lambda c: not c.project),
    Kind("CLIPVisionModelWithProjection", CLIPVision, _TRANSFORMERS, lambda f: _read_vision(f, True), _write_vision,
         lambda c: bool(c.project)),
    Kind("DPTForDepthEstimation", DPT, _TRANSFORMERS, dpt_fields.read_dpt, dpt_fields.write_dpt),
    Kind("WanTransformer3DModel", VideoTransformer, _DIFFUSERS, transformer.read_wan, transformer.write_wan,
         transformer.is_wan),
    Kind("CogVideoXTransformer3DModel", VideoTransformer, _DIFFUSERS, cogvideox.read_cogvideox,
         cogvideox.write_cogvideox, cogvideox.is_cogvideox),
    Kind("LTXVideoTransformer3DModel", VideoTransformer, _DIFFUSERS, ltx_transformer.read_ltx,
         ltx_transformer.write_ltx, ltx_transformer.is_ltx),
    Kind("HunyuanVideoTransformer3DModel", VideoTransformer, _DIFFUSERS, hunyuan.read_hunyuan, hunyuan.write_hunyuan,
         hunyuan.is_hunyuan),
    Kind("T5EncoderModel", T5Encoder, _TRANSFORMERS, lambda f: _read_t5(f, False), _write_t5,
         lambda c: not c.offsets_per_layer, also=("T5ForConditionalGeneration",)),
    Kind("UMT5EncoderModel", T5Encoder, _TRANSFORMERS, lambda f: _read_t5(f, True), _write_t5,
         lambda c: c.offsets_per_layer, also=("UMT5ForConditionalGeneration",)),
)


def kind_of(config: Config) -> Kind:
    """The class elsewhere that a config of ours is. Raises `UserError` for one that none is."""
    for kind in KINDS:
        if isinstance(config, kind.config) and kind.accepts(config):
            return kind
    raise UserError(f"{type(config).__name__} with layers that the other libraries do not have (temporal_kernel, "
                    "temporal_attention, temporal_rank, directed, layout='clip', max_relative_position); permitted: "
                    "a file in our own layout (.safetensors)")


def kind_named(name: str, where: str, wanted: type | None = None) -> Kind:
    """The model of a class name. Raises `UserError` for one we do not have, or that is not a `wanted` config."""
    permitted = [kind for kind in KINDS if wanted is None or kind.config is wanted]
    for kind in permitted:
        if name == kind.name or name in kind.also:
            return kind
    raise UserError(f"{where} holds a {name}; permitted: {', '.join(kind.name for kind in permitted)}")
