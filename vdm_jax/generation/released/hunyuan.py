"""HunyuanVideo's pipeline as an experiment of one stage (Kong et al. 2024, arXiv 2412.03603): a transformer that was
distilled with the weight of the guidance, over causal latents, of texts that Llama and CLIP encode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from vdm_jax.conditions.frame_masks import MaskedVideo
from vdm_jax.conditions.inputs import Input
from vdm_jax.conditions.pooled_text import POOLED_TEXT
from vdm_jax.conditions.text import EmbeddedText
from vdm_jax.errors import UserError
from vdm_jax.generation.released.folder import Folder
from vdm_jax.generation.released.kinds import Kind
from vdm_jax.generation.released.schedulers import Scheduler
from vdm_jax.generation.released.t5_transformers import flow_sampling
from vdm_jax.generation.released.transformers import FIRST
from vdm_jax.networks.autoencoders.hunyuan import HunyuanAutoencoder
from vdm_jax.networks.encoders.clip_text import CLIPText
from vdm_jax.networks.encoders.llama import LlamaText
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.parallel.rules import batch_parts, batch_sharding
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.stage import Stage, VideoSpec
from vdm_jax.weights.model_kinds import kind_of
from vdm_jax.weights.pretrained import Pretrained
from vdm_jax.weights.tokenizers import Tokens

HUNYUAN = "HunyuanVideoPipeline"
TRANSFORMER = "HunyuanVideoTransformer3DModel"
LLAMA, CLIP = "text_encoder", "text_encoder_2"
# What the weights were trained with around a text (`hyvideo/constants.py` of the authors' code), the tokens of it that
# are cut off in front, and those that are kept
ASKED = (
    "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>")
CUT, KEPT = 95, 256


def networks_of(folder: Folder, weights: bool = True) -> dict[str, Pretrained]:
    """The networks by the names of their folders. Raises `UserError` for parts that are missing or do not fit."""
    found = {part: folder.model(part, wanted, weights) for part, wanted in (
        (FIRST, VideoTransformer), ("vae", HunyuanAutoencoder), (LLAMA, LlamaText), (CLIP, CLIPText))}
    network, vae, llama, clip = (found[part].config for part in (FIRST, "vae", LLAMA, CLIP))
    if kind_of(network).name != TRANSFORMER:
        raise UserError(f"{folder.path / FIRST} is a {kind_of(network).name}; permitted with {folder.kind}: "
                        f"{TRANSFORMER}")
    wanted = {"out_channels": vae.latent_channels, "text": EmbeddedText(width=llama.width),
              "conditions": (Input(name=POOLED_TEXT, width=clip.width),)}
    for field, value in wanted.items():
        if getattr(network, field) != value:
            raise UserError(f"{folder.path / FIRST}: {field}={getattr(network, field)}; permitted with the other parts "
                            f"of {folder.kind}: {value}")
    return found


def stage_of(folder: Folder, networks: dict[str, Pretrained], scheduler: Scheduler | None, kind: Kind) -> Stage:
    """The stage that a pipeline is, sampled as its authors do. Raises `UserError` for a scheduler of another noise."""
    scheduler = scheduler or folder.scheduler()
    video = VideoSpec(frames=kind.frames, height=kind.size[0], width=kind.size[1], fps=kind.fps)
    return Stage(name=kind.stage, video=video, latent=Latent(autoencoder=networks["vae"].config),
                 network=networks[FIRST].config, process=scheduler.process,
                 sampling=flow_sampling(folder, scheduler, kind))


class HunyuanEncoder:
    """The two encoders of a folder, as the generator takes them (`prompts.Encoder`)."""

    image = captions = None  # it sees no pictures, and is none of `CaptionEncoder`

    def __init__(self, folder: Folder, networks: dict[str, Pretrained]):
        self.mesh, self.llama, self.clip = folder.mesh, networks[LLAMA], networks[CLIP]
        self.words = folder.tokenizer(CUT + KEPT, llama=True)
        self.summary = folder.tokenizer(self.clip.config.length, "tokenizer_2")

        def vectors(params: Any, ids: Any, mask: Any) -> Any:
            return self.llama.module.apply({"params": params}, ids, mask)[:, CUT:]

        def pooled(params: Any, ids: Any) -> Any:
            return self.clip.module.apply({"params": params}, ids).pooled

        self._vectors, self._pooled = jax.jit(vectors), jax.jit(pooled)

    def __call__(
        self, captions: Sequence[str], negative: Sequence[str] | None, masked_video: MaskedVideo | None
    ) -> dict[str, np.ndarray]:
        """Embeddings of captions. Raises `UserError` for negative captions."""
        return self.texts(captions, negative)

    def texts(self, captions: Sequence[str], negative: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """`embeddings` `[B, L, C]` of Llama with their mask, and `pooled_text` `[B, C]` of CLIP. Raises `UserError` for
        negative captions, of which the network makes no estimate."""
        if negative is not None and any(negative):
            raise UserError(f"negative captions {list(negative)[:1]} for a network that takes the weight of guidance "
                            "and makes no estimate without the caption; permitted: None", "negative_prompt")
        rows = -(-len(captions) // batch_parts(self.mesh)) * batch_parts(self.mesh)
        filled = [*captions, *[""] * (rows - len(captions))]
        embeddings, mask = self._embedded(self.words([text.join(ASKED) for text in filled]))
        with jax.set_mesh(self.mesh):
            ids = jax.device_put(self.summary(filled).ids, batch_sharding(self.mesh))
            pooled = np.asarray(self._pooled(self.clip.params, ids), np.float32)
        count = len(captions)
        return {"embeddings": embeddings[:count], "text_mask": mask[:count], POOLED_TEXT: pooled[:count]}

    def _embedded(self, tokens: Tokens) -> tuple[Float[np.ndarray, "B L C"], Bool[np.ndarray, "B L"]]:
        """Vectors of the tokens after those that are cut off, up to the end of the longest text, zero after each."""
        with jax.set_mesh(self.mesh):
            placed = jax.device_put(tuple(tokens), batch_sharding(self.mesh))
            found = np.asarray(self._vectors(self.llama.params, *placed), np.float32)
        mask = tokens.mask[:, CUT:]
        longest = max(int(mask.sum(1).max()), 1)
        return np.where(mask[..., None], found, 0)[:, :longest], mask[:, :longest]
