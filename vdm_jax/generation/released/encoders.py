"""What a released model is conditioned on: its texts and pictures, encoded by the folder's own encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from vdm_jax.conditions.frame_masks import MaskedVideo
from vdm_jax.conditions.image_tokens import IMAGE_TOKENS
from vdm_jax.data.text_encoding import PADDING, CaptionEncoder
from vdm_jax.errors import UserError
from vdm_jax.generation.released.folder import Folder
from vdm_jax.generation.released.pictures import for_clip, for_encoder, open_pictures
from vdm_jax.generation.released.transformers import FIRST, text_length
from vdm_jax.networks.encoders.clip_text import CLIPText
from vdm_jax.networks.encoders.clip_vision import PIXEL_MEAN, PIXEL_STD
from vdm_jax.parallel.rules import batch_parts, batch_sharding
from vdm_jax.weights.pretrained import Pretrained

if TYPE_CHECKING:
    from PIL import Image


def padded(
    vectors: Sequence[Float[np.ndarray, "_ C"]], length: int
) -> tuple[Float[np.ndarray, "B L C"], Bool[np.ndarray, "B L"]]:
    """Vectors of texts in one array with zeros after each, and where they are."""
    mask = np.arange(length)[None] < np.array([[len(text)] for text in vectors])
    out = np.zeros((*mask.shape, vectors[0].shape[1]), np.float32)
    out[mask] = np.concatenate(vectors)
    return out, mask


class ReleasedEncoder:
    """The encoders of a folder, as the generator takes them (`prompts.Encoder`): of texts, of pictures (Stable Video
    Diffusion), or of both (Wan 2.1 from pictures)."""

    def __init__(self, folder: Folder, networks: dict[str, Pretrained]):
        self.mesh, self.image = folder.mesh, networks.get("image_encoder")
        self.captions: CaptionEncoder | None = None
        if "text_encoder" in networks:
            model = networks["text_encoder"]
            length = model.config.length if isinstance(model.config, CLIPText) else text_length(networks)
            self.captions = CaptionEncoder.of(model, folder.tokenizer(length), folder.mesh,
                                              PADDING.get(folder.kind, "hidden"))
        if self.image is None:
            return
        module = self.image.module
        if self.captions is None:
            pixels = folder.fields("feature_extractor/preprocessor_config.json")
            self.pixels = pixels.get("image_mean", PIXEL_MEAN), pixels.get("image_std", PIXEL_STD)
            self._encode = jax.jit(lambda params, pixels: module.apply({"params": params}, pixels).pooled[:, None])
            return
        self.processor = folder.fields("image_processor/preprocessor_config.json")
        self._encode = jax.jit(lambda params, pixels: module.apply({"params": params}, pixels).penultimate)
        tokens, places = 1 + (self.image.config.size // self.image.config.patch) ** 2, networks[FIRST].config
        self.seen = max(places.image_places // tokens, 1)  # pictures: the first frame, or the first and the last one

    def __call__(
        self, captions: Sequence[str], negative: Sequence[str] | None, masked_video: MaskedVideo | None
    ) -> dict[str, np.ndarray]:
        """Embeddings of captions, and of the pictures among given frames; nothing of pictures where there are none.
        Raises `UserError` where a frame that is needed is not given."""
        found = {} if self.captions is None else self.texts(captions, negative)
        if self.image is None or masked_video is None:
            return found
        places = (0, -1) if self.captions is not None and self.seen > 1 else (0,)
        for place in places:
            if not np.asarray(masked_video.mask)[:, place].all():
                needed = "the first and the last frame" if len(places) > 1 else "the first frame"
                raise UserError(f"masked_video without {needed} of each video, whose pictures the model is conditioned "
                                f"on; permitted: a mask of 1 on {needed}")
        frames = np.asarray(masked_video.video[:, list(places)], np.float32)
        images = open_pictures(list(np.clip(frames.reshape(-1, *frames.shape[2:]) / 2 + 0.5, 0, 1)))
        return found | (self.pictures(images) if self.captions is None else self.image_tokens(images))

    def texts(self, captions: Sequence[str], negative: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """`embeddings` `[B, L, C]`, padding included as the models were trained, and `null_embeddings` of the negative
        captions, or `[L, C]` of the empty text. T5 has zeros after a text, and masks that say where it ends; a text of
        CogVideoX ends with its padding."""
        found, null = self.captions(captions), self.captions([""] if negative is None else negative)
        if self.captions.is_clip:
            return {"embeddings": np.stack(found), "null_embeddings": null[0] if negative is None else np.stack(null)}
        length = max(map(len, (*found, *null)))
        (embeddings, mask), (null, null_mask) = padded(found, length), padded(null, length)
        if negative is None:
            null, null_mask = null[0], null_mask[0]
        return {"embeddings": embeddings, "text_mask": mask, "null_embeddings": null, "null_mask": null_mask}

    def pictures(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        """`embeddings` `[B, 1, C]`: each picture as the one token that the network attends to."""
        return {"embeddings": self._encoded(for_encoder(images, self.image.config.size, *self.pixels))}

    def image_tokens(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        """`image_tokens` `[B, M, C]` of the pictures of each video, one after the other."""
        tokens = self._encoded(for_clip(images, self.processor))
        return {IMAGE_TOKENS: tokens.reshape(len(images) // self.seen, -1, tokens.shape[-1])}

    def _encoded(self, pixels: Float[np.ndarray, "B H W 3"]) -> Float[np.ndarray, "B L C"]:
        rows = -(-len(pixels) // batch_parts(self.mesh)) * batch_parts(self.mesh)
        filled = pixels[np.minimum(np.arange(rows), len(pixels) - 1)]
        with jax.set_mesh(self.mesh):
            found = self._encode(self.image.params, jax.device_put(filled, batch_sharding(self.mesh)))
        return np.asarray(found, np.float32)[: len(pixels)]
