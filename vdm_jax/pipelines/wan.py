"""Videos of texts by Wan 2.1 and 2.2 (Wan Team 2025, arXiv 2503.20314)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vdm_jax.conditions.frame_masks import MaskedVideo
from vdm_jax.errors import UserError
from vdm_jax.generation.generator import Generated, Progress
from vdm_jax.generation.released import transformers
from vdm_jax.generation.released.pictures import Picture, open_pictures, resized
from vdm_jax.pipelines import arguments
from vdm_jax.pipelines.base import FromText
from vdm_jax.pipelines.image_to_video import first_frame
from vdm_jax.stages.stage import Stage


class WanTextToVideo(FromText):
    """Videos of texts, by one transformer or by two experts.

        pipeline = vdm_jax.from_pretrained("Wan2.1-T2V-1.3B-Diffusers", dtype="bfloat16")
        pipeline("a cat on a surfboard", num_frames=33, seed=3).save("cat.mp4")
    """

    @property
    def default_scale(self) -> float:
        """Guidance that the authors sample with, as a scale; of experts, that for little noise."""
        return transformers.usual(self.models)[5]

    def __call__(
        self, prompt: str | Sequence[str], *, negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None, width: int | None = None, num_frames: int | None = None,
        num_inference_steps: int | None = None, guidance: float | None = None, guidance_scale: float | None = None,
        high_noise_guidance_scale: float | None = None, num_per_prompt: int = 1, fps: int | None = None,
        image: Picture | Sequence[Picture] | None = None, decode_chunk_size: int | None = None, seed: int = 0,
        latents: Float[np.ndarray, "B T H W C"] | None = None, progress: Progress | bool | None = None,
    ) -> Generated:
        """Generate videos, one per prompt or `num_per_prompt`.

        Args:
          prompt: what the videos should show.
          negative_prompt: what they should not show; one for all or one for each prompt; None: nothing. The authors
            sample with a long Chinese one.
          height, width: pixels, multiples of 16 (of 32 for the 5B model); 480x832 by default (704x1280).
          num_frames: of a video, 1 + 4n; 81 by default (121).
          num_inference_steps: of the scheduler; 50 by default, 40 with experts.
          guidance: w in cond + w (cond - uncond); 0 is off and takes half the time; 4 by default, 2 with experts.
          guidance_scale: the same as s = 1 + w; up to 1 is off. One of the two.
          high_noise_guidance_scale: that of the expert for much noise; 4 by default where the other is not given, else
            the same as that.
          num_per_prompt: videos of each prompt.
          fps: frames per second of the file that is written; 16 by default (24).
          image: what the video of each prompt begins with, resized to the frames; of the 5B model alone. None: nothing.
          decode_chunk_size: latents decoded at a time; all by default. The result is the same.
          seed: same seed, same place in the batch, same video.
          latents: `[B, T, h, w, C]`, standard normal noise to begin with; drawn from the seed by default.
          progress: called with ("denoising", steps done, steps); a bar on a terminal by default; False: nothing.

        Raises `UserError` for sizes that the model cannot take, for numbers of texts that do not fit, and for
        high_noise_guidance_scale of one transformer or without guidance.
        """
        frames, rate, _, _, steps, _, high = transformers.usual(self.models)
        frames, steps = num_frames or frames, steps if num_inference_steps is None else num_inference_steps
        if high_noise_guidance_scale is not None:
            arguments.number("high_noise_guidance_scale", high_noise_guidance_scale)
            if high is None:
                raise UserError(f"high_noise_guidance_scale={high_noise_guidance_scale} for one transformer; "
                                "permitted: None, or a model of two experts", "high_noise_guidance_scale")
            if self._weight(guidance, guidance_scale) <= 0:
                raise UserError(f"high_noise_guidance_scale={high_noise_guidance_scale} without guidance (guidance="
                                f"{guidance}, guidance_scale={guidance_scale}), which it takes the place of at much "
                                "noise; permitted: None, or a guidance above 0, a guidance_scale above 1",
                                "high_noise_guidance_scale")
            high = high_noise_guidance_scale
        elif guidance is not None or guidance_scale is not None:
            high = None
        sides = (frames, height, width)
        given = {} if image is None else {"masked_video": self._begun(image, prompt, num_per_prompt, *sides)}
        arguments.video(frames=frames, fps=int(fps or rate), chunk=decode_chunk_size)
        return self.sample(prompt, negative_prompt, num_per_prompt, (frames, height, width), steps,
                           (guidance, guidance_scale), seed, latents, progress, fps=int(fps or rate),
                           chunk=decode_chunk_size, high=None if high is None else float(high) - 1, **given)

    def _begun(
        self, image: Any, prompt: Any, copies: int, frames: int, height: int | None, width: int | None
    ) -> MaskedVideo:
        """Videos of which the first frame is given. Raises `UserError` for other numbers of pictures than of prompts,
        and models that take none."""
        network, images = transformers.network_of(self.folder, self.models), open_pictures(image)
        if not network.in_place:
            raise UserError("image=... for a model of texts alone; permitted: None, or a folder with expand_timesteps, "
                            "such as that of the 5B model", "image")
        count = len(arguments.texts("prompt", prompt))
        if len(images) not in (1, count):
            raise UserError(f"image: {len(images)} pictures for {count} prompts; permitted: one, or one for each",
                            "image")
        usual = self.generator.experiment.stages[0].video
        pixels = resized(images * count if len(images) == 1 else images, height or usual.height, width or usual.width)
        return first_frame(np.repeat(pixels, copies, axis=0), frames)

    def generate(
        self, stage: Stage, captions: tuple[str, ...], guidance: Any, *more: Any, high: float | None = None,
        **given: Any,
    ) -> Generated:
        """As of all pipelines, with the weight of the guidance of the expert for much noise."""
        sampling = dataclasses.replace(stage.sampling, high_noise_guidance=high if guidance else None)
        return super().generate(dataclasses.replace(stage, sampling=sampling), captions, guidance, *more, **given)
