"""Videos of texts, and of pictures and texts, by Wan 2.1 and 2.2 (Wan Team 2025, arXiv 2503.20314)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vdm_jax.conditions.frame_masks import MaskedVideo
from vdm_jax.diffusion.caching import ByChange, Cache
from vdm_jax.errors import UserError
from vdm_jax.generation.generator import Generated, Progress
from vdm_jax.generation.released import transformers
from vdm_jax.generation.released.pictures import Picture
from vdm_jax.pipelines import arguments
from vdm_jax.pipelines.base import FromText
from vdm_jax.pipelines.image_to_video import first_frame
from vdm_jax.stages.stage import Stage


class Wan(FromText):
    """What the pipelines of Wan share: one transformer, or an expert for much noise and one for little."""

    @property
    def default_scale(self) -> float:
        """Guidance that the authors sample with, as a scale; of experts, that for little noise."""
        return transformers.usual(self.models)[5]

    def videos(
        self, prompt: Any, negative_prompt: Any, size: tuple[int | None, int | None, int | None], *,
        steps: int | None, guidance: tuple[float | None, float | None], high: float | None, copies: int,
        fps: int | None, chunk: int | None, seed: int, latents: Any, progress: Any, **given: Any,
    ) -> Generated:
        """Videos of frames, height and width `size`; what is None is as the authors have it. Raises `UserError` as the
        pipelines do."""
        _, rate, _, _, default_steps, _, _ = transformers.usual(self.models)
        size, fps = (self._length(*size), *size[1:]), int(rate) if fps is None else fps
        high = self._high(high, *guidance)
        arguments.video(frames=size[0], fps=fps, chunk=chunk)
        return self.sample(prompt, negative_prompt, copies, size, default_steps if steps is None else steps, guidance,
                           seed, latents, progress, fps=fps, chunk=chunk, high=None if high is None else high - 1,
                           **given)

    def _length(self, frames: Any, height: Any, width: Any) -> int:
        """Frames of the videos, the model's by default. Raises `UserError` for sizes that are none, to which pictures
        could not be brought."""
        arguments.size(frames, height, width)
        return transformers.usual(self.models)[0] if frames is None else int(frames)

    def _high(self, high: float | None, guidance: float | None, guidance_scale: float | None) -> float | None:
        """The scale of the expert for much noise: that which is given, or the authors' where no other guidance is.
        Raises `UserError` where there is none."""
        usual = transformers.usual(self.models)[6]
        if high is None:
            return usual if guidance is guidance_scale is None else None
        arguments.number("high_noise_guidance_scale", high)
        if usual is None:
            raise UserError(f"high_noise_guidance_scale={high} for one transformer; permitted: None, or a model of two "
                            "experts", "high_noise_guidance_scale")
        if self._weight(guidance, guidance_scale) <= 0:
            raise UserError(f"high_noise_guidance_scale={high} without guidance (guidance={guidance}, guidance_scale="
                            f"{guidance_scale}), which it takes the place of at much noise; permitted: None, or a "
                            "guidance above 0, a guidance_scale above 1", "high_noise_guidance_scale")
        return float(high)

    def generate(
        self, stage: Stage, captions: tuple[str, ...], guidance: Any, *more: Any, high: float | None = None,
        **given: Any,
    ) -> Generated:
        """As of all pipelines, with the weight of the guidance of the expert for much noise."""
        sampling = dataclasses.replace(stage.sampling, high_noise_guidance=high if guidance else None)
        return super().generate(dataclasses.replace(stage, sampling=sampling), captions, guidance, *more, **given)


class WanTextToVideo(Wan):
    """Videos of texts, by one transformer or by two experts.

        pipeline = vdm_jax.from_pretrained("Wan2.1-T2V-1.3B-Diffusers", dtype="bfloat16")
        pipeline("a cat on a surfboard", num_frames=33, seed=3).save("cat.mp4")
    """

    def __call__(
        self, prompt: str | Sequence[str], *, negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None, width: int | None = None, num_frames: int | None = None,
        num_inference_steps: int | None = None, guidance: float | None = None, guidance_scale: float | None = None,
        high_noise_guidance_scale: float | None = None, num_per_prompt: int = 1, fps: int | None = None,
        image: Picture | Sequence[Picture] | None = None, decode_chunk_size: int | None = None, seed: int = 0,
        latents: Float[np.ndarray, "B T H W C"] | None = None, progress: Progress | bool | None = None,
        cache: Cache | ByChange | None = None,
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
          cache: which steps reuse what the blocks have added in an earlier one, of models of one transformer.

        Raises `UserError` for sizes that the model cannot take, for numbers of texts that do not fit, for
        high_noise_guidance_scale of one transformer or without guidance, and for a cache of two experts.
        """
        given = {} if image is None else {"masked_video": self._begun(
            image, prompt, num_per_prompt, self._length(num_frames, height, width), height, width)}
        return self.videos(
            prompt, negative_prompt, (num_frames, height, width), steps=num_inference_steps, guidance=(
                guidance, guidance_scale), high=high_noise_guidance_scale, copies=num_per_prompt, fps=fps,
            chunk=decode_chunk_size, seed=seed, latents=latents, progress=progress, cache=cache, **given)

    def _begun(
        self, image: Any, prompt: Any, copies: int, frames: int, height: int | None, width: int | None
    ) -> MaskedVideo:
        """Videos of which the first frame is given. Raises `UserError` for other numbers of pictures than of prompts,
        and models that take none."""
        if not transformers.network_of(self.folder, self.models).in_place:
            raise UserError("image=... for a model of texts alone; permitted: None, or a folder with expand_timesteps, "
                            "such as that of the 5B model", "image")
        return first_frame(self.pixels(self.pictures("image", image, prompt), copies, height, width), frames)


class WanImageToVideo(Wan):
    """Videos of pictures and texts: of the first frame, or of the first and the last one.

        pipeline = vdm_jax.from_pretrained("Wan2.1-I2V-14B-480P-Diffusers", dtype="bfloat16")
        pipeline("the boat leaves the harbour", image="boat.jpg", num_frames=33, seed=3).save("boat.mp4")
    """

    def __call__(
        self, prompt: str | Sequence[str], image: Picture | Sequence[Picture], *,
        last_image: Picture | Sequence[Picture] | None = None, negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None, width: int | None = None, num_frames: int | None = None,
        num_inference_steps: int | None = None, guidance: float | None = None, guidance_scale: float | None = None,
        high_noise_guidance_scale: float | None = None, num_per_prompt: int = 1, fps: int | None = None,
        decode_chunk_size: int | None = None, seed: int = 0, latents: Float[np.ndarray, "B T H W C"] | None = None,
        progress: Progress | bool | None = None,
        cache: Cache | ByChange | None = None,
    ) -> Generated:
        """Generate videos that begin with pictures, one per prompt or `num_per_prompt`. The first frame is what the
        model makes of the picture, not the picture itself.

        Args:
          prompt: what the videos should show.
          image: what the video of each prompt begins with, one for all or one for each; resized to the frames, so cut
            it to their aspect first.
          last_image: what it ends with, likewise: needed by a model of first and last frame, permitted with Wan 2.2,
            whose models see no tokens of pictures.
          height, width: pixels, multiples of 16; 480x832 by default, 720x1280 of a model of first and last frame.
          num_inference_steps: of the scheduler; 40 by default, 50 of a model of first and last frame.
          guidance, guidance_scale: of the prompt, as of `WanTextToVideo`; s = 5 by default, 3.5 with experts.
          negative_prompt, num_frames, high_noise_guidance_scale, num_per_prompt, fps, decode_chunk_size, seed, latents,
            progress, cache: as of `WanTextToVideo`.

        Raises `UserError` for what is no picture, for pictures that the model cannot take or lacks, and as
        `WanTextToVideo`.
        """
        frames, copies = self._length(num_frames, height, width), num_per_prompt
        pictures = [self.pictures("image", image, prompt)]
        self._check_last(last_image, frames)
        if last_image is not None:
            pictures.append(self.pictures("last_image", last_image, prompt))
        given = {"masked_video": ends_given([self.pixels(one, copies, height, width) for one in pictures], frames)}
        if self.encoder.image is not None:
            of_video = [picture for both in zip(*pictures, strict=True) for picture in both]
            tokens = self.encoder.image_tokens(of_video)
            given |= {name: np.repeat(value, copies, axis=0) for name, value in tokens.items()}
        return self.videos(
            prompt, negative_prompt, (num_frames, height, width), steps=num_inference_steps, guidance=(
                guidance, guidance_scale), high=high_noise_guidance_scale, copies=copies, fps=fps,
            chunk=decode_chunk_size, seed=seed, latents=latents, progress=progress, cache=cache, **given)

    def _check_last(self, last_image: Any, frames: int) -> None:
        """Raise `UserError` for a last picture that the model cannot take, or lacks."""
        network = transformers.network_of(self.folder, self.models)
        needed = self.encoder.image is not None and self.encoder.seen > 1
        taken = not network.in_place and (needed or self.encoder.image is None) and frames > 1
        if (needed and last_image is None) or (last_image is not None and not taken):
            raise UserError(f"last_image={'None' if last_image is None else '...'} with {frames} frames and a model of "
                            f"the {'first and last frame' if needed else 'first frame'}; permitted: "
                            f"{'a picture' if needed else 'None'}", "last_image")


def ends_given(pictures: Sequence[Float[np.ndarray, "B H W 3"]], frames: int) -> MaskedVideo:
    """Videos of which the first frame is given, or the first and the last one."""
    if len(pictures) == 1:
        return first_frame(pictures[0], frames)
    video = np.zeros((len(pictures[0]), frames, *pictures[0].shape[1:]), np.float32)
    video[:, 0], video[:, -1] = pictures
    mask = np.isin(np.arange(frames), (0, frames - 1)).astype(np.float32)[None, :, None, None, None]
    return MaskedVideo(video, np.broadcast_to(mask, (len(video), *mask.shape[1:])))
