"""Videos of texts, and of pictures and texts, by LTX-Video (HaCohen et al. 2024, arXiv 2501.00103)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vdm_jax.conditions.frame_masks import MaskedVideo
from vdm_jax.configuration import Share, ShareBelowOne, check_value
from vdm_jax.diffusion.caching import ByChange, Cache
from vdm_jax.errors import UserError
from vdm_jax.generation.generator import Generated, Progress
from vdm_jax.generation.released.pictures import Picture
from vdm_jax.generation.released.t5_transformers import at_rate, begun
from vdm_jax.pipelines import arguments
from vdm_jax.pipelines.base import FromText
from vdm_jax.pipelines.image_to_video import first_frame
from vdm_jax.stages.stage import Stage


class LTXTextToVideo(FromText):
    """Videos of texts, by one transformer whose tokens are latents of 8 frames and 32 x 32 pixels.

        pipeline = vdm_jax.from_pretrained("LTX-Video", dtype="bfloat16")
        pipeline("a clownfish between corals", num_frames=97, seed=3).save("fish.mp4")
    """

    def __call__(
        self, prompt: str | Sequence[str], *, negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None, width: int | None = None, num_frames: int | None = None,
        num_inference_steps: int | None = None, guidance: float | None = None, guidance_scale: float | None = None,
        num_per_prompt: int = 1, fps: int | None = None, image: Picture | Sequence[Picture] | None = None,
        decode_timestep: float | None = None, decode_noise_scale: float | None = None,
        decode_tile_size: int | None = None, seed: int = 0, latents: Float[np.ndarray, "B T H W C"] | None = None,
        progress: Progress | bool | None = None, cache: Cache | ByChange | None = None,
    ) -> Generated:
        """Generate videos, one per prompt or `num_per_prompt`.

        Args:
          prompt: what the videos should show; up to 128 tokens.
          negative_prompt: what they should not show; one for all or one for each prompt; None: nothing.
          height, width: pixels, multiples of 32; 512x704 by default.
          num_frames: of a video, 1 + 8n; 161 by default.
          num_inference_steps: of the scheduler; 50 by default.
          guidance: w in cond + w (cond - uncond); 0 is off and takes half the time; 2 by default.
          guidance_scale: the same as s = 1 + w; up to 1 is off. One of the two.
          num_per_prompt: videos of each prompt.
          fps: frames per second, on which the network is conditioned; 25 by default.
          image: what the video of each prompt begins with, one for all or one for each, resized to the frames, so cut
            it to their aspect first. None: nothing.
          decode_timestep, decode_noise_scale: from version 0.9.1 on, whose decoder is a last step of denoising, its
            time and the share of noise in the latents; 0.05 and 0.025 by default, as the authors have them.
          decode_tile_size: pixels of a side of the tiles that are decoded one after the other, of four latents or more,
            and share a quarter of them, in whole latents, over which they are blended; whole frames by default. Tiles
            take less memory. The picture is encoded in them too.
          seed: same seed, same place in the batch, same video.
          latents: `[B, T, h, w, C]`, standard normal noise to begin with; drawn from the seed by default.
          progress: called with ("denoising", steps done, steps); a bar on a terminal by default; False: nothing.
          cache: which steps reuse what the blocks have added in an earlier one.

        Raises `UserError` for sizes that the model cannot take, for numbers of texts or pictures that do not fit, for
        what is no picture, and for decode_timestep and decode_noise_scale of an autoencoder that takes none.
        """
        usual, decoding = self.generator.experiment.stages[0], self._decoding(decode_timestep, decode_noise_scale)
        fps = int(usual.video.fps) if fps is None else fps
        arguments.video(frames=num_frames, fps=fps, chunk=None)
        frames = num_frames or usual.video.frames
        given = {} if image is None else {"masked_video": self._begun(image, prompt, num_per_prompt, (
            frames, height, width))}
        return self.sample(
            prompt, negative_prompt, num_per_prompt, (frames, height, width), usual.sampling.steps
            if num_inference_steps is None else num_inference_steps, (guidance, guidance_scale), seed, latents,
            progress, fps=fps, tile=decode_tile_size, decoding=decoding, cache=cache, **given)

    def _begun(
        self, image: Any, prompt: Any, copies: int, size: tuple[int, int | None, int | None]
    ) -> MaskedVideo:
        """Videos of which the first frame is given."""
        arguments.size(*size)
        return first_frame(self.pixels(self.pictures("image", image, prompt), copies, *size[1:]), size[0])

    def _decoding(self, time: float | None, noise: float | None) -> dict[str, float]:
        """Fields of the autoencoder that are not the authors'. Raises `UserError` where it has none, and for values out
        of range."""
        given = {"decode_time": ("decode_timestep", time, Share), "decode_noise": (
            "decode_noise_scale", noise, ShareBelowOne)}
        found = {}
        for field, (name, value, permitted) in given.items():
            if value is None:
                continue
            if not self.models["vae"].config.timed:
                raise UserError(f"{name}={value} for an autoencoder without timestep_conditioning; permitted: None",
                                name)
            check_value(value, permitted, name)
            found[field] = float(value)
        return found

    def generate(
        self, stage: Stage, captions: tuple[str, ...], guidance: Any, *more: Any, fps: int,
        decoding: dict[str, float] | None = None, **given: Any,
    ) -> Generated:
        """As of all pipelines, of videos of `fps` frames per second that may begin with a picture, decoded as asked
        for."""
        stage = at_rate(begun(stage) if "masked_video" in given else stage, fps)
        autoencoder = dataclasses.replace(stage.latent.autoencoder, **(decoding or {}))
        stage = dataclasses.replace(stage, latent=dataclasses.replace(stage.latent, autoencoder=autoencoder))
        return super().generate(stage, captions, guidance, *more, fps=fps, **given)


class LTXImageToVideo(LTXTextToVideo):
    """Videos of pictures and texts: those that `LTXTextToVideo` makes with an `image`, which is needed here.

        pipeline = vdm_jax.from_pretrained("LTX-Video-I2V", dtype="bfloat16")
        pipeline("the boat leaves the harbour", image="boat.jpg", num_frames=97, seed=3).save("boat.mp4")
    """

    def __call__(
        self, prompt: str | Sequence[str], image: Picture | Sequence[Picture], *,
        negative_prompt: str | Sequence[str] | None = None, height: int | None = None, width: int | None = None,
        num_frames: int | None = None, num_inference_steps: int | None = None, guidance: float | None = None,
        guidance_scale: float | None = None, num_per_prompt: int = 1, fps: int | None = None,
        decode_timestep: float | None = None, decode_noise_scale: float | None = None,
        decode_tile_size: int | None = None, seed: int = 0, latents: Float[np.ndarray, "B T H W C"] | None = None,
        progress: Progress | bool | None = None, cache: Cache | ByChange | None = None,
    ) -> Generated:
        """Generate videos that begin with pictures, one per prompt or `num_per_prompt`. The arguments and errors are
        those of `LTXTextToVideo`."""
        if image is None:
            raise UserError("image=None for a LTXImageToVideoPipeline; permitted: a picture, or one for each prompt",
                            "image")
        return super().__call__(
            prompt, negative_prompt=negative_prompt, height=height, width=width, num_frames=num_frames,
            num_inference_steps=num_inference_steps, guidance=guidance, guidance_scale=guidance_scale,
            num_per_prompt=num_per_prompt, fps=fps, image=image, decode_timestep=decode_timestep,
            decode_noise_scale=decode_noise_scale, decode_tile_size=decode_tile_size, seed=seed, latents=latents,
            progress=progress, cache=cache)
