"""Videos of texts: ModelScope (Wang et al. 2023, arXiv 2308.06571) and AnimateDiff (Guo et al. 2023, arXiv 2307.04725).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from vdm_jax.errors import UserError
from vdm_jax.generation.generator import Generated, Progress
from vdm_jax.networks import motion_adapter
from vdm_jax.pipelines import arguments
from vdm_jax.pipelines.base import FromText
from vdm_jax.weights.pretrained import Pretrained


class TextToVideo(FromText):
    """Videos of texts, by a network with temporal layers.

        pipeline = vdm_jax.from_pretrained("text-to-video-ms-1.7b", dtype="bfloat16")
        pipeline("a panda eating bamboo", seed=3).save("panda.mp4")
    """

    def __call__(
        self, prompt: str | Sequence[str], *, negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None, width: int | None = None, num_frames: int = 16, num_inference_steps: int = 50,
        guidance: float | None = None, guidance_scale: float | None = None, num_per_prompt: int = 1, fps: int = 8,
        decode_chunk_size: int | None = None, seed: int = 0, latents: Float[np.ndarray, "B T H W C"] | None = None,
        progress: Progress | bool | None = None,
    ) -> Generated:
        """Generate videos, one per prompt or `num_per_prompt`.

        Args:
          prompt: what the videos should show.
          negative_prompt: what they should not show; one for all or one for each prompt; None: nothing.
          height, width: pixels; those that the model was trained with by default.
          num_frames: of a video; motion modules take as many as they were trained for at most (24 or 32).
          num_inference_steps: of the scheduler.
          guidance: w in cond + w (cond - uncond); 0 is off and takes half the time; by default 8 for ModelScope and 6.5
            for AnimateDiff.
          guidance_scale: the same as s = 1 + w; up to 1 is off. One of the two.
          num_per_prompt: videos of each prompt.
          fps: frames per second of the file that is written; the network does not take it.
          decode_chunk_size: frames decoded at a time; all by default. The decoder works frame by frame.
          seed: same seed, same place in the batch, same video.
          latents: `[B, T, h, w, C]`, standard normal noise to begin with; drawn from the seed by default.
          progress: called with ("denoising", steps done, steps); a bar on a terminal by default; False: nothing.

        Raises `UserError` for sizes that the model cannot take and for numbers of texts that do not fit.
        """
        arguments.video(frames=num_frames, fps=fps, chunk=decode_chunk_size)
        motion = self.models["unet"].config.motion
        if num_frames is None or motion is not None and num_frames > motion.frames:
            raise UserError(f"num_frames={num_frames}; permitted: 1 to {motion.frames if motion else arguments.FRAMES}")
        return self.sample(prompt, negative_prompt, num_per_prompt, (num_frames, height, width), num_inference_steps,
                           (guidance, guidance_scale), seed, latents, progress, fps=fps, chunk=decode_chunk_size)


class AnimateDiff(TextToVideo):
    """Videos of texts, by an image network with motion modules between its layers."""

    def saved(self) -> dict[str, Pretrained]:
        """Both the network and, once more, its motion modules, as the folders of diffusers have them."""
        unet = self.models["unet"]
        config, params = motion_adapter.part(unet.config, unet.params)
        fields = self.folder.fields("motion_adapter/config.json")
        # The adapter may have been made for other norm groups than those of the network that it has joined.
        groups = fields.get("motion_norm_num_groups", config.motion.groups)
        config = dataclasses.replace(config, motion=dataclasses.replace(config.motion, groups=groups))
        return {**self.models, "motion_adapter": Pretrained(config, params, fields)}
