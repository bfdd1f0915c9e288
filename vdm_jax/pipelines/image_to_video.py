"""Stable Video Diffusion: videos that begin with a picture (Blattmann et al. 2023, arXiv 2311.15127)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdm_jax.diffusion.arrays import noise_from_keys
from vdm_jax.errors import UserError
from vdm_jax.generation.generator import Generated, Progress
from vdm_jax.networks.autoencoders.config import Autoencoder
from vdm_jax.networks.encoders.clip_vision import PIXEL_MEAN, PIXEL_STD, CLIPVision
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.pipelines import arguments
from vdm_jax.pipelines.denoising import Given, Guided
from vdm_jax.pipelines.parts import Folder
from vdm_jax.pipelines.pictures import Picture, for_encoder, open_pictures, resized
from vdm_jax.pipelines.pipeline import LatentPipeline
from vdm_jax.video.arrays import to_uint8

SCALARS = 3  # frames per second less one, motion bucket, noise on the picture


class ImageToVideo(LatentPipeline):
    """Videos of pictures.

        pipeline = vdm_jax.from_pretrained("stable-video-diffusion-img2vid", dtype="bfloat16")
        pipeline("rocket.png", seed=3, decode_chunk_size=4).save("rocket.mp4")
    """

    def __init__(self, folder: Folder):
        models = {"unet": folder.model("unet", LatentUNet), "vae": folder.model("vae", Autoencoder),
                  "image_encoder": folder.model("image_encoder", CLIPVision)}
        _check(folder, models["unet"].config, models["vae"].config, models["image_encoder"].config)
        super().__init__(folder, models, folder.scheduler())
        pixels = folder.fields("feature_extractor/preprocessor_config.json")
        self.pixels = pixels.get("image_mean", PIXEL_MEAN), pixels.get("image_std", PIXEL_STD)

    def __call__(
        self, image: Picture | Sequence[Picture], *, height: int = 576, width: int = 1024,
        num_frames: int | None = None, num_inference_steps: int = 25, min_guidance_scale: float = 1.0,
        max_guidance_scale: float = 3.0, fps: int = 7, motion_bucket_id: int = 127, noise_aug_strength: float = 0.02,
        decode_chunk_size: int | None = None, seed: int = 0, latents: Float[np.ndarray, "B T H W C"] | None = None,
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
          fps: frames per second that the network is told (it learnt them less one), and of the file that is written.
          motion_bucket_id: how much moves, 1 to 255; the authors published no scale.
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
        shape = self.latent_shape(len(images), frames, height, width)
        self.check_noise(shape, num_inference_steps, latents)
        image_noise = arguments.noise("image_noise", image_noise, (len(images), height, width, 3))
        beside = self._picture_latents(images, frames, height, width, noise_aug_strength, seed, image_noise)
        scalars = jnp.tile(jnp.float32([fps - 1, motion_bucket_id, noise_aug_strength]), (len(images), 1))
        given = Guided(Given(self._embedding(images), beside, scalars))
        if max(scales) > 1:
            # Nothing is known of the picture; fps, motion and noise stay.
            null = Given(*jax.tree.map(jnp.zeros_like, given.conditional[:2]), scalars)
            weight = jnp.linspace(*scales, frames, dtype=jnp.float32) - 1
            given = Guided(given.conditional, null, weight)
        found = self.denoise(given, shape, num_inference_steps, seed, latents, progress)
        video = np.asarray(to_uint8(self.decode(found, decode_chunk_size)))
        return Generated(("",) * len(images), {"video": video}, {"video": float(fps)})

    def _embedding(self, images: Sequence[Any]) -> Float[Array, "B 1 1 C"]:
        """The picture as the one token that the network attends to."""
        model = self.models["image_encoder"]
        pixels = for_encoder(images, model.config.size, *self.pixels)

        def encode(params: Any, pixels: Array) -> Array:
            return model.module.apply({"params": params}, pixels).pooled[:, None, None]

        return self.run("picture", encode, model.params, self.place(pixels, len(images)))

    def _picture_latents(
        self, images: Sequence[Any], frames: int, height: int, width: int, strength: float, seed: int,
        noise: Float[np.ndarray, "B H W 3"] | None,
    ) -> Float[Array, "B T H W C"]:
        """Mode of the latents of the noisy picture, as the encoder gives them (not scaled), for every frame."""
        pixels = resized(images, height, width)
        if noise is None:
            noise = noise_from_keys(self.keys(seed, len(images), 1), 0, pixels.shape)
        noisy = pixels + strength * jnp.asarray(noise, jnp.float32)
        model = self.models["vae"]

        def encode(params: Any, pixels: Array) -> Array:
            return model.module.apply({"params": params}, pixels[:, None], method="encode").mean

        latents = self.run("encode", encode, model.params, self.place(noisy, len(images)))
        return jnp.repeat(latents, frames, axis=1)


def _check(folder: Folder, unet: LatentUNet, vae: Autoencoder, encoder: CLIPVision) -> None:
    """Raises `UserError` where the parts do not fit."""
    wanted = {"in_channels": 2 * vae.latent_channels, "context_channels": encoder.project, "scalars": SCALARS,
              "temporal": True}
    for name, value in wanted.items():
        if getattr(unet, name) != value:
            raise UserError(f"{folder.path / 'unet'}: {name}={getattr(unet, name)}; permitted with the other parts of "
                            f"{folder.kind}: {value}")
