"""Videos of texts by CogVideoX (Yang et al. 2024, arXiv 2408.06072)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vdm_jax.configuration import check_value
from vdm_jax.diffusion.caching import ByChange, Cache
from vdm_jax.errors import UserError
from vdm_jax.generation.generator import Generated, Progress
from vdm_jax.pipelines import arguments
from vdm_jax.pipelines.base import FromText
from vdm_jax.stages.stage import Stage


class CogVideoXTextToVideo(FromText):
    """Videos of texts, by one transformer whose sequence is the text and the video.

        pipeline = vdm_jax.from_pretrained("CogVideoX-5b", dtype="bfloat16", scheduler="cogvideox_dpm")
        pipeline("a panda plays a guitar", dynamic_guidance=True, seed=3).save("panda.mp4")
    """

    def __call__(
        self, prompt: str | Sequence[str], *, negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None, width: int | None = None, num_frames: int | None = None,
        num_inference_steps: int | None = None, guidance: float | None = None, guidance_scale: float | None = None,
        dynamic_guidance: bool = False, num_per_prompt: int = 1, fps: int | None = None,
        decode_tile_size: int | None = None, seed: int = 0, latents: Float[np.ndarray, "B T H W C"] | None = None,
        progress: Progress | bool | None = None, cache: Cache | ByChange | None = None,
    ) -> Generated:
        """Generate videos, one per prompt or `num_per_prompt`.

        Args:
          prompt: what the videos should show; up to 226 tokens. The models were trained with long descriptions.
          negative_prompt: what they should not show; one for all or one for each prompt; None: nothing.
          height, width: pixels, multiples of 16; 480x720 by default (768x1360 of CogVideoX1.5).
          num_frames: of a video, 1 + 8n; 49 by default (81).
          num_inference_steps: of the scheduler; 50 by default.
          guidance: w in cond + w (cond - uncond); 0 is off and takes half the time; 5 by default.
          guidance_scale: the same as s = 1 + w; up to 1 is off. One of the two.
          dynamic_guidance: the weight of each step is of `Sampling.dynamic_guidance`, between 0 and s, as the authors
            sample the 5B model with scheduler="cogvideox_dpm".
          num_per_prompt: videos of each prompt.
          fps: frames per second of the file that is written; 8 by default (16).
          decode_tile_size: pixels of a side of the tiles that are decoded one after the other, of four latents or more,
            and share a quarter of them, in whole latents, over which they are blended; whole frames by default. Tiles
            take less memory, and norms see a tile.
          seed: same seed, same place in the batch, same video.
          latents: `[B, T, h, w, C]`, standard normal noise to begin with, of CogVideoX1.5 with one latent in front that
            is not decoded; drawn from the seed by default.
          progress: called with ("denoising", steps done, steps); a bar on a terminal by default; False: nothing.
          cache: which steps reuse what the blocks have added in an earlier one.

        Latents are decoded two at a time, as the model's norms were trained.

        Raises `UserError` for sizes that the model cannot take, for numbers of texts that do not fit, and for
        dynamic_guidance without guidance.
        """
        check_value(dynamic_guidance, bool, "dynamic_guidance")
        usual = self.generator.experiment.stages[0]
        fps = int(usual.video.fps) if fps is None else fps
        arguments.video(frames=num_frames, fps=fps, chunk=None)
        return self.sample(
            prompt, negative_prompt, num_per_prompt, (num_frames or usual.video.frames, height, width),
            usual.sampling.steps if num_inference_steps is None else num_inference_steps, (guidance, guidance_scale),
            seed, latents, progress, fps=fps, tile=decode_tile_size, dynamic=dynamic_guidance, cache=cache)

    def generate(
        self, stage: Stage, captions: tuple[str, ...], guidance: tuple[float, float | None] | None, *more: Any,
        dynamic: bool = False, **given: Any,
    ) -> Generated:
        """As of all pipelines, with a guidance that changes from step to step where that is asked for."""
        if dynamic and guidance is None:
            raise UserError("dynamic_guidance=True without guidance; permitted: False, or a guidance above 0, a "
                            "guidance_scale above 1", "dynamic_guidance")
        sampling = dataclasses.replace(stage.sampling, dynamic_guidance=dynamic)
        return super().generate(dataclasses.replace(stage, sampling=sampling), captions, guidance, *more, **given)
