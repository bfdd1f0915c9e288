"""Folders of tiny pipelines with random weights, as diffusers writes them."""

from __future__ import annotations

import json

import numpy as np

from tests.weights.folders import tensors_of, write
from tests.weights.test_tokenizers import write_clip, write_t5
from vdm_jax.networks.autoencoders.config import Autoencoder
from vdm_jax.networks.control_net import ControlNet
from vdm_jax.networks.encoders.clip_text import CLIPText
from vdm_jax.networks.encoders.clip_vision import CLIPVision
from vdm_jax.networks.encoders.t5 import T5Encoder
from vdm_jax.networks.latent_frames import Motion
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.networks.motion_adapter import MotionAdapter
from vdm_jax.networks.t2i_adapter import T2IAdapter
from vdm_jax.weights.model_kinds import kind_of
from vdm_jax.weights.unet_fields import VIDEO_EPSILONS

STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
VIDEO = {**STABLE, "_class_name": "EulerDiscreteScheduler", "prediction_type": "v_prediction", "sigma_max": 700.0,
         "sigma_min": 0.002, "timestep_spacing": "leading", "timestep_type": "continuous", "use_karras_sigmas": True}
DDIM = {**STABLE, "_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


def write_pipeline(folder, kind, parts, scheduler, fields):
    """A pipeline's folder; parts by name, with further fields of their `config.json`."""
    library = {"text_encoder": "transformers", "image_encoder": "transformers"}
    index = {"_class_name": kind, "scheduler": ["diffusers", scheduler["_class_name"]]}
    for seed, (name, config) in enumerate(parts.items()):
        tensors = {key: np.asarray(0.2 * tensor) for key, tensor in tensors_of(config, seed=seed).items()}
        write(folder / name, config, tensors, fields=fields.get(name))
        index[name] = [library.get(name, "diffusers"), kind_of(config).name]
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    if "text_encoder" in parts:
        index["tokenizer"] = ["transformers", "CLIPTokenizer"]
        index["safety_checker"] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_pictures(folder, **scheduler):
    """Like Stable Diffusion, for pictures of 16 x 16 pixels."""
    vocabulary = write_clip(folder / "tokenizer", length=6)
    unet = LatentUNet(widths=(8, 8), blocks=1, attention=(False, True), heads=(2, 2),
                      only_cross_attention=(False, False), token_channels=8, groups=2)
    parts = {"unet": unet, "vae": Autoencoder(widths=(4, 4), blocks=1, groups=2),
             "text_encoder": CLIPText(vocabulary=len(vocabulary), length=6, width=8, layers=1, heads=2, hidden=16)}
    return write_pipeline(folder, "StableDiffusionPipeline", parts, {**DDIM, **scheduler},
                          {"unet": {"sample_size": 8}})


def write_control(folder):
    """Like Stable Diffusion with a ControlNet."""
    write_pictures(folder)
    unet = LatentUNet(widths=(8, 8), blocks=1, attention=(False, True), heads=(2, 2),
                      only_cross_attention=(False, False), token_channels=8, groups=2)
    control = ControlNet(unet=unet, hint_widths=(2, 4))
    write(folder / "controlnet", control, tensors_of(control, seed=5))
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "StableDiffusionControlNetPipeline", "controlnet": ["diffusers", "ControlNetModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_branches(folder, kind, part, several, configs):
    """A folder that has a pipeline's networks, with ControlNets or T2I-Adapters of these configs."""
    for number, config in enumerate(configs):
        write(folder / (f"{part}_{number}" if number else part), config, tensors_of(config, seed=5 + number))
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": kind, part: ["diffusers", several if len(configs) > 1 else kind_of(configs[0]).name]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_controls(folder, kind="StableDiffusionControlNetPipeline", nets=2):
    """Like Stable Diffusion or AnimateDiff with ControlNets."""
    (write_motion if kind.startswith("AnimateDiff") else write_pictures)(folder)
    unet = LatentUNet(widths=(8, 8), blocks=1, attention=(False, True), heads=(2, 2),
                      only_cross_attention=(False, False), token_channels=8, groups=2)
    return write_branches(folder, kind, "controlnet", "MultiControlNetModel",
                          [ControlNet(unet=unet, hint_widths=(2, 4))] * nets)


def write_adapters(folder, nets=1):
    """Like Stable Diffusion with T2I-Adapters."""
    return write_branches(write_pictures(folder), "StableDiffusionAdapterPipeline", "adapter", "MultiAdapter",
                          [T2IAdapter(widths=(8, 8), blocks=1, factor=2)] * nets)


def write_videos(folder):
    """Like Stable Video Diffusion."""
    unet = LatentUNet(in_channels=8, widths=(64,), blocks=1, attention=(True,), heads=(2,),
                      only_cross_attention=(False,),
                      token_channels=6, use_linear_projection=True, scalars=3, scalar_channels=8, temporal=True,
                      epsilons=VIDEO_EPSILONS)
    parts = {"unet": unet, "vae": Autoencoder(widths=(32, 32), blocks=1, decoder="temporal", post_quant=False),
             "image_encoder": CLIPVision(size=8, patch=4, width=8, layers=1, heads=2, hidden=16, project=6)}
    return write_pipeline(folder, "StableVideoDiffusionPipeline", parts, VIDEO, {"unet": {"num_frames": 3}})


def write_motion(folder, groups=2):
    """Like AnimateDiff, with an image network and motion modules, of so many norm groups, in folders of their own."""
    write_pictures(folder)
    adapter = MotionAdapter(widths=(8, 8), blocks=1, motion=Motion(heads=2, groups=groups, frames=4))
    write(folder / "motion_adapter", adapter, tensors_of(adapter))
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "AnimateDiffPipeline", "motion_adapter": ["diffusers", "MotionAdapter"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_with_t5(folder, kind, transformer, vae, scheduler):
    """A transformer with texts of T5, whose width is 8, such as LTX-Video."""
    (folder / "tokenizer").mkdir(parents=True)
    write_t5(folder / "tokenizer")
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    text = T5Encoder(vocabulary=128, width=8, layers=1, heads=2, head_dim=6, hidden=16)
    write_pipeline(folder, kind, {"transformer": transformer, "vae": vae, "text_encoder": text}, scheduler, {})
    index = json.loads((folder / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "T5TokenizerFast"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
