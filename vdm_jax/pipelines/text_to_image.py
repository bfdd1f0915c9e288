"""Stable Diffusion 1.x and 2.x: pictures of texts (Rombach et al. 2022, arXiv 2112.10752), and of control maps."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vdm_jax.generation.generator import Generated, Progress
from vdm_jax.generation.released.folder import Folder
from vdm_jax.generation.released.kinds import kind_of
from vdm_jax.generation.released.models import control_nets_of
from vdm_jax.generation.released.pictures import Picture
from vdm_jax.pipelines import arguments, control
from vdm_jax.pipelines.base import FromText

log = logging.getLogger(__name__)


class Pictures(Generated):
    """Generated pictures, as videos of one frame."""

    def save(self, path: str | os.PathLike) -> Path:
        """Write the pictures to one .png, side by side; other suffixes as videos."""
        from vdm_jax.video.grids import tile_videos
        from vdm_jax.video.writing import write_png

        if Path(path).suffix != ".png":
            return super().save(path)
        return write_png(path, self.videos[0, 0] if len(self.videos) == 1 else tile_videos(self.videos)[0])


class TextToImage(FromText):
    """Pictures of texts.

        pipeline = vdm_jax.from_pretrained("stable-diffusion-v1-5", dtype="bfloat16")
        pipeline("a watercolour of a lighthouse", seed=3).save("lighthouse.png")
    """

    def __init__(self, folder: Folder):
        super().__init__(folder)
        if folder.holds("safety_checker"):
            log.warning("the safety_checker of %s is not run: pictures are not filtered", folder.path)

    def __call__(
        self, prompt: str | Sequence[str], *, negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None, width: int | None = None, num_inference_steps: int | None = None,
        guidance: float | None = None, guidance_scale: float | None = None, num_per_prompt: int = 1, seed: int = 0,
        latents: Float[np.ndarray, "B T H W C"] | None = None, progress: Progress | bool | None = None,
        image_prompt: Picture | Sequence[Picture] | None = None, image_prompt_scale: float | None = None,
    ) -> Pictures:
        """Generate pictures, one per prompt or `num_per_prompt`.

        Args:
          prompt: what the pictures should show.
          negative_prompt: what they should not show; one for all or one for each prompt; None: nothing.
          height, width: pixels; those that the model was trained with by default.
          num_inference_steps: of the scheduler; 50 by default, 4 of a latent consistency model.
          guidance: w in cond + w (cond - uncond); 0 is off and takes half the time; 6.5 by default.
          guidance_scale: the same as s = 1 + w; up to 1 is off. One of the two.
          num_per_prompt: pictures of each prompt.
          seed: same seed, same place in the batch, same picture.
          latents: `[B, 1, h, w, C]`, standard normal noise to begin with; drawn from the seed by default.
          progress: called with ("denoising", steps done, steps); a bar on a terminal by default; False: nothing.
          image_prompt, image_prompt_scale: pictures whose content or style the generated ones take over, one for all
            prompts or one for each, and how much they count (1 by default, 0: not at all), once `use_image_prompts` has
            loaded an adapter.

        Raises `UserError` for sizes that the model cannot take and for numbers of texts that do not fit.
        """
        steps = kind_of(self.folder).steps if num_inference_steps is None else num_inference_steps
        found = self.sample(
            prompt, negative_prompt, num_per_prompt, (1, height, width), steps,
            (guidance, guidance_scale), seed, latents, progress, image=(image_prompt, image_prompt_scale))
        return Pictures(found.captions, found.stages, found.fps)


class ControlledTextToImage(TextToImage):
    """Pictures of texts and of control maps, by a U-Net with one or several ControlNets (Zhang et al. 2023, arXiv
    2302.05543).

        pipeline = vdm_jax.from_pretrained("sd-controlnet-canny", dtype="bfloat16")
        pipeline("a watercolour of a lighthouse", image="edges.png", seed=3).save("lighthouse.png")
    """

    def __call__(
        self, prompt: str | Sequence[str], *, image: Picture | Sequence[Picture | Sequence[Picture]],
        controlnet_conditioning_scale: float | Sequence[float] = 1.0,
        control_guidance_start: float | Sequence[float] = 0.0, control_guidance_end: float | Sequence[float] = 1.0,
        guess_mode: bool = False, negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None, width: int | None = None, num_inference_steps: int = 50,
        guidance: float | None = None, guidance_scale: float | None = None, num_per_prompt: int = 1, seed: int = 0,
        latents: Float[np.ndarray, "B T H W C"] | None = None, progress: Progress | bool | None = None,
        image_prompt: Picture | Sequence[Picture] | None = None, image_prompt_scale: float | None = None,
    ) -> Pictures:
        """Generate pictures, one per prompt or `num_per_prompt`.

        Args:
          image: the control map of all prompts, or one for each: files, Pillow images or arrays `[H, W, 3]`, see
            `open_pictures`; they are resized to the picture, so cut them to its aspect first. Of several ControlNets a
            sequence of these, one for each.
          controlnet_conditioning_scale: factor on what the ControlNet adds; 0: nothing. This and the interval are one
            value for all ControlNets, or a sequence with one for each.
          control_guidance_start, control_guidance_end: shares of the steps between which it adds anything.
          guess_mode: weights its residuals by their resolution and leaves them out of the unconditional estimate, so
            that the map shows without a prompt; guidance_scale 3 to 5 is what the authors advise.
          height, width: pixels; those of the first map by default, down to multiples of 8.
          prompt, negative_prompt, num_inference_steps, guidance, guidance_scale, num_per_prompt, seed, latents,
            progress, image_prompt, image_prompt_scale: as in `TextToImage`.

        Raises `UserError` for what is no picture, for sizes that the model cannot take and for numbers of texts and
        maps that do not fit.
        """
        options = control.options(len(control_nets_of(self.models)), controlnet_conditioning_scale,
                                  control_guidance_start, control_guidance_end, guess_mode)
        return self.of_maps(image, options, prompt, negative_prompt, height, width, num_inference_steps,
                            (guidance, guidance_scale), num_per_prompt, seed, latents, progress,
                            (image_prompt, image_prompt_scale))

    def of_maps(
        self, image: Any, options: dict[str, Any], prompt: Any, negative_prompt: Any, height: int | None,
        width: int | None, steps: int, guidance: tuple[float | None, float | None], num_per_prompt: int, seed: int,
        latents: Float[np.ndarray, "B T H W C"] | None, progress: Progress | bool | None,
        prompted: tuple[Any, float | None],
    ) -> Pictures:
        """Pictures of maps, whose `options` are arguments of the generator; `prompted` are image prompts and scale."""
        count = arguments.whole("num_per_prompt", num_per_prompt, 1, arguments.COPIES)
        nets = control_nets_of(self.models)
        maps = control.pictures("image", image, len(nets), len(arguments.texts("prompt", prompt)))
        factor = self.models["vae"].config.factor
        height = maps[0][0].height // factor * factor if height is None else height
        width = maps[0][0].width // factor * factor if width is None else width
        arguments.shared(height=height, width=width, steps=steps, seed=seed, progress=progress)
        given = {name: np.repeat(control.pixels(pictures, height, width, model.config.hint_channels), count, axis=0)
                 for (name, model), pictures in zip(nets.items(), maps, strict=True)}
        found = self.sample(
            prompt, negative_prompt, count, (1, height, width), steps, guidance, seed, latents, progress,
            image=prompted, **given, **options)
        return Pictures(found.captions, found.stages, found.fps)


class AdaptedTextToImage(ControlledTextToImage):
    """Pictures of texts and of control maps, by a U-Net with one or several T2I-Adapters (Mou et al. 2023, arXiv
    2302.08453).

        pipeline = vdm_jax.from_pretrained("sd-t2iadapter-sketch", dtype="bfloat16")
        pipeline("a watercolour of a lighthouse", image="sketch.png", seed=3).save("lighthouse.png")
    """

    def __call__(
        self, prompt: str | Sequence[str], *, image: Picture | Sequence[Picture | Sequence[Picture]],
        adapter_conditioning_scale: float | Sequence[float] = 1.0,
        negative_prompt: str | Sequence[str] | None = None, height: int | None = None, width: int | None = None,
        num_inference_steps: int = 50, guidance: float | None = None, guidance_scale: float | None = None,
        num_per_prompt: int = 1, seed: int = 0, latents: Float[np.ndarray, "B T H W C"] | None = None,
        progress: Progress | bool | None = None, image_prompt: Picture | Sequence[Picture] | None = None,
        image_prompt_scale: float | None = None,
    ) -> Pictures:
        """Generate pictures, one per prompt or `num_per_prompt`.

        Args:
          adapter_conditioning_scale: factor on the features of the adapter, or one for each of several.
          prompt, image, negative_prompt, height, width, num_inference_steps, guidance, guidance_scale, num_per_prompt,
            seed, latents, progress, image_prompt, image_prompt_scale: as in `ControlledTextToImage`.

        Raises `UserError` as that does.
        """
        scales = control.for_each_net("adapter_conditioning_scale", adapter_conditioning_scale,
                                      len(control_nets_of(self.models)))
        options = {f"{name}_scale": arguments.number("adapter_conditioning_scale", scale)
                   for name, scale in zip(control.MAPS, scales, strict=False)}
        return self.of_maps(image, options, prompt, negative_prompt, height, width, num_inference_steps,
                            (guidance, guidance_scale), num_per_prompt, seed, latents, progress,
                            (image_prompt, image_prompt_scale))
