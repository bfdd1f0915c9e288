"""What the pipelines that begin with a text share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdm_jax.diffusion.guidance import guidance_weight
from vdm_jax.errors import UserError
from vdm_jax.generation.generator import Progress
from vdm_jax.networks.encoders.clip_text import CLIPText
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.pipelines import arguments
from vdm_jax.pipelines.denoising import Given, Guided
from vdm_jax.pipelines.parts import Folder
from vdm_jax.pipelines.pipeline import LatentPipeline
from vdm_jax.weights.pretrained import Pretrained

SIDE = 64  # latents of a side where a U-Net's file does not say


class TextEncoder:
    """A pipeline's tokenizer and text encoder: texts to tokens for cross-attention."""

    def __init__(self, folder: Folder):
        self.model = folder.model("text_encoder", CLIPText)
        self.tokenizer = folder.tokenizer(self.model.config.length)
        self.masked = bool(self.model.fields.get("use_attention_mask"))
        self.width = self.model.config.width

    def __call__(self, pipeline: LatentPipeline, texts: Sequence[str]) -> Float[Array, "B L C"]:
        """Embeddings of texts, padding included as the models were trained."""
        tokens = self.tokenizer(texts)
        module = self.model.module

        def encode(params: Any, ids: Array, mask: Array | None) -> Array:
            return module.apply({"params": params}, ids, mask).tokens

        return pipeline.run("text", encode, self.model.params, tokens.ids, tokens.mask if self.masked else None)


class FromText(LatentPipeline):
    """A pipeline with a text encoder, and `models` beside it."""

    default_scale = 7.5  # of guidance; that the authors sample with

    def __init__(self, folder: Folder, models: dict[str, Pretrained]):
        self.text = TextEncoder(folder)
        super().__init__(folder, models | {"text_encoder": self.text.model}, folder.scheduler())

    def sample(
        self, prompt: str | Sequence[str], negative_prompt: str | Sequence[str] | None, count: int,
        size: tuple[int, int | None, int | None], steps: int,
        guidance: tuple[float | None, float | None], seed: int, latents: Float[np.ndarray, "B T H W C"] | None,
        progress: Progress | bool | None,
    ) -> tuple[tuple[str, ...], Float[Array, "B T H W C"]]:
        """Texts of all videos, `count` of each prompt, and their latents; `size` is frames, height and width in pixels,
        None for those of the training; `guidance` is weight and scale, of which one may be given.

        Raises `UserError` for sizes that the model cannot take and for numbers of texts that do not fit.
        """
        frames, height, width = size
        arguments.shared(height=height, width=width, steps=steps, seed=seed, progress=progress)
        count = arguments.whole("num_per_prompt", count, 1, arguments.COPIES)
        weight = self._weight(*guidance)
        texts = arguments.texts("prompt", prompt)
        negative = arguments.texts("negative_prompt", negative_prompt, len(texts))
        prompts, negative = (tuple(text for text in each for _ in range(count)) for each in (texts, negative))
        side = self.models["unet"].fields.get("sample_size") or SIDE
        sides = [n * self.factor for n in (side if isinstance(side, list) else (side, side))]
        shape = self.latent_shape(len(prompts), frames, sides[0] if height is None else height,
                                  sides[1] if width is None else width)
        self.check_noise(shape, steps, latents)
        given = Guided(Given(self.text(self, prompts)[:, None]))
        if weight > 0:
            null = Given(self.text(self, negative)[:, None])
            given = Guided(given.conditional, null, jnp.float32(weight))
        return prompts, self.denoise(given, shape, steps, seed, latents, progress)

    def _weight(self, guidance: Any, guidance_scale: Any) -> float:
        """w in cond + w (cond - uncond), of either way to write it; scales up to 1 are off."""
        for name, value in (("guidance", guidance), ("guidance_scale", guidance_scale)):
            if value is not None:
                arguments.number(name, value)
        weight = guidance_weight(guidance, guidance_scale)
        return float(self.default_scale - 1 if weight is None else weight)


def check_unet(folder: Folder, unet: LatentUNet, latent_channels: int, context_channels: int, *, video: bool) -> None:
    """Raises `UserError` where a U-Net does not fit the other parts: inpainting, depth, another text encoder."""
    if unet.in_channels != latent_channels or unet.classes or unet.scalars or unet.video != video:
        raise UserError(f"{folder.path / 'unet'}: in_channels={unet.in_channels}, classes={unet.classes}, "
                        f"scalars={unet.scalars}, layers over frames: {unet.video}; permitted in {folder.kind}: "
                        f"{latent_channels}, 0, 0, {video}")
    if unet.context_channels != context_channels:
        raise UserError(f"{folder.path / 'unet'}: cross_attention_dim={unet.context_channels}; permitted: "
                        f"{context_channels}, the width of its text encoder")
