"""What a stage is conditioned on while it is sampled."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm_jax.conditions.conditioning import CONDITIONS, Conditioning, SampledVideos, conditions_of
from vdm_jax.conditions.frame_masks import MaskedVideo
from vdm_jax.stages.inputs import encoder
from vdm_jax.stages.latent import encode_masked_video
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Stage


def masked_pixels(stage: Stage, low: Float[Array, "B T2 H2 W2 3"] | None,
                  masked_video: MaskedVideo | None) -> MaskedVideo | None:
    """Conditioning frames of a stage's videos: those that its source has, or what is given."""
    return masked_video if stage.source is None else stage.source.masked_video(low, masked_video)


def stage_conditioning(
    stage: Stage, sampling: Sampling, keys: Key[Array, " B"], text: Conditioning,
    low: Float[Array, "B T2 H2 W2 3"] | None, masked_video: MaskedVideo | None, autoencoder: Any = None, *,
    corrupt: bool = True, picture_noise: Float[Array, "B 1 H2 W2 3"] | None = None,
) -> tuple[Conditioning, MaskedVideo | None]:
    """All that a stage is conditioned on, and the conditioning frames of its videos or their latents; `corrupt=False`
    leaves `low` as it is, and `picture_noise` is that on the first frame, drawn from the keys by default."""
    for other in (condition for condition in CONDITIONS.values() if not condition.taken(stage.network)):
        text = text.replace(**{name: None for name in other.parts if not isinstance(getattr(text, name), dict)})
    masked_video, frames_apart = masked_pixels(stage, low, masked_video), stage.network.masks_frames
    pixels = masked_video
    if frames_apart and masked_video is None:
        masked_video = nothing_given(stage, len(keys))
    if stage.latent is not None and masked_video is not None:
        masked_video = encode_masked_video(stage.latent, autoencoder, masked_video, frames_apart)
    seen = masked_video if sampling.inpainting.shown or frames_apart else None
    videos = SampledVideos(stage, keys, low, seen, corrupt, sampling.shared_noise, encoder(stage, autoencoder),
                           picture_noise, pixels)
    conditioning = text
    for condition in conditions_of(stage.network):
        conditioning = conditioning.adding(condition.in_sampling(conditioning, videos))
    return conditioning, None if frames_apart else masked_video  # a latent may be given in part: the network makes it


def nothing_given(stage: Stage, count: int) -> MaskedVideo:
    """A masked video of which nothing is given, in the memory of a pixel."""
    shape = (count, *stage.video.shape)
    return MaskedVideo(jnp.broadcast_to(0.0, shape), jnp.broadcast_to(0.0, (*shape[:-1], 1)))
