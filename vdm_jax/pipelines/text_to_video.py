"""Videos of texts: ModelScope (Wang et al. 2023, arXiv 2308.06571) and AnimateDiff (Guo et al. 2023, arXiv 2307.04725).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vdm_jax.conditions.sparse_control import SparseControl
from vdm_jax.errors import UserError
from vdm_jax.generation.generator import Generated, Progress
from vdm_jax.generation.released.models import control_nets_of
from vdm_jax.generation.released.pictures import Picture
from vdm_jax.networks import motion_adapter
from vdm_jax.pipelines import arguments, control
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
        progress: Progress | bool | None = None, image_prompt: Picture | Sequence[Picture] | None = None,
        image_prompt_scale: float | None = None,
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
          image_prompt, image_prompt_scale: pictures whose content or style the videos take over, one for all
            prompts or one for each, and how much they count (1 by default, 0: not at all), once `use_image_prompts` has
            loaded an adapter.

        Raises `UserError` for sizes that the model cannot take and for numbers of texts that do not fit.
        """
        num_frames = self.checked_frames(num_frames, fps, decode_chunk_size)
        return self.sample(prompt, negative_prompt, num_per_prompt, (num_frames, height, width), num_inference_steps,
                           (guidance, guidance_scale), seed, latents, progress, fps=fps, chunk=decode_chunk_size,
                           image=(image_prompt, image_prompt_scale))

    def checked_frames(self, frames: int | None, fps: int, chunk: int | None) -> int:
        """The number of frames. Raises `UserError` for more than motion modules know."""
        arguments.video(frames=frames, fps=fps, chunk=chunk)
        motion = self.models["unet"].config.motion
        if frames is None or motion is not None and frames > motion.frames:
            raise UserError(f"num_frames={frames}; permitted: 1 to {motion.frames if motion else arguments.FRAMES}")
        return frames


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


class ControlledAnimateDiff(AnimateDiff):
    """Videos of texts and of control maps for each frame, by AnimateDiff with one or several ControlNets.

        pipeline = vdm_jax.from_pretrained("animatediff-controlnet", dtype="bfloat16")
        pipeline("a dancer of glass", conditioning_frames="poses.mp4", seed=3).save("glass.mp4")
    """

    def __call__(
        self, prompt: str | Sequence[str], *, conditioning_frames: Any,
        controlnet_conditioning_scale: float | Sequence[float] = 1.0,
        control_guidance_start: float | Sequence[float] = 0.0, control_guidance_end: float | Sequence[float] = 1.0,
        guess_mode: bool = False, negative_prompt: str | Sequence[str] | None = None, height: int | None = None,
        width: int | None = None, num_frames: int = 16, num_inference_steps: int = 50, guidance: float | None = None,
        guidance_scale: float | None = None, num_per_prompt: int = 1, fps: int = 8,
        decode_chunk_size: int | None = None, seed: int = 0, latents: Float[np.ndarray, "B T H W C"] | None = None,
        progress: Progress | bool | None = None, image_prompt: Picture | Sequence[Picture] | None = None,
        image_prompt_scale: float | None = None,
    ) -> Generated:
        """Generate videos, one per prompt or `num_per_prompt`.

        Args:
          conditioning_frames: the maps of the frames, the same for all prompts: a video file or a folder of pictures, a
            picture for all frames, or a sequence of as many pictures or an array `[T, H, W, 3]`. Of several ControlNets
            a sequence of these, one for each.
          controlnet_conditioning_scale, control_guidance_start, control_guidance_end, guess_mode: as in
            `ControlledTextToImage`.
          prompt, negative_prompt, height, width, num_frames, num_inference_steps, guidance, guidance_scale,
            num_per_prompt, fps, decode_chunk_size, seed, latents, progress, image_prompt, image_prompt_scale: as in
            `TextToVideo`.

        Raises `UserError` for sizes that the model cannot take, for numbers of texts that do not fit, and for maps of
        another number of frames.
        """
        nets, frames = len(control_nets_of(self.models)), self.checked_frames(num_frames, fps, decode_chunk_size)
        options = control.options(nets, controlnet_conditioning_scale, control_guidance_start, control_guidance_end,
                                  guess_mode)
        several = nets > 1 and isinstance(conditioning_frames, list | tuple)
        maps = control.for_each_net("conditioning_frames", conditioning_frames, nets) if several else (
            [conditioning_frames] * nets)
        usual = self.generator.experiment.stages[0].video
        size = frames, height or usual.height, width or usual.width
        arguments.shared(height=height, width=width, steps=num_inference_steps, seed=seed, progress=progress)
        videos = len(arguments.texts("prompt", prompt)) * arguments.whole(
            "num_per_prompt", num_per_prompt, 1, arguments.COPIES)
        given = {name: np.repeat(control.video("conditioning_frames", each, *size, float(fps))[None], videos, axis=0)
                 for name, each in zip(control.MAPS, maps, strict=False)}
        return self.sample(prompt, negative_prompt, num_per_prompt, (frames, height, width), num_inference_steps,
                           (guidance, guidance_scale), seed, latents, progress, fps=fps, chunk=decode_chunk_size,
                           image=(image_prompt, image_prompt_scale), **given, **options)


class SparseAnimateDiff(AnimateDiff):
    """Videos of texts and of pictures of single frames, by AnimateDiff with a SparseCtrl (Guo et al. 2023, arXiv
    2311.16933): its first frame, key frames between which it interpolates, or sketches of them.

        pipeline = vdm_jax.from_pretrained("animatediff-sparsectrl-rgb", dtype="bfloat16")
        pipeline("a dancer of glass", conditioning_frames="start.png", seed=3).save("glass.mp4")
    """

    def __call__(
        self, prompt: str | Sequence[str], *, conditioning_frames: Picture | Sequence[Picture],
        controlnet_frame_indices: Sequence[int] = (0,), controlnet_conditioning_scale: float = 1.0,
        guess_mode: bool = False, negative_prompt: str | Sequence[str] | None = None, height: int | None = None,
        width: int | None = None, num_frames: int = 16, num_inference_steps: int = 50, guidance: float | None = None,
        guidance_scale: float | None = None, num_per_prompt: int = 1, fps: int = 8,
        decode_chunk_size: int | None = None, seed: int = 0, latents: Float[np.ndarray, "B T H W C"] | None = None,
        progress: Progress | bool | None = None, image_prompt: Picture | Sequence[Picture] | None = None,
        image_prompt_scale: float | None = None,
    ) -> Generated:
        """Generate videos, one per prompt or `num_per_prompt`.

        Args:
          conditioning_frames: pictures of single frames, or sketches of them, the same for all prompts.
          controlnet_frame_indices: the frames that they are of, from 0.
          controlnet_conditioning_scale, guess_mode: as in `ControlledTextToImage`.
          prompt, negative_prompt, height, width, num_frames, num_inference_steps, guidance, guidance_scale,
            num_per_prompt, fps, decode_chunk_size, seed, latents, progress, image_prompt, image_prompt_scale: as in
            `TextToVideo`.

        Raises `UserError` for sizes that the model cannot take, for numbers of texts that do not fit, and for another
        number of pictures than of frames.
        """
        name, frames = SparseControl.name, self.checked_frames(num_frames, fps, decode_chunk_size)
        options = control.options(1, controlnet_conditioning_scale, 0.0, 1.0, guess_mode, (name,))
        usual = self.generator.experiment.stages[0].video
        arguments.shared(height=height, width=width, steps=num_inference_steps, seed=seed, progress=progress)
        maps, mask = control.sparse(conditioning_frames, controlnet_frame_indices, frames, height or usual.height,
                                    width or usual.width)
        videos = len(arguments.texts("prompt", prompt)) * arguments.whole(
            "num_per_prompt", num_per_prompt, 1, arguments.COPIES)
        given = {name: np.repeat(maps[None], videos, axis=0), f"{name}_mask": np.repeat(mask[None], videos, axis=0)}
        return self.sample(prompt, negative_prompt, num_per_prompt, (frames, height, width), num_inference_steps,
                           (guidance, guidance_scale), seed, latents, progress, fps=fps, chunk=decode_chunk_size,
                           image=(image_prompt, image_prompt_scale), **given, **options)
