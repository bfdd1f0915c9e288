"""Parameters of a stage's network, and inputs of the shapes that it takes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.networks.autoencoder import AutoencoderKL
from vdm_jax.networks.config import EmbeddedText, WordEncoder
from vdm_jax.networks.latent_network import network_module
from vdm_jax.stages.autoencoding import AnyStage, AutoencoderStage
from vdm_jax.stages.stage import FirstFrame, Stage


def example_conditioning(stage: Stage, batch: int = 1) -> Conditioning:
    """Zeros of the shapes that the stage's network takes in training."""
    stage = stage.trained()
    text, conditioning = stage.network.text, Conditioning()
    if isinstance(text, WordEncoder):
        tokens = jnp.zeros((batch, 1, text.length), jnp.int32)
        conditioning = Conditioning(tokens=tokens, text_mask=tokens > 0)
    elif isinstance(text, EmbeddedText):
        conditioning = Conditioning(embeddings=jnp.zeros((batch, 1, 1, text.width)),
                                    text_mask=jnp.zeros((batch, 1, 1), bool))
    video = jnp.zeros((batch, *stage.shape))
    level = jnp.zeros((batch,))
    if stage.network.classes:
        conditioning = conditioning.replace(labels=jnp.zeros((batch,), jnp.int32))
    if stage.network.low_resolution:
        pixels = stage.latent is not None and stage.latent.low_resolution == "pixels"
        low = jnp.zeros((*video.shape[:-1], 3)) if pixels else video
        conditioning = conditioning.replace(low_resolution=low, augmentation=level)
    if isinstance(stage.source, FirstFrame):
        conditioning = conditioning.replace(image=video[:, :1])
    if stage.network.observed:
        conditioning = conditioning.replace(observed=video, observed_mask=video[..., :1])
    references = {r.name: jnp.zeros((batch, 1, 1, r.width)) for r in stage.network.references}
    known = ("known_step",) if getattr(stage.network, "known_steps", 0) else ()
    return conditioning.replace(references=references, scalars=dict.fromkeys((*stage.network.scalars, *known), level))


def initial_params(stage: AnyStage, key: PRNGKeyArray) -> Any:
    """Parameters of a stage's network."""
    if isinstance(stage, AutoencoderStage):
        spec = stage.network
        return AutoencoderKL(spec).init(key, jnp.zeros((1, spec.time_factor, spec.factor, spec.factor, 3)))["params"]
    video, level = jnp.zeros((1, *stage.trained().shape)), jnp.zeros((1,))
    return network_module(stage.network).init(key, video, level, example_conditioning(stage))["params"]
