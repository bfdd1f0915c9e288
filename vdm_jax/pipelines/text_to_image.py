"""Stable Diffusion 1.x and 2.x: pictures of texts (Rombach et al. 2022, arXiv 2112.10752)."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdm_jax.cascade.generator import Generated, Progress
from vdm_jax.errors import UserError
from vdm_jax.networks.autoencoder import Autoencoder
from vdm_jax.networks.clip_text import CLIPText
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.pipelines.denoising import Given, Guided
from vdm_jax.pipelines.parts import Folder
from vdm_jax.pipelines.pipeline import LatentPipeline, prompts_of
from vdm_jax.video.arrays import to_uint8

log = logging.getLogger(__name__)


class Pictures(Generated):
    """Generated pictures, as videos of one frame."""

    def save(self, path: str | os.PathLike) -> Path:
        """Write the pictures to one .png, side by side; other suffixes as videos."""
        from vdm_jax.video.sheets import tile_videos
        from vdm_jax.video.writing import write_png

        if Path(path).suffix != ".png":
            return super().save(path)
        return write_png(path, self.videos[0, 0] if len(self.videos) == 1 else tile_videos(self.videos)[0])


class TextEncoder:
    """A pipeline's tokenizer and text encoder: texts to tokens for cross-attention."""

    def __init__(self, folder: Folder):
        self.model = folder.model("text_encoder", CLIPText)
        self.tokenizer = folder.tokenizer(self.model.config.length)
        self.masked = bool(self.model.fields.get("use_attention_mask"))

    def __call__(self, pipeline: LatentPipeline, texts: Sequence[str]) -> Float[Array, "b l c"]:
        """Embeddings of texts, padding included as the models were trained."""
        tokens = self.tokenizer(texts)
        module = self.model.module

        def encode(params: Any, ids: Array, mask: Array | None) -> Array:
            return module.apply({"params": params}, ids, mask).tokens

        return pipeline.run("text", encode, self.model.params, tokens.ids, tokens.mask if self.masked else None)


class TextToImage(LatentPipeline):
    """Pictures of texts.

        pipeline = vdm_jax.from_pretrained("stable-diffusion-v1-5", dtype="bfloat16")
        pipeline("a watercolour of a lighthouse", seed=3).save("lighthouse.png")
    """

    def __init__(self, folder: Folder):
        self.text = TextEncoder(folder)
        models = {"unet": folder.model("unet", LatentUNet), "vae": folder.model("vae", Autoencoder),
                  "text_encoder": self.text.model}
        check_unet(folder, models["unet"].config, models["vae"].config.latent_channels, self.text.model.config.width)
        super().__init__(folder, models, folder.scheduler())
        if folder.holds("safety_checker"):
            log.warning("the safety_checker of %s is not run: pictures are not filtered", folder.path)

    def __call__(
        self, prompt: str | Sequence[str], *, negative_prompt: str | Sequence[str] = "", height: int | None = None,
        width: int | None = None, num_inference_steps: int = 50, guidance_scale: float = 7.5, num_per_prompt: int = 1,
        seed: int = 0, decode_chunk_size: int | None = None, latents: Float[np.ndarray, "b t h w c"] | None = None,
        progress: Progress | None = None,
    ) -> Pictures:
        """Generate pictures, one per prompt or `num_per_prompt`.

        Args:
          prompt: what the pictures should show.
          negative_prompt: what they should not show; one for all or one for each prompt.
          height, width: pixels; those that the model was trained with by default.
          num_inference_steps: of the scheduler.
          guidance_scale: s in `uncond + s (cond - uncond)`; up to 1 is off and takes half the time.
          num_per_prompt: pictures of each prompt.
          seed: same seed, same place in the batch, same picture.
          decode_chunk_size: has no use for single frames, and is taken for the sake of other pipelines.
          latents: `[B, 1, h, w, C]`, standard normal noise to begin with; drawn from the seed by default.
          progress: called with ("denoising", steps done, steps).

        Raises `UserError` for sizes that the model cannot take and for numbers of texts that do not fit.
        """
        prompts = [text for text in prompts_of(prompt) for _ in range(check_count(num_per_prompt))]
        side = self.models["unet"].fields.get("sample_size") or 64
        sides = [size * self.factor for size in (side if isinstance(side, list) else (side, side))]
        shape = self.latent_shape(len(prompts), 1, height or sides[0], width or sides[1])
        context = self.text(self, prompts)[:, None]
        given = Guided(Given(context))
        if guidance_scale > 1:
            negative = prompts_of(negative_prompt, len(prompts_of(prompt)), "negative_prompt")
            null = self.text(self, [text for text in negative for _ in range(num_per_prompt)])[:, None]
            given = Guided(Given(context), Given(null), jnp.float32(guidance_scale - 1))
        found = self.denoise(given, shape, num_inference_steps, seed, latents, progress)
        pictures = np.asarray(to_uint8(self.decode(found, decode_chunk_size)))
        return Pictures(tuple(prompts), {"image": pictures}, {"image": 1.0})


def check_count(count: int) -> int:
    """A number of pictures. Raises `UserError` for none."""
    if count < 1:
        raise UserError(f"num_per_prompt={count}; permitted: 1 or more")
    return count


def check_unet(folder: Folder, unet: LatentUNet, latent_channels: int, context_channels: int) -> None:
    """Raises `UserError` where a U-Net does not fit the other parts: inpainting, depth, another text encoder."""
    if unet.in_channels != latent_channels or unet.classes or unet.video:
        raise UserError(f"{folder.path / 'unet'}: in_channels={unet.in_channels}, classes={unet.classes}, "
                        f"layers over frames: {unet.video}; permitted in {folder.kind}: {latent_channels}, 0, False")
    if unet.context_channels != context_channels:
        raise UserError(f"{folder.path / 'unet'}: cross_attention_dim={unet.context_channels}; permitted: "
                        f"{context_channels}, the width of its text encoder")
