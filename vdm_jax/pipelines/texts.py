"""What the pipelines that begin with a text share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdm_jax.cascade.generator import Progress
from vdm_jax.errors import UserError
from vdm_jax.interop.pretrained import Pretrained
from vdm_jax.networks.clip_text import CLIPText
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.pipelines.denoising import Given, Guided
from vdm_jax.pipelines.parts import Folder
from vdm_jax.pipelines.pipeline import LatentPipeline

SIDE = 64  # latents of a side where a U-Net's file does not say


class TextEncoder:
    """A pipeline's tokenizer and text encoder: texts to tokens for cross-attention."""

    def __init__(self, folder: Folder):
        self.model = folder.model("text_encoder", CLIPText)
        self.tokenizer = folder.tokenizer(self.model.config.length)
        self.masked = bool(self.model.fields.get("use_attention_mask"))
        self.width = self.model.config.width

    def __call__(self, pipeline: LatentPipeline, texts: Sequence[str]) -> Float[Array, "b l c"]:
        """Embeddings of texts, padding included as the models were trained."""
        tokens = self.tokenizer(texts)
        module = self.model.module

        def encode(params: Any, ids: Array, mask: Array | None) -> Array:
            return module.apply({"params": params}, ids, mask).tokens

        return pipeline.run("text", encode, self.model.params, tokens.ids, tokens.mask if self.masked else None)


class FromText(LatentPipeline):
    """A pipeline with a text encoder, and `models` beside it."""

    def __init__(self, folder: Folder, models: dict[str, Pretrained]):
        self.text = TextEncoder(folder)
        super().__init__(folder, models | {"text_encoder": self.text.model}, folder.scheduler())

    def sample(
        self, prompt: str | Sequence[str], negative_prompt: str | Sequence[str], count: int,
        size: tuple[int, int | None, int | None], steps: int, guidance_scale: float, seed: int,
        latents: Float[np.ndarray, "b t h w c"] | None, progress: Progress | None,
    ) -> tuple[tuple[str, ...], Float[Array, "b t h w c"]]:
        """Texts of all videos, `count` of each prompt, and their latents; `size` is frames, height and width in pixels,
        None for those of the training.

        Raises `UserError` for sizes that the model cannot take and for numbers of texts that do not fit.
        """
        if count < 1:
            raise UserError(f"num_per_prompt={count}; permitted: 1 or more")
        texts = prompts_of(prompt)
        negative = prompts_of(negative_prompt, len(texts), "negative_prompt")
        prompts, negative = (tuple(text for text in each for _ in range(count)) for each in (texts, negative))
        side = self.models["unet"].fields.get("sample_size") or SIDE
        sides = [n * self.factor for n in (side if isinstance(side, list) else (side, side))]
        frames, height, width = size
        shape = self.latent_shape(len(prompts), frames, height or sides[0], width or sides[1])
        given = Guided(Given(self.text(self, prompts)[:, None]))
        if guidance_scale > 1:
            null = Given(self.text(self, negative)[:, None])
            given = Guided(given.conditional, null, jnp.float32(guidance_scale - 1))
        return prompts, self.denoise(given, shape, steps, seed, latents, progress)


def prompts_of(prompt: Any, count: int | None = None, name: str = "prompt") -> tuple[str, ...]:
    """One text or several as a tuple; one is repeated `count` times. Raises `UserError` for another number."""
    texts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{name}={prompt!r}; permitted: a text or several")
    if count is not None and len(texts) == 1:
        texts = texts * count
    if count is not None and len(texts) != count:
        raise UserError(f"{name} has {len(texts)} texts for {count} prompts; permitted: one, or one for each")
    return texts


def check_unet(folder: Folder, unet: LatentUNet, latent_channels: int, context_channels: int, *, video: bool) -> None:
    """Raises `UserError` where a U-Net does not fit the other parts: inpainting, depth, another text encoder."""
    if unet.in_channels != latent_channels or unet.classes or unet.scalars or unet.video != video:
        raise UserError(f"{folder.path / 'unet'}: in_channels={unet.in_channels}, classes={unet.classes}, "
                        f"scalars={unet.scalars}, layers over frames: {unet.video}; permitted in {folder.kind}: "
                        f"{latent_channels}, 0, 0, {video}")
    if unet.context_channels != context_channels:
        raise UserError(f"{folder.path / 'unet'}: cross_attention_dim={unet.context_channels}; permitted: "
                        f"{context_channels}, the width of its text encoder")
