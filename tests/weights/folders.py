"""Small models' folders as their authors write them, and recorded lists of tensors of the full-size ones."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import safetensors.numpy

from vdm_jax.conditions.inputs import Input
from vdm_jax.conditions.text import EmbeddedText
from vdm_jax.networks.autoencoders.causal_config import CausalAutoencoder
from vdm_jax.networks.autoencoders.config import Autoencoder
from vdm_jax.networks.autoencoders.hunyuan import HunyuanAutoencoder
from vdm_jax.networks.autoencoders.ltx_config import LTXAutoencoder
from vdm_jax.networks.autoencoders.piecewise import PiecewiseAutoencoder
from vdm_jax.networks.bit import BiT
from vdm_jax.networks.control_net import ControlNet
from vdm_jax.networks.dpt import DPT
from vdm_jax.networks.encoders.clip_text import CLIPText
from vdm_jax.networks.encoders.clip_vision import CLIPVision
from vdm_jax.networks.encoders.llama import LlamaText
from vdm_jax.networks.encoders.t5 import T5Encoder
from vdm_jax.networks.latent_frames import Motion, TemporalConv
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.networks.motion_adapter import MotionAdapter
from vdm_jax.networks.sparse_control import SparseControlNet
from vdm_jax.networks.transformer.config import wan, wan_image_tokens
from vdm_jax.weights import model_kinds
from vdm_jax.weights.unet_fields import VIDEO_EPSILONS

IMAGE_UNET = LatentUNet(widths=(4, 8), blocks=1, attention=(True, False), heads=(1, 2),
                        only_cross_attention=(False, False), token_channels=6, groups=2)
MOTION = Motion(heads=2, frames=5, groups=2)
SMALL = {
    "vae": Autoencoder(widths=(4, 8), blocks=1, groups=2, latent_channels=2),
    "video_vae": Autoencoder(widths=(32, 64), blocks=1, decoder="temporal", post_quant=False),
    "causal_vae": CausalAutoencoder(widths=(4, 8), blocks=1, halve_frames=(True,), latent_channels=2, mean=(0.5, -1.0),
                                    std=(2.0, 1.5)),
    "causal_vae_residual": CausalAutoencoder(widths=(4, 4), decoder_widths=(6, 6), blocks=1, halve_frames=(True,),
                                             latent_channels=1, mean=(0.5,), std=(2.0,), patch=2, shortcuts=True),
    "piecewise_vae": PiecewiseAutoencoder(widths=(4, 8), blocks=1, groups=2, latent_channels=2, time_factor=2,
                                          scale=0.7),
    "hunyuan_vae": HunyuanAutoencoder(widths=(2, 4, 4), blocks=1, groups=2, latent_channels=2),
    "ltx_vae": LTXAutoencoder(widths=(4, 8), out_width=8, blocks=(1,) * 3, shrink=("conv", "none"), latent_channels=2,
                              decoder_widths=(4, 8), decoder_blocks=(1,) * 3, grow=(True, False), noise=(False,) * 3),
    "ltx_vae_timed": LTXAutoencoder(widths=(4,), out_width=8, blocks=(1,) * 2, shrink=("both",), latent_channels=2,
                                    decoder_widths=(8,), decoder_blocks=(1,) * 2, grow=(True,), noise=(True, False),
                                    narrowing=2, shortcuts=True, timed=True),
    "text": CLIPText(vocabulary=20, length=8, width=8, layers=2, heads=2, hidden=16, end_token=19),
    "text_projected": CLIPText(vocabulary=20, length=8, width=8, layers=1, heads=2, hidden=16, project=6),
    "vision": CLIPVision(size=8, patch=4, width=8, layers=1, heads=2, hidden=16, project=6),
    "depth": DPT(size=16, patch=8, width=8, layers=3, heads=2, hidden=16, taps=(0, 2), factors=(2.0, 0.5),
                 widths=(4, 6), fusion=4),
    "depth_hybrid": DPT(size=32, width=8, layers=2, heads=2, hidden=16, taps=(1,), factors=(0.5,), widths=(4,),
                        fusion=4, backbone=BiT(stem=4, widths=(32, 32, 32), blocks=(1, 2, 1), groups=2)),
    "llama": LlamaText(vocabulary=20, width=8, layers=3, heads=2, key_heads=1, head_dim=4, hidden=16),
    "t5": T5Encoder(vocabulary=20, width=8, layers=2, heads=2, head_dim=6, hidden=16),
    "t5_without_gate": T5Encoder(vocabulary=20, width=8, layers=1, heads=2, hidden=16, gated=False, activation="relu"),
    "umt5": T5Encoder(vocabulary=20, width=8, layers=2, heads=2, head_dim=6, hidden=16, offsets_per_layer=True),
    "unet": LatentUNet(widths=(4, 8), blocks=1, attention=(True, False), heads=(1, 2),
                       only_cross_attention=(True, False), token_channels=6, groups=2, classes=5),
    "stack_unet": dataclasses.replace(IMAGE_UNET, use_linear_projection=True, temporal_conv=TemporalConv()),
    "motion_unet": dataclasses.replace(IMAGE_UNET, motion=MOTION),
    "motion_adapter": MotionAdapter(widths=(4, 8), blocks=1, motion=dataclasses.replace(MOTION, middle=False)),
    "transformer": wan(width=16, heads=2, hidden=12, layers=3, text=EmbeddedText(width=6), out_channels=2,
                       level_channels=8),
    "image_transformer": wan_image_tokens(
        width=12, heads=2, hidden=8, layers=2, text=EmbeddedText(width=6), out_channels=2, level_channels=8,
        conditions=(Input(name="image_tokens", width=5),), image_places=4),
    "sparse_control": SparseControlNet(channels=2, unet=dataclasses.replace(IMAGE_UNET, motion=dataclasses.replace(
        MOTION, middle=False, attentions=1))),
    "control_net": ControlNet(unet=IMAGE_UNET, hint_widths=(2, 4)),
    "video_unet": LatentUNet(in_channels=8, widths=(32, 64), blocks=1, attention=(True, False), heads=(2, 4),
                             only_cross_attention=(False, False), token_channels=6, use_linear_projection=True,
                             scalars=3, scalar_channels=8, temporal=True, epsilons=VIDEO_EPSILONS),
}


def recorded(name: str) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of a file in `inventories/`, whose `{a..b}` stand for layers a to b."""
    tensors = {}
    for line in (Path(__file__).parent / "inventories" / f"{name}.txt").read_text().splitlines():
        tensor, shape = line.split("\t")
        layers = re.search(r"\{(\d+)\.\.(\d+)\}", tensor)
        for i in range(int(layers[1]), int(layers[2]) + 1) if layers else [None]:
            tensors[tensor if i is None else tensor.replace(layers[0], str(i))] = ast.literal_eval(shape)
    return tensors


def tensors_of(config, dtype="float32", seed=0) -> dict[str, np.ndarray]:
    """Random tensors in the other layout."""
    rng = np.random.default_rng(seed)
    tensors = {name: rng.normal(size=shape) for name, shape in model_kinds.parameters(config).items()}
    return {name: value.astype(dtype) for name, value in {**tensors, **model_kinds.constants(config)}.items()}


def write(folder: Path, config, tensors, *, shards=1, variant="", fields=None) -> Path:
    """A folder as diffusers and transformers write it, by the safetensors library."""
    kind = model_kinds.kind_of(config)
    folder.mkdir(parents=True)
    own = {"_class_name": kind.name} if kind.stem.startswith("diff") else {"architectures": [kind.name]}
    (folder / "config.json").write_text(json.dumps({**kind.write(config), **own, **(fields or {})}))
    if shards == 1:
        safetensors.numpy.save_file(tensors, folder / f"{kind.stem}{variant}.safetensors", {"format": "pt"})
        return folder
    weight_map = {}
    for i in range(shards):
        file = f"{kind.stem}-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[i::shards]}
        safetensors.numpy.save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{kind.stem}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
