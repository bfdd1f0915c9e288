"""A folder in the layout of diffusers as an experiment of one stage with its parameters, which goes through the same
generator as a run.

    generator = load_released("stable-diffusion-v1-5")
    generator(["a watercolour of a lighthouse"], seed=3).save("lighthouse.png")
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from vdm_jax.conditions.control import MAPS
from vdm_jax.conditions.inputs import Input
from vdm_jax.conditions.scalars import WEIGHT
from vdm_jax.conditions.sparse_control import SparseControl
from vdm_jax.data.embeddings import EncoderFolder
from vdm_jax.data.text_encoding import padding_of
from vdm_jax.diffusion.scheduler_steps import COGVIDEOX
from vdm_jax.errors import UserError
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.released import hunyuan, t5_transformers, transformers
from vdm_jax.generation.released.encoders import ReleasedEncoder
from vdm_jax.generation.released.folder import INDEX, Folder, open_folder
from vdm_jax.generation.released.kinds import kind_of
from vdm_jax.generation.released.schedulers import Scheduler
from vdm_jax.networks import motion_adapter
from vdm_jax.networks.autoencoders.config import Autoencoder
from vdm_jax.networks.config import EmbeddedText
from vdm_jax.networks.control_net import ControlNet
from vdm_jax.networks.encoders.clip_text import CLIPText
from vdm_jax.networks.encoders.clip_vision import CLIPVision
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.networks.motion_adapter import MotionAdapter
from vdm_jax.networks.sparse_control import SparseControlNet
from vdm_jax.networks.t2i_adapter import T2IAdapter
from vdm_jax.parallel.mesh import MeshSpec
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.stage import Experiment, FirstFrame, Stage, VideoSpec
from vdm_jax.weights.pretrained import Pretrained

SIDE = 64  # latents of a side where a U-Net's file does not say
SCALARS = ("fps", "motion", "noise")  # of Stable Video Diffusion, in the order in which they enter


def is_released(path: str | os.PathLike) -> bool:
    """Whether there is a folder of a pipeline in the layout of diffusers."""
    return (pathlib.Path(path) / INDEX).is_file()


def networks_of(folder: Folder, weights: bool = True) -> dict[str, Pretrained]:
    """The networks of a pipeline by the names of their folders, motion modules joined to the U-Net; without `weights`
    their configs alone. Raises `UserError` for what is missing or does not fit."""
    kind_of(folder)
    if folder.kind in transformers.PIPELINES:
        return transformers.networks_of(folder, weights)
    if folder.kind in t5_transformers.PIPELINES:
        return t5_transformers.networks_of(folder, weights)
    if folder.kind == hunyuan.HUNYUAN:
        return hunyuan.networks_of(folder, weights)
    unet, vae = (folder.model(part, wanted, weights) for part, wanted in (("unet", LatentUNet), ("vae", Autoencoder)))
    if folder.kind.startswith("AnimateDiff") and unet.config.motion is None:  # the two are in folders of their own
        adapter = folder.model("motion_adapter", MotionAdapter, weights)
        config, params = motion_adapter.join(unet.config, unet.params, adapter.config, adapter.params)
        unet = Pretrained(config, params, {"sample_size": unet.fields.get("sample_size")})
    if folder.kind == "StableVideoDiffusionPipeline":
        found = {"unet": unet, "vae": vae, "image_encoder": folder.model("image_encoder", CLIPVision, weights)}
    else:
        found = {"unet": unet, "vae": vae, "text_encoder": folder.model("text_encoder", CLIPText, weights)}
    for part, wanted, kind in (("controlnet", SparseControlNet, "SparseControlNet"), (
            "controlnet", ControlNet, "ControlNet"), ("adapter", T2IAdapter, "Adapter")):
        if kind in folder.kind:
            found |= {name: folder.model(name, wanted, weights) for name in _several(folder, part)}
            break
    _check(folder, found)
    return found


def _several(folder: Folder, part: str) -> list[str]:
    """Folders of its ControlNets or T2I-Adapters. Raises `UserError` for more than there are maps."""
    parts = [part]
    while folder.holds(f"{part}_{len(parts)}"):
        parts.append(f"{part}_{len(parts)}")
    if len(parts) > len(MAPS):
        raise UserError(f"{folder.path} has {len(parts)} of {part}; permitted: up to {len(MAPS)}")
    return parts


def control_nets_of(networks: dict[str, Pretrained]) -> dict[str, Pretrained]:
    """The ControlNets, SparseCtrl or T2I-Adapters among the networks of a pipeline, by the maps that they see."""
    parts = [model for model in networks.values() if isinstance(model.config, ControlNet | T2IAdapter)]
    sparse = [model for model in networks.values() if isinstance(model.config, SparseControlNet)]
    return dict(zip((SparseControl.name,) if sparse else MAPS, sparse or parts, strict=False))


def _check(folder: Folder, networks: dict[str, Pretrained]) -> None:
    """Raises `UserError` where a U-Net does not fit the other parts: inpainting, depth, another encoder."""
    unet, latents = networks["unet"].config, networks["vae"].config.latent_channels
    if "image_encoder" in networks:
        wanted = {"in_channels": 2 * latents, "token_channels": networks["image_encoder"].config.project,
                  "scalars": len(SCALARS), "temporal": True}
    else:
        wanted = {"in_channels": latents, "token_channels": networks["text_encoder"].config.width, "classes": 0,
                  "scalars": 0, "video": kind_of(folder).stage == "video"}
    for name, value in wanted.items():
        if getattr(unet, name) != value:
            raise UserError(f"{folder.path / 'unet'}: {name}={getattr(unet, name)}; permitted with the other parts of "
                            f"{folder.kind}: {value}")


def parameters_of(networks: dict[str, Pretrained]) -> dict[str, Any]:
    """Of a stage's network: the U-Net's, and those of ControlNets next to them."""
    if transformers.FIRST in networks:
        return transformers.parameters_of(networks)
    control = control_nets_of(networks)
    return networks["unet"].params | {f"control_net_{name}": model.params for name, model in control.items()}


def stage_of(folder: Folder, networks: dict[str, Pretrained], scheduler: Scheduler | None = None) -> Stage:
    """The stage that a pipeline is, sampled as its authors do. Raises `UserError` for a scheduler of another noise."""
    if folder.kind in transformers.PIPELINES:
        return transformers.stage_of(folder, networks, scheduler)
    if folder.kind in t5_transformers.PIPELINES:
        return t5_transformers.stage_of(folder, networks, scheduler, kind_of(folder))
    if folder.kind == hunyuan.HUNYUAN:
        return hunyuan.stage_of(folder, networks, scheduler, kind_of(folder))
    kind, unet, vae = kind_of(folder), networks["unet"], networks["vae"].config
    scheduler = dataclasses.replace(scheduler or folder.scheduler(), threshold_per=kind.threshold_per)
    if scheduler.name in COGVIDEOX:
        raise UserError(f"{folder.path}: scheduler={scheduler.name} with {folder.kind}, whose network was trained with "
                        f"other noise; permitted: any but {', '.join(COGVIDEOX)}")
    pictured = "image_encoder" in networks
    side = unet.fields.get("sample_size") or SIDE
    sides = [n * vae.factor for n in (side if isinstance(side, list) else (side, side))]
    height, width = kind.size or sides
    frames = (unet.fields.get("num_frames") or kind.frames) if pictured else kind.frames
    if unet.config.motion is not None:
        frames = min(frames, unet.config.motion.frames)
    first, last = (scale - 1 for scale in kind.guidance_scale)
    nets = {name: model.config for name, model in control_nets_of(networks).items()}
    scalars = SCALARS if pictured else (WEIGHT,) * bool(unet.config.weight_channels)
    network = LatentNetwork(
        unet=unet.config, timesteps=scheduler.timesteps, text=EmbeddedText(width=unet.config.token_channels),
        scalars=scalars, first_frame=pictured, control_nets=tuple(nets.values()),
        conditions=tuple(Input(name=name, width=net.hint_channels) for name, net in nets.items()))
    return Stage(
        name=kind.stage, video=VideoSpec(frames=frames, height=height, width=width, fps=kind.fps),
        source=FirstFrame() if pictured else None, latent=Latent(autoencoder=vae), network=network,
        process=scheduler.process, sampling=scheduler.sampling(
            steps=kind.steps, guidance=first, last_frame_guidance=None if first == last else last))


def experiment_of(folder: Folder, networks: dict[str, Pretrained], mesh: MeshSpec | None = None) -> Experiment:
    """The experiment that a pipeline is: one stage, and no data. It names an encoder of texts that is one of CLIP or
    T5."""
    text = None if folder.kind == hunyuan.HUNYUAN else networks.get("text_encoder")
    length = transformers.text_length(networks) if transformers.FIRST in networks else text and text.config.length
    encoder = text and EncoderFolder(path=str(folder.path.absolute()), length=length, padding=padding_of(folder.path))
    return Experiment(name=folder.path.absolute().name, stages=(stage_of(folder, networks),), encoder=encoder,
                      mesh=mesh or MeshSpec())


def read_released(path: str | os.PathLike) -> Experiment:
    """The experiment of a folder, by its files' headers alone. Raises `UserError` for what we do not have."""
    folder = open_folder(path)
    return experiment_of(folder, networks_of(folder, weights=False))


def load_released(
    path: str | os.PathLike, devices: Sequence[jax.Device] | None = None, **options: Any
) -> Generator:
    """The generator of a folder, over all devices unless some are named; `options` as of `open_folder`. Raises
    `UserError` for what we do not have."""
    folder = open_folder(path, devices=devices, mesh=options.pop("mesh", MeshSpec()), **options)
    networks = networks_of(folder)
    experiment = experiment_of(folder, networks)
    return generator_of(folder, experiment, networks)


def with_size(
    generator: Generator, frames: int | None = None, height: int | None = None, width: int | None = None
) -> Generator:
    """The generator of a released model, making videos of another size; None: as many frames or pixels as before.
    A run makes one size, but for more or fewer frames of one whose temporal attention sees a window of them. Raises
    `UserError` for other runs, and for sizes that the networks cannot take."""
    sizes = {name: size for name, size in (("frames", frames), ("height", height), ("width", width))
             if size is not None}
    if not sizes:
        return generator
    experiment, stage = generator.experiment, generator.experiment.stages[0]
    longer = len(experiment.stages) == 1 and [*sizes] == ["frames"] and stage.network.extrapolates
    if not longer and (experiment.data is not None or len(experiment.stages) > 1):
        raise UserError(f"{', '.join(f'{name}={size}' for name, size in sizes.items())} for the run of "
                        f"{experiment.name!r}, whose stages make videos of one size; permitted: a released model, or "
                        "frames of a run of one stage whose temporal attention sees a window of them")
    stage = dataclasses.replace(stage, video=dataclasses.replace(stage.video, **sizes))
    return generator.of(dataclasses.replace(experiment, stages=(stage,)))


def generator_of(folder: Folder, experiment: Experiment, networks: dict[str, Pretrained]) -> Generator:
    """The generator of an experiment with the networks of a folder."""
    name = experiment.stages[0].name
    experiment = dataclasses.replace(experiment, mesh=folder.spec)
    encoder = (hunyuan.HunyuanEncoder if folder.kind == hunyuan.HUNYUAN else ReleasedEncoder)(folder, networks)
    return Generator(experiment, {name: parameters_of(networks)}, list(folder.mesh.devices.flat),
                     {name: networks["vae"].params}, encoder)
