"""Stable Video Diffusion: videos that begin with a picture (Blattmann et al. 2023, arXiv 2311.15127)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vdm_jax.conditions.frame_masks import MaskedVideo
from vdm_jax.diffusion.arrays import noise_from_keys
from vdm_jax.errors import UserError
from vdm_jax.generation.compiled import Noise
from vdm_jax.generation.generator import Generated, Progress
from vdm_jax.generation.one_stage import sample_keys
from vdm_jax.generation.released.pictures import Picture, open_pictures, resized
from vdm_jax.pipelines import arguments
from vdm_jax.pipelines.base import LatentPipeline


class ImageToVideo(LatentPipeline):
    """Videos of pictures.

        pipeline = vdm_jax.from_pretrained("stable-video-diffusion-img2vid", dtype="bfloat16")
        pipeline("rocket.png", seed=3, decode_chunk_size=4).save("rocket.mp4")
    """

    def __call__(
        self, image: Picture | Sequence[Picture], *, height: int = 576, width: int = 1024,
        num_frames: int | None = None, num_inference_steps: int = 25, min_guidance_scale: float = 1.0,
        max_guidance_scale: float = 3.0, fps: int = 7, motion_bucket_id: int = 127, noise_aug_strength: float = 0.02,
        decode_chunk_size: int | None = None, seed: int = 0, latents: Float[np.ndarray, "B T H2 W2 C"] | None = None,
        image_noise: Float[np.ndarray, "B H W 3"] | None = None, progress: Progress | bool | None = None,
    ) -> Generated:
        """Generate a video per picture.

        Args:
          image: file, Pillow image or array `[H, W, 3]`, see `open_pictures`; it is resized to the frames, so cut it to
            their aspect first.
          height, width: pixels; other sizes than those of the training, 576 x 1024, give worse videos.
          num_frames: the model's by default (14, or 25 for XT).
          num_inference_steps: of the scheduler.
          min_guidance_scale, max_guidance_scale: s in `uncond + s (cond - uncond)` of the first and of the last frame,
            linear between them; s = 1 is off, and where neither is above 1 none is computed. s is 1 + w.
          fps: frames per second that the network is conditioned on (it learnt them less one), and of the file that is
          written. motion_bucket_id: how much moves, 1 to 255; the authors published no scale.
          noise_aug_strength: standard deviation of the noise on the picture; more of it lets the video leave it.
          decode_chunk_size: frames decoded at a time; all by default. Fewer take less memory and flicker a little.
          seed: same seed, same place in the batch, same video.
          latents: `[B, T, h, w, C]`, standard normal noise to begin with; drawn from the seed by default.
          image_noise: `[B, H, W, 3]`, standard normal noise for the picture; drawn from the seed by default.
          progress: called with ("denoising", steps done, steps); a bar on a terminal by default; False: nothing.

        Raises `UserError` for what is no picture and for sizes that the model cannot take.
        """
        arguments.shared(height=height, width=width, steps=num_inference_steps, seed=seed, progress=progress)
        arguments.video(frames=num_frames, fps=fps, chunk=decode_chunk_size)
        arguments.whole("motion_bucket_id", motion_bucket_id, 0, 255)
        scales = [arguments.number(name, value) for name, value in (
            ("min_guidance_scale", min_guidance_scale), ("max_guidance_scale", max_guidance_scale))]
        noise_aug_strength = arguments.number("noise_aug_strength", noise_aug_strength)
        images = open_pictures(image)
        if not images or height is None or width is None:
            raise UserError(f"{len(images)} pictures with height={height}, width={width}; permitted: one or more, "
                            "sizes in pixels")
        frames = (self.models["unet"].fields.get("num_frames") or 14) if num_frames is None else num_frames
        stage = self.stage(frames, height, width, decode_chunk_size)
        latents = self.checked_noise(stage, len(images), num_inference_steps, latents)
        image_noise = arguments.noise("image_noise", image_noise, (len(images), height, width, 3))
        if image_noise is None:
            keys = sample_keys(int(seed), jnp.arange(len(images)), 1)
            image_noise = np.asarray(noise_from_keys(keys, 0, (len(images), height, width, 3)))
        weights = tuple(scale - 1 for scale in scales) if max(scales) > 1 else None
        return self.generate(
            stage, ("",) * len(images), weights, num_inference_steps, progress, fps=fps, seed=int(seed),
            noise=Noise(latents, image_noise[:, None]), motion=float(motion_bucket_id), masked_video=first_frame(
                resized(images, height, width), frames), picture_noise=noise_aug_strength, conditioning_fps=float(fps),
            **self.encoded(images))

    def encoded(self, images: Sequence[Any]) -> dict[str, Any]:
        """The pictures as the one token that the network attends to."""
        return self.encoder.pictures(images)


def first_frame(pixels: Float[np.ndarray, "B H W 3"], frames: int) -> MaskedVideo:
    """Videos of which the first frame is given, in no more memory than that."""
    mask = (np.arange(frames) == 0).astype(np.float32)[None, :, None, None, None]
    shape = (len(pixels), frames, *pixels.shape[1:])
    return MaskedVideo(np.broadcast_to(pixels[:, None], shape), np.broadcast_to(mask, (len(pixels), *mask.shape[1:])))
