"""Text: captions as word ids or as embeddings made beforehand, which enter as tokens and pooled in the vector."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from vdm_jax.conditions.conditioning import (
    Condition,
    Conditioning,
    Network,
    Request,
    SampledVideos,
    Shapes,
    Sizes,
    Stage,
    nulled,
)
from vdm_jax.conditions.vocabulary import PADDING, Vocabulary
from vdm_jax.configuration import DepthOrZero, Size, WidthOrZero, config
from vdm_jax.errors import UserError

TOKEN_WEIGHTS = "token_weights"  # of `Conditioning`, and the argument of a generator


@config
class WordEncoder:
    """Small word-level transformer encoder, trained with the network."""

    words: tuple[str, ...] = ()  # vocabulary; empty: taken from the data set when the run is made
    length: Size = 24  # tokens; longer captions are cut, with a warning
    width: Size = 64
    layers: DepthOrZero = 2
    head_dim: Size = 16
    pooling: Literal["mean", "attention"] = "mean"  # of tokens into the conditioning vector

    reads = ("text_mask", "tokens")  # of `Conditioning`
    arguments = ()  # of a generator, in addition to captions
    embedded = False  # whether texts arrive as embeddings

    def __post_init__(self):
        if self.width % self.head_dim:
            raise UserError(f"{type(self).__name__}.head_dim={self.head_dim} does not divide width={self.width}")

    @property
    def tokenize(self) -> Callable[[str], Int[np.ndarray, " L"]]:
        """From a caption to its ids `[L]`."""
        return Vocabulary(self.words, self.length).encode

    @property
    def open_vocabulary(self) -> bool:
        """Whether its words are still to be taken from the data."""
        return not self.words

    def with_words(self, words: tuple[str, ...]) -> WordEncoder:
        """With these words, unless it has its own."""
        return self if self.words else dataclasses.replace(self, words=words)

    def shapes(self, sizes: Sizes) -> Shapes:
        """Of one text."""
        return {"tokens": ((self.length,), jnp.int32), "text_mask": ((self.length,), jnp.bool_)}

    def batch_shapes(self, sizes: Sizes) -> Shapes:
        """Of one text of a batch."""
        return {"tokens": ((self.length,), jnp.int32)}

    def assumed(self, sizes: Sizes) -> str | None:
        """What of the shapes is assumed."""
        if self.words:
            return None
        return "the words of the captions are not known before the data is: their table is left out"

    def of_request(self, stage: Stage, request: Request) -> dict[str, Array]:
        """Ids of the captions."""
        words = Vocabulary(self.words, self.length).encode_prompts(request.captions)
        return of_tokens(jnp.asarray(words)[:, None])


@config
class EmbeddedText:
    """Text that arrives as embeddings computed beforehand by any encoder."""

    width: Size = 768  # channels per token
    project: WidthOrZero = 0  # channels per token after a learned linear map; 0: tokens stay as they come
    pooling: Literal["mean", "attention"] = "mean"  # of tokens into the conditioning vector

    reads = ("text_mask", "embeddings")
    arguments = ("embeddings", "text_mask", "null_embeddings", "null_mask")
    tokenize = None
    embedded = True
    open_vocabulary = False

    def with_words(self, words: tuple[str, ...]) -> EmbeddedText:
        """As it is: embeddings have no vocabulary."""
        return self

    def shapes(self, sizes: Sizes) -> Shapes:
        """Of one text."""
        return {"embeddings": ((sizes.tokens, self.width), jnp.float32), "text_mask": ((sizes.tokens,), jnp.bool_)}

    batch_shapes = shapes

    def assumed(self, sizes: Sizes) -> str | None:
        """What of the shapes is assumed."""
        return f"texts are assumed to have {sizes.tokens} tokens (--text-tokens)"

    def of_request(self, stage: Stage, request: Request) -> dict[str, Array]:
        """Embeddings of the captions, and of the empty text where they are given. Raises `UserError` for other
        shapes."""
        where, (embeddings, mask, null, null_mask) = f"given for stage {stage.name!r}", map(request.get, self.arguments)
        count, shape = len(request.captions), np.shape(embeddings)
        if len(shape) != 3 or (shape[0], shape[2]) != (count, self.width):
            raise UserError(f"embeddings of shape {list(shape)} {where}; permitted: [{count}, L, {self.width}]")
        mask = np.ones(shape[:2], bool) if mask is None else np.asarray(mask, bool)
        if mask.shape != shape[:2]:
            raise UserError(f"text_mask of shape {list(mask.shape)} {where}; permitted: {list(shape[:2])}")
        found = {"embeddings": jnp.asarray(embeddings, jnp.float32)[:, None], "text_mask": jnp.asarray(mask)[:, None]}
        if null is None:
            return found
        if np.shape(null) not in (shape[1:], shape):
            raise UserError(f"null_embeddings of shape {list(np.shape(null))} {where}; permitted: {list(shape[1:])}, "
                            "as long as the captions', or one for each caption")
        null_mask = np.ones(np.shape(null)[:-1], bool) if null_mask is None else np.asarray(null_mask, bool)
        return found | {"null_embeddings": jnp.broadcast_to(jnp.asarray(null, jnp.float32), shape),
                        "null_mask": jnp.broadcast_to(jnp.asarray(null_mask), shape[:2])}


TextInput = WordEncoder | EmbeddedText


def of_tokens(tokens: Int[Array, "B G L"]) -> dict[str, Array]:
    """Parts of a conditioning on word ids; padding is masked."""
    return {"tokens": tokens, "text_mask": tokens != PADDING}


class Text(Condition):
    """Captions of clips and of appended images."""

    name = "text"
    enters = "tokens"
    parts = ("tokens", "embeddings", "text_mask", "null_embeddings", "null_mask", "token_weights")
    frame_parts = ("tokens", "embeddings", "text_mask", "token_weights")
    fields = ("tokens", "frame_tokens", "embeddings", "text_mask", "null_embeddings", "null_mask", "image_tokens",
              "image_embeddings", "image_text_mask")
    frame_fields = ("frame_tokens",)
    host_fields = ("caption", "frame_captions", "image_captions")
    guidance = "prompt"

    def taken(self, network: Network) -> bool:
        """Where the network reads text."""
        return network.text is not None

    def needed(self, network: Network) -> tuple[str, ...]:
        """What it reads of texts."""
        return network.text.reads

    def shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """One text of each clip."""
        return {name: ((1, *shape), kind) for name, (shape, kind) in stage.network.text.shapes(sizes).items()}

    def batch_shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """Of the caption, of the captions of appended images, and of the empty text."""
        text, images = stage.network.text, stage.training.images_per_clip
        found = text.batch_shapes(sizes)
        of_images = {f"image_{name}": ((images, *shape), kind) for name, (shape, kind) in found.items()}
        null = {} if not sizes.null_text else {"null_embeddings": found["embeddings"], "null_mask": found["text_mask"]}
        of_frames = {"frame_tokens": ((sizes.clip[0], *found["tokens"][0]), jnp.int32)} if (
            sizes.frame_prompts and "tokens" in found) else {}
        return found | of_frames | (of_images if images else {}) | null

    def assumed(self, stage: Stage, sizes: Sizes) -> list[str]:
        """The length of texts, or the missing table of words."""
        note = stage.network.text.assumed(sizes)
        return [] if note is None else [note]

    def of_batch(self, stage: Stage, batch: Mapping[str, Array]) -> dict[str, Any]:
        """Captions as words or embeddings, one for each frame where there are such, or those of appended images after
        the clip's. Raises `UserError` when there are none, and for images next to captions of frames."""
        def joined(name: str) -> Array:
            clips = batch[name][:, None]
            return jnp.concatenate([clips, batch[f"image_{name}"]], axis=1) if "images" in batch else clips

        if "frame_tokens" in batch:
            if "images" in batch:
                raise UserError(f"stage {stage.name!r}: appended images with a caption for each frame; permitted: "
                                "images_per_clip=0")
            return of_tokens(batch["frame_tokens"])
        if "tokens" in batch:
            return of_tokens(joined("tokens"))
        if "embeddings" not in batch:
            raise UserError(f"stage {stage.name!r} reads text, but the batch has neither tokens nor embeddings")
        found = {"embeddings": joined("embeddings").astype(jnp.float32), "text_mask": joined("text_mask")}
        if "null_embeddings" in batch:
            found |= {"null_embeddings": batch["null_embeddings"].astype(jnp.float32), "null_mask": batch["null_mask"]}
        return found

    def arguments(self, network: Network) -> tuple[str, ...]:
        """Embeddings and masks, where it reads those, and factors on the attention to tokens."""
        return (*network.text.arguments, TOKEN_WEIGHTS)

    def of_request(self, stage: Stage, request: Request) -> dict[str, Any]:
        """The captions, or their embeddings, and the factors `[B, 1 or frames, tokens]` where there are any. Raises
        `UserError` for factors of another shape."""
        found, weights = stage.network.text.of_request(stage, request), request.get(TOKEN_WEIGHTS)
        if weights is None:
            return found
        shape, frames = np.shape(weights), stage.video.frames
        fits = len(shape) == 3 and shape[0] == len(request.captions) and shape[1] and (
            shape[1] == 1 or not shape[1] % frames)
        if not fits or not np.isfinite(weights).all():
            raise UserError(f"token_weights of shape {list(shape)} given for stage {stage.name!r}; permitted: finite "
                            f"numbers [{len(request.captions)}, 1 or {frames}, tokens]", "text.token_weights")
        every = max(shape[1] // frames, 1)
        return found | {TOKEN_WEIGHTS: jnp.asarray(weights, jnp.float32)[:, ::every]}

    def in_sampling(self, conditioning: Conditioning, videos: SampledVideos) -> dict[str, Any]:
        """Nothing. Raises `UserError` for factors of frames where latents are of several, and for networks in which
        factors do not act on all attention to text."""
        weights, frames = conditioning.token_weights, videos.shape[1]
        if weights is not None and not videos.stage.network.crosses_text:
            raise UserError(f"token_weights given for stage {videos.stage.name!r}, whose network does not attend to "
                            "text by cross-attention alone; permitted: None, or a UNet whose mixers see text by "
                            "CrossAttention, a VideoTransformer of text_stream='cross', a LatentNetwork",
                            "text.token_weights")
        if weights is not None and weights.shape[1] not in (1, frames):
            raise UserError(f"token_weights of {weights.shape[1]} frames for stage {videos.stage.name!r}, whose "
                            "latents are of several frames; permitted: one for the clip, or latents of one frame each",
                            "text.token_weights")
        return {}

    def request_of(self, network: Network, clips: list[Mapping[str, Any]]) -> dict[str, Any]:
        """The embeddings of the clips, where it reads those."""
        names = [name for name in network.text.arguments if name in clips[0]]
        return {name: clips[0][name] if name.startswith("null_") else np.stack([clip[name] for clip in clips])
                for name in names}

    def present(self, conditioning: Conditioning) -> bool:
        """Where there is a mask of its tokens."""
        return conditioning.text_mask is not None

    def null(self, conditioning: Conditioning, where: Bool[Array, " B"] | None) -> dict[str, Any]:
        """The null caption: that which came along, or no token; factors are 1."""
        weights = conditioning.token_weights
        plain = {} if weights is None else {TOKEN_WEIGHTS: nulled(weights, 1, where)}
        if conditioning.null_embeddings is None:
            return {"text_mask": nulled(conditioning.text_mask, False, where), **plain}
        return {**plain, "embeddings": nulled(conditioning.embeddings, conditioning.null_embeddings[:, None], where),
                "text_mask": nulled(conditioning.text_mask, conditioning.null_mask[:, None], where)}
