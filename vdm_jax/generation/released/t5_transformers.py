"""Pipelines of one video transformer and texts of T5 as experiments of one stage: CogVideoX (Yang et al. 2024, arXiv
2408.06072) and LTX-Video (HaCohen et al. 2024, arXiv 2501.00103)."""

from __future__ import annotations

import dataclasses
from typing import Any

from vdm_jax.conditions.frame_masks import FrameMask, NoMask
from vdm_jax.conditions.text import EmbeddedText
from vdm_jax.diffusion.scheduler_steps import COGVIDEOX as COGVIDEOX_SCHEDULERS
from vdm_jax.errors import UserError
from vdm_jax.generation.released.folder import Folder
from vdm_jax.generation.released.kinds import Kind
from vdm_jax.generation.released.schedulers import Scheduler
from vdm_jax.generation.released.transformers import ENCODED, FIRST
from vdm_jax.networks.autoencoders.ltx_config import LTXAutoencoder
from vdm_jax.networks.autoencoders.piecewise import PiecewiseAutoencoder
from vdm_jax.networks.encoders.t5 import T5Encoder
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Stage, VideoSpec
from vdm_jax.weights.model_kinds import kind_of
from vdm_jax.weights.pretrained import Pretrained

COGVIDEOX, LTX, LTX_IMAGE = "CogVideoXPipeline", "LTXPipeline", "LTXImageToVideoPipeline"
# Class of a pipeline -> class of its transformer, and its autoencoder
PIPELINES: dict[str, tuple[str, type]] = {
    COGVIDEOX: ("CogVideoXTransformer3DModel", PiecewiseAutoencoder),
    **dict.fromkeys((LTX, LTX_IMAGE), ("LTXVideoTransformer3DModel", LTXAutoencoder))}
# CogVideoX1.5
LARGER: dict[str, Any] = {"frames": 81, "fps": 16.0, "size": (768, 1360)}


def networks_of(folder: Folder, weights: bool = True) -> dict[str, Pretrained]:
    """The networks by the names of their folders. Raises `UserError` for parts that are missing or do not fit."""
    name, autoencoder = PIPELINES[folder.kind]
    found = {part: folder.model(part, wanted, weights) for part, wanted in (
        (FIRST, VideoTransformer), ("vae", autoencoder), ("text_encoder", T5Encoder))}
    network, vae, text = (found[part].config for part in (FIRST, "vae", "text_encoder"))
    if kind_of(network).name != name:
        raise UserError(f"{folder.path / FIRST} is a {kind_of(network).name}; permitted with {folder.kind}: {name}")
    for field, value in (("out_channels", vae.latent_channels), ("text", EmbeddedText(width=text.width))):
        if getattr(network, field) != value:
            raise UserError(f"{folder.path / FIRST}: {field}={getattr(network, field)}; permitted with the other parts "
                            f"of {folder.kind}: {value}")
    return found


def stage_of(folder: Folder, networks: dict[str, Pretrained], scheduler: Scheduler | None, kind: Kind) -> Stage:
    """The stage that a pipeline is, sampled as its authors do. Raises `UserError` for a scheduler of another noise."""
    scheduler, network = scheduler or folder.scheduler(), networks[FIRST].config
    kind = kind._replace(**LARGER) if network.patch[0] > 1 else kind
    video = VideoSpec(frames=kind.frames, height=kind.size[0], width=kind.size[1], fps=kind.fps)
    # A token of CogVideoX1.5 is of two latents, whose number is odd
    latent = Latent(autoencoder=networks["vae"].config, ahead=network.patch[0] - 1)
    if folder.kind != COGVIDEOX:
        network = _placed(network, latent, kind.fps)
    elif scheduler.name in COGVIDEOX_SCHEDULERS:
        network = dataclasses.replace(network, timesteps=scheduler.schedule)
    stage = Stage(name=kind.stage, video=video, latent=latent, network=network, process=scheduler.process,
                  sampling=_sampling(folder, scheduler, kind))
    return begun(stage) if folder.kind == LTX_IMAGE else stage


def begun(stage: Stage) -> Stage:
    """The stage of LTX-Video with a first frame that may be given: its latents stand in the place of noisy ones, and
    their tokens have the timestep 0."""
    network = dataclasses.replace(stage.network, frame_conditioning="in_place")
    # Of a clip that is grey but for the first frame
    latent = dataclasses.replace(stage.latent, encode_frames=ENCODED * stage.latent.frame_factor)
    return dataclasses.replace(stage, network=network, latent=latent, training=dataclasses.replace(
        stage.training, masking=(FrameMask(first=1), NoMask())))


def _sampling(folder: Folder, scheduler: Scheduler, kind: Kind) -> Sampling:
    """How the stage is sampled. Only the schedulers of CogVideoX know of its noise."""
    if folder.kind != COGVIDEOX:
        return flow_sampling(folder, scheduler, kind)
    if scheduler.name not in COGVIDEOX_SCHEDULERS:
        raise UserError(f"{folder.path}: scheduler={scheduler.name} of another noise than CogVideoX was trained "
                        f"with; permitted: {', '.join(COGVIDEOX_SCHEDULERS)} (cogvideox_ddim, cogvideox_dpm)")
    return scheduler.sampling(steps=kind.steps, guidance=kind.guidance_scale[0] - 1)


def flow_sampling(folder: Folder, scheduler: Scheduler, kind: Kind) -> Sampling:
    """How a stage of flow matching is sampled: the pipelines of LTX-Video and HunyuanVideo give FlowMatchEuler the
    sigmas 1, 1 - 1/N, ..., 1/N. Raises `UserError` for a scheduler without flow sigmas."""
    if scheduler.flow is None:
        raise UserError(f"{folder.path}: scheduler={scheduler.name} without flow sigmas; permitted: those of flow "
                        "matching, FlowMatchEulerDiscreteScheduler or UniPCMultistepScheduler with use_flow_sigmas")
    found = scheduler.sampling(steps=kind.steps, guidance=kind.guidance_scale[0] - 1)
    if scheduler.flow.grid != "euler":
        return found
    flow = dataclasses.replace(scheduler.flow, grid="linear")
    return dataclasses.replace(found, scheduler=dataclasses.replace(found.scheduler, flow=flow))


def at_rate(stage: Stage, fps: float) -> Stage:
    """The stage of videos with so many frames per second, which LTX-Video's positions are in."""
    return dataclasses.replace(stage, video=dataclasses.replace(stage.video, fps=fps),
                               network=_placed(stage.network, stage.latent, fps))


def _placed(network: VideoTransformer, latent: Latent, fps: float) -> VideoTransformer:
    """The network with the positions of tokens in seconds and pixels: a token is a latent."""
    frames, side = latent.frame_factor, float(latent.autoencoder.factor)
    lead = (frames - 1) / fps if network.rotary.lead else 0.0
    rotary = dataclasses.replace(network.rotary, steps=(frames / fps, side, side), lead=lead)
    return dataclasses.replace(network, rotary=rotary)
