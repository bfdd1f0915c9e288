"""Pipelines of Wan as experiments of one stage: a transformer, or two experts by noise level, over causal latents."""

from __future__ import annotations

import dataclasses
from typing import Any

from vdm_jax.conditions.frame_masks import FrameMask, NoMask
from vdm_jax.conditions.text import EmbeddedText
from vdm_jax.errors import UserError
from vdm_jax.generation.released.folder import Folder
from vdm_jax.generation.released.schedulers import Scheduler
from vdm_jax.networks.autoencoders.causal_config import CausalAutoencoder
from vdm_jax.networks.encoders.clip_vision import CLIPVision
from vdm_jax.networks.encoders.t5 import T5Encoder
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Training
from vdm_jax.stages.stage import Stage, VideoSpec
from vdm_jax.weights.pretrained import Pretrained

IMAGE_TO_VIDEO = "WanImageToVideoPipeline"
PIPELINES = ("WanPipeline", IMAGE_TO_VIDEO)
FIRST, SECOND = "transformer", "transformer_2"  # that for much noise, where there are two
# What the authors sample with: frames, frames per second, height and width, steps, scale s = 1 + w of the guidance, and
# that of the expert for much noise
WAN21, WAN22, WAN22_5B = ((81, 16.0, 480, 832, 50, 5.0, None), (81, 16.0, 480, 832, 40, 3.0, 4.0),
                          (121, 24.0, 704, 1280, 50, 5.0, None))
# From pictures: Wan 2.1 of the first frame, of first and last frame, and Wan 2.2
WAN21_IMAGE, WAN21_FRAMES, WAN22_IMAGE = (
    (81, 16.0, 480, 832, 40, 5.0, None), (81, 16.0, 720, 1280, 50, 5.0, None), (81, 16.0, 480, 832, 40, 3.5, 3.5))
ENCODED = 4  # latents of a piece of a clip that is encoded: the same result in less memory
CHANNELS_5B = 48  # of latents, by which the 5B model of Wan 2.2 is known
MASKED_LENGTH = 128  # tokens of a text at most, where the network takes any number of them: those of LTX-Video


def networks_of(folder: Folder, weights: bool = True) -> dict[str, Pretrained]:
    """The networks by the names of their folders. Raises `UserError` for parts that are missing or do not fit."""
    found = {part: folder.model(part, wanted, weights) for part, wanted in (
        (FIRST, VideoTransformer), ("vae", CausalAutoencoder), ("text_encoder", T5Encoder))}
    if folder.holds(SECOND):
        found[SECOND] = folder.model(SECOND, VideoTransformer, weights)
    network, vae, text = (found[part].config for part in (FIRST, "vae", "text_encoder"))
    wanted = {"out_channels": vae.latent_channels, "text": EmbeddedText(width=text.width), "conditions": ()}
    if folder.kind == IMAGE_TO_VIDEO and not folder.index.get("expand_timesteps"):
        wanted |= {"frame_conditioning": "channels", "mask_channels": vae.time_factor}
        if network.image_tokens is not None:
            found["image_encoder"] = folder.model("image_encoder", CLIPVision, weights)
            width = found["image_encoder"].config.width
            wanted["conditions"] = (dataclasses.replace(network.image_tokens, width=width),)
    else:
        wanted["frame_conditioning"] = "none"
    for name, value in wanted.items():
        if getattr(network, name) != value:
            raise UserError(f"{folder.path / FIRST}: {name}={getattr(network, name)}; permitted with the other parts "
                            f"of {folder.kind}: {value}")
    if SECOND in found and found[SECOND].config != network:
        raise UserError(f"{folder.path / SECOND} is another network than {FIRST}/; permitted: two of the same sizes")
    return found


def text_length(networks: dict[str, Pretrained]) -> int:
    """Tokens of a text at most, of a pipeline with a transformer."""
    return networks[FIRST].config.text_length or MASKED_LENGTH


def network_of(folder: Folder, networks: dict[str, Pretrained]) -> VideoTransformer:
    """The network of the stage. Raises `UserError` for two experts without a boundary."""
    network, boundary = networks[FIRST].config, folder.index.get("boundary_ratio")
    if SECOND in networks:
        if not isinstance(boundary, float):
            raise UserError(f"{folder.path}: boundary_ratio={boundary!r} with {SECOND}/; permitted: a number between 0 "
                            "and 1")
        return dataclasses.replace(network, boundary=boundary)
    if folder.index.get("expand_timesteps"):
        return dataclasses.replace(network, frame_conditioning="in_place")
    return network


def parameters_of(networks: dict[str, Pretrained]) -> dict[str, Any]:
    """Of the stage's network: the transformer's, or those of both experts."""
    if SECOND in networks:
        return {"high": networks[FIRST].params, "low": networks[SECOND].params}
    return networks[FIRST].params


def usual(networks: dict[str, Pretrained]) -> tuple[int, float, int, int, int, float, float | None]:
    """What the authors of a model sample with, as `WAN21` has it."""
    if networks["vae"].config.latent_channels == CHANNELS_5B:
        return WAN22_5B
    if (network := networks[FIRST].config).masks_frames:
        return WAN22_IMAGE if SECOND in networks else WAN21_FRAMES if network.image_places else WAN21_IMAGE
    return WAN22 if SECOND in networks else WAN21


def stage_of(folder: Folder, networks: dict[str, Pretrained], scheduler: Scheduler | None = None) -> Stage:
    """The stage that a pipeline is, sampled as its authors do; the shift is that of the scheduler's file."""
    scheduler, network = scheduler or folder.scheduler(), network_of(folder, networks)
    if scheduler.flow is None:
        raise UserError(f"{folder.path}: scheduler={scheduler.name} without flow sigmas; permitted: those of flow "
                        "matching, UniPCMultistepScheduler with use_flow_sigmas or FlowMatchEulerDiscreteScheduler")
    frames, fps, height, width, steps, scale, high = usual(networks)
    shown = (FrameMask(first=1), NoMask()) if network.in_place else (FrameMask(first=1), FrameMask(first=1, last=1))
    training = Training(masking=shown) if network.conditioning_frames else Training()
    vae = networks["vae"].config
    pieces = ENCODED * vae.time_factor if network.masks_frames else None  # of the clip that is grey but for pictures
    return Stage(
        name="video", video=VideoSpec(frames=frames, height=height, width=width, fps=fps),
        latent=Latent(autoencoder=vae, encode_frames=pieces), network=network, process=scheduler.process,
        training=training,
        sampling=scheduler.sampling(steps=steps, guidance=scale - 1,
                                    high_noise_guidance=None if high is None else high - 1))
