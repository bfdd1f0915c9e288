"""What a released model is conditioned on: its texts or pictures, encoded by the folder's own encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float

from vdm_jax.data.text_encoding import CaptionEncoder
from vdm_jax.generation.released.folder import Folder
from vdm_jax.generation.released.pictures import for_encoder, open_pictures
from vdm_jax.networks.encoders.clip_vision import PIXEL_MEAN, PIXEL_STD
from vdm_jax.parallel.rules import batch_parts, batch_sharding
from vdm_jax.weights.pretrained import Pretrained

if TYPE_CHECKING:
    from PIL import Image


class ReleasedEncoder:
    """The encoder of a folder, as the generator takes it (`prompts.Encoder`)."""

    def __init__(self, folder: Folder, networks: dict[str, Pretrained]):
        self.mesh, self.image = folder.mesh, networks.get("image_encoder")
        self.captions: CaptionEncoder | None = None
        if self.image is None:
            model = networks["text_encoder"]
            self.captions = CaptionEncoder.of(model, folder.tokenizer(model.config.length), folder.mesh)
            return
        pixels = folder.fields("feature_extractor/preprocessor_config.json")
        self.pixels = pixels.get("image_mean", PIXEL_MEAN), pixels.get("image_std", PIXEL_STD)
        module = self.image.module
        self._encode = jax.jit(lambda params, pixels: module.apply({"params": params}, pixels).pooled[:, None])

    def __call__(
        self, captions: Sequence[str], negative: Sequence[str] | None, pictures: Float[np.ndarray, "B H W 3"] | None
    ) -> dict[str, np.ndarray]:
        """Embeddings of captions, or of pictures in [-1, 1]; nothing where a picture is needed and there is none."""
        if self.captions is not None:
            return self.texts(captions, negative)
        if pictures is None:
            return {}
        return self.pictures(open_pictures(list(np.clip(pictures / 2 + 0.5, 0, 1))))

    def texts(self, captions: Sequence[str], negative: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """`embeddings` `[B, L, C]`, padding included as the models were trained, and `null_embeddings` of the negative
        captions, or `[L, C]` of the empty text."""
        null = np.stack(self.captions(negative)) if negative is not None else self.captions([""])[0]
        return {"embeddings": np.stack(self.captions(captions)), "null_embeddings": null}

    def pictures(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        """`embeddings` `[B, 1, C]`: each picture as the one token that the network attends to."""
        pixels = for_encoder(images, self.image.config.size, *self.pixels)
        rows = -(-len(pixels) // batch_parts(self.mesh)) * batch_parts(self.mesh)
        filled = pixels[np.minimum(np.arange(rows), len(pixels) - 1)]
        with jax.set_mesh(self.mesh):
            found = self._encode(self.image.params, jax.device_put(filled, batch_sharding(self.mesh)))
        return {"embeddings": np.asarray(found, np.float32)[: len(pixels)]}
