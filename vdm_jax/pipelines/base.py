"""What the callables of released models share: their networks, a scheduler, and the generator that samples them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from PIL import Image

from vdm_jax.diffusion.guidance import guidance_weight
from vdm_jax.errors import UserError
from vdm_jax.generation.compiled import Noise, Watch
from vdm_jax.generation.generator import Generated, Progress
from vdm_jax.generation.image_prompts import ImagePrompts
from vdm_jax.generation.loras import TEXT, LoRAs, merged_on
from vdm_jax.generation.one_stage import released_steps
from vdm_jax.generation.released.folder import Folder, save_folder
from vdm_jax.generation.released.kinds import kind_of
from vdm_jax.generation.released.models import (
    experiment_of,
    generator_of,
    networks_of,
    parameters_of,
    stage_of,
)
from vdm_jax.generation.released.pictures import open_pictures, resized
from vdm_jax.generation.released.transformers import FIRST, SECOND
from vdm_jax.parallel.rules import batch_parts
from vdm_jax.pipelines import arguments
from vdm_jax.pipelines.progress import shown
from vdm_jax.stages.stage import Stage
from vdm_jax.weights.lora_files import NETWORK, read_lora, target_of
from vdm_jax.weights.pretrained import Pretrained


class LatentPipeline:
    """Networks of a released latent model on a mesh, and its scheduler, sampled by the generator that samples runs.

    What is compiled is compiled on first use, once per size; `scheduler` may be replaced by another one. `watch`, where
    it is set, is called with the number and the latents of each step, which live until the next one.
    """

    watch: Watch | None = None
    image_prompts: ImagePrompts | None = None

    def __init__(self, folder: Folder):
        self.folder, self.models, self.scheduler, self.mesh = folder, networks_of(folder), folder.scheduler(), (
            folder.mesh)
        self.generator = generator_of(folder, experiment_of(folder, self.models), self.models)
        self.encoder, self.generator.encoder = self.generator.encoder, None  # calls bring what they have encoded
        self._without_loras = dict(self.models), getattr(self.encoder, "captions", None)

    def use_loras(self, loras: LoRAs) -> None:
        """Merge the LoRAs of some files, each with its weight, into copies of the networks. They take the place of
        those of the call before: `use_loras({})` gives back what was loaded, to the last bit.

            pipeline.use_loras({"ink.safetensors": 0.7, "light.safetensors": 0.4})

        `save_pretrained` then saves the networks with the LoRAs in them.

        Raises `UserError` as `read_lora` does; nothing has changed then.
        """
        before, captions = self._without_loras
        if SECOND in before and loras:
            raise UserError(f"{len(loras)} LoRAs for a model of two experts, of which files do not say which one they "
                            "are for; permitted: a model of one transformer", "loras")
        parts = {FIRST if FIRST in before else NETWORK: NETWORK, TEXT: TEXT}
        parts = {name: network for name, network in parts.items() if name in before and (
            name != TEXT or FIRST not in before)}
        targets = {network: target_of(before[name].config) for name, network in parts.items()}
        read = [(read_lora(path, targets), weight) for path, weight in loras.items()]
        self.models = dict(before)
        for name, model in before.items():
            network = parts.get(name)
            if adapters := [(found[network], weight) for found, weight in read if network in found]:
                params = merged_on(self.mesh, model.params, adapters)
                self.models[name] = dataclasses.replace(model, params=params)
        if captions is not None:
            self.encoder.captions = captions.with_params(self.models[TEXT].params)

    def use_image_prompts(self, adapter: str | os.PathLike, encoder: str | os.PathLike | None = None) -> None:
        """Take image prompts by an adapter (IP-Adapter: Ye et al. 2023, arXiv 2308.06721), in the place of the one
        before. Calls without `image_prompt`, and what `save_pretrained` writes, are without it.

            pipeline.use_image_prompts("IP-Adapter/models/ip-adapter_sd15.safetensors")
            pipeline("a fox in the snow", image_prompt="ink.png", image_prompt_scale=0.6)

        Raises `UserError` as `ImagePrompts` does, and for an adapter for another network; nothing has changed then.
        """
        prompts = ImagePrompts(os.fspath(adapter), encoder, self.mesh)
        prompts.joined_stage(self.generator.experiment.stages[0], parameters_of(self.models))
        self.image_prompts = prompts

    def save_pretrained(self, path: str | os.PathLike) -> None:
        """Writes the pipeline as a folder that diffusers loads: the same tensors where no dtype was asked for.

        Raises `UserError` for a folder that has a pipeline already.
        """
        save_folder(path, self.folder, self.saved(), self.scheduler)

    def __repr__(self) -> str:
        """Folder, parts with their parameters and dtype, scheduler, and the devices where they are not one."""
        lines = [f"{type(self).__name__} of {self.folder.path}"]
        for name, model in self.models.items():
            leaves = jax.tree.leaves(model.params)
            count = sum(leaf.size for leaf in leaves)
            dtypes = " and ".join(sorted({leaf.dtype.name for leaf in leaves}))
            lines.append(f"  {name}: {type(model.config).__name__}, {_counted(count)} parameters, {dtypes}")
        own = self.scheduler.options
        lines.append(f"  scheduler: {self.scheduler.name}, predicts {own.get('prediction_type', 'flow')}, "
                     f"{own['num_train_timesteps']} timesteps")
        if self.mesh.size > 1:
            axes = (f"{axis}={size}" for axis, size in self.mesh.shape.items() if size > 1)
            lines.append("  devices: " + ", ".join(axes))
        return "\n".join(lines)

    def saved(self) -> dict[str, Pretrained]:
        """Networks of the folder that `save_pretrained` writes."""
        return self.models

    def stage(
        self, frames: int, height: int, width: int, chunk: int | None = None, tile: int | None = None
    ) -> Stage:
        """The stage that makes videos of a size, decoded in chunks of so many frames, or in tiles whose sides have so
        many pixels and which share a quarter of them, rounded down to whole latents. Raises `UserError` for sizes that
        the networks cannot take."""
        stage = stage_of(self.folder, self.models, self.scheduler)
        factor = stage.latent.autoencoder.factor
        for name, size in (("height", height), ("width", width)):
            if size < factor or size % factor:
                raise UserError(f"{name}={size}; permitted: multiples of {factor} for this model")
        arguments.whole("num_frames", frames, 1, arguments.FRAMES)
        video = dataclasses.replace(stage.video, frames=frames, height=height, width=width)
        chunk = chunk if chunk is not None and chunk < frames else None
        latent = dataclasses.replace(stage.latent, decode_frames=chunk)
        if tile is not None:
            if arguments.whole("decode_tile_size", tile, 1, arguments.SIDE) % factor or tile < 4 * factor:
                raise UserError(f"decode_tile_size={tile}; permitted: multiples of {factor} from {4 * factor} on for "
                                "this model", "decode_tile_size")
            latent = dataclasses.replace(latent, tile=(tile, tile), overlap=tile // 4 // factor * factor)
        return dataclasses.replace(stage, video=video, latent=latent)

    def checked_noise(self, stage: Stage, count: int, steps: int, latents: Any) -> np.ndarray | None:
        """The noise that is given. Raises `UserError` for steps that the scheduler cannot take and noise of another
        shape, before any work."""
        released_steps(stage, dataclasses.replace(stage.sampling, steps=steps))
        return arguments.noise("latents", latents, (count, *stage.shape))

    def generate(
        self, stage: Stage, captions: tuple[str, ...], guidance: tuple[float, float | None] | None, steps: int,
        progress: Progress | bool | None, *, fps: int, noise: Noise, conditioning_fps: float | None = None,
        **given: Any,
    ) -> Generated:
        """The generator's videos, by weights of the guidance of the first and the last frame (None: no guidance);
        `conditioning_fps` is the rate that the network is conditioned on."""
        first, last = guidance or (0.0, None)
        parts = batch_parts(self.mesh)
        # Where videos do not divide over the devices that share a batch, the two estimates of guidance may.
        split = guidance is not None and parts % 2 == 0 and len(captions) % parts != 0
        sampling = dataclasses.replace(stage.sampling, steps=steps, guidance=first, last_frame_guidance=last,
                                       batch_size=len(captions), split_guidance=split)
        stage = dataclasses.replace(stage, sampling=sampling)
        params = parameters_of(self.models)
        if given.get("image_prompt") is not None:
            stage, params = self.image_prompts.joined_stage(stage, params)
        generator = self.generator.of(
            dataclasses.replace(self.generator.experiment, stages=(stage,)), {stage.name: params},
            {stage.name: self.models["vae"].params})
        with shown(progress) as show:
            def watch(step: int, z: jax.Array) -> None:
                if self.watch is not None:
                    self.watch(step, z)
                if show is not None:
                    jax.block_until_ready(z)
                    show("denoising", step, steps)

            found = generator(captions, noise=noise, watch=watch, fps=conditioning_fps, **given)
        return Generated(captions, found.stages, {stage.name: float(fps)})


class FromText(LatentPipeline):
    """A pipeline with a text encoder."""

    @property
    def default_scale(self) -> float:
        """Guidance that the authors sample with, as a scale."""
        return kind_of(self.folder).guidance_scale[0]

    def encoded(self, prompts: tuple[str, ...], negative: tuple[str, ...]) -> dict[str, Any]:
        """What the text encoder makes of prompts and negative ones."""
        return self.encoder.texts(prompts, negative)

    def sample(
        self, prompt: Any, negative_prompt: Any, count: int, size: tuple[int, int | None, int | None], steps: int,
        guidance: tuple[float | None, float | None], seed: int, latents: Float[np.ndarray, "B T H W C"] | None,
        progress: Progress | bool | None, *, fps: int = 1, chunk: int | None = None,
        tile: int | None = None, image: tuple[Any, float | None] = (None, None), **given: Any,
    ) -> Generated:
        """Videos, `count` of each prompt; `size` is frames, height and width in pixels, None for those of the training;
        `guidance` is weight and scale, of which one may be given, `image` are image prompts and their scale, and
        `given` are further arguments of the generator.

        Raises `UserError` for sizes that the model cannot take and for numbers of texts that do not fit.
        """
        frames, height, width = size
        arguments.shared(height=height, width=width, steps=steps, seed=seed, progress=progress)
        count = arguments.whole("num_per_prompt", count, 1, arguments.COPIES)
        weight = self._weight(*guidance)
        texts = arguments.texts("prompt", prompt)
        negative = arguments.texts("negative_prompt", negative_prompt, len(texts))
        prompts, negative = (tuple(text for text in each for _ in range(count)) for each in (texts, negative))
        given |= self._pictured(*image, len(texts), count)
        usual = self.generator.experiment.stages[0].video
        stage = self.stage(frames, usual.height if height is None else height, usual.width if width is None else width,
                           chunk, tile)
        if stage.takes_weight and any(negative):
            raise UserError(f"negative_prompt={negative_prompt!r} for a network that takes the weight of guidance and "
                            "makes no estimate without the prompt; permitted: None", "negative_prompt")
        noise = Noise(self.checked_noise(stage, len(prompts), steps, latents))
        guidance = (weight, None) if weight > 0 or stage.takes_weight else None
        return self.generate(stage, prompts, guidance, steps, progress, fps=fps, noise=noise, seed=int(seed),
                             **self.encoded(prompts, negative), **given)

    def pictures(self, name: str, pictures: Any, prompt: Any) -> list[Image.Image]:
        """A picture for each prompt. Raises `UserError` for other numbers of them."""
        images, count = open_pictures(pictures), len(arguments.texts("prompt", prompt))
        if len(images) not in (1, count):
            raise UserError(f"{name}: {len(images)} pictures for {count} prompts; permitted: one, or one for each",
                            name)
        return images * count if len(images) == 1 else images

    def pixels(self, images: Sequence[Image.Image], copies: int, height: int | None, width: int | None
               ) -> Float[np.ndarray, "B H W 3"]:
        """The pictures in the size of the videos, for each of these."""
        arguments.whole("num_per_prompt", copies, 1, arguments.COPIES)
        usual = self.generator.experiment.stages[0].video
        return np.repeat(resized(images, height or usual.height, width or usual.width), copies, axis=0)

    def _pictured(self, pictures: Any, scale: Any, prompts: int, count: int) -> dict[str, Any]:
        """Arguments of the generator for image prompts, one for all prompts or one for each. Raises `UserError` for
        another number of them, and without an adapter."""
        if pictures is None and scale is None:
            return {}
        if self.image_prompts is None or pictures is None:
            what = "an image_prompt" if pictures is not None else f"image_prompt_scale={scale} alone"
            raise UserError(f"{what} with {'no' if self.image_prompts is None else 'an'} adapter; permitted: pictures, "
                            "once use_image_prompts(FILE) has loaded one", "image_prompt")
        opened = self.image_prompts.opened(pictures)
        if len(opened) not in (1, prompts):
            raise UserError(f"image_prompt has {len(opened)} pictures for {prompts} prompts; permitted: one, or one "
                            "for each", "image_prompt")
        scale = 1.0 if scale is None else arguments.number("image_prompt_scale", scale)
        each = [picture for picture in opened * (prompts // len(opened)) for _ in range(count)]
        return self.image_prompts.arguments(each, scale) if scale else {}

    def _weight(self, guidance: Any, guidance_scale: Any) -> float:
        """w in cond + w (cond - uncond), of either way to write it; scales up to 1 are off."""
        for name, value in (("guidance", guidance), ("guidance_scale", guidance_scale)):
            if value is not None:
                arguments.number(name, value)
        weight = guidance_weight(guidance, guidance_scale)
        return float(self.default_scale - 1 if weight is None else weight)


def _counted(count: int) -> str:
    """A number of parameters in words."""
    for size, unit in ((1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:,}"
