"""The first frame: the picture that a video begins with, whose noisy latents enter as channels of every frame."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdm_jax.conditions.conditioning import (
    Condition,
    Conditioning,
    Encode,
    Network,
    Request,
    SampledVideos,
    Shapes,
    Sizes,
    Stage,
    TrainingClips,
)
from vdm_jax.conditions.sources import VideoSource
from vdm_jax.configuration import LogNoise, NonNegative, Spread, check_value, config
from vdm_jax.diffusion.arrays import noise_from_keys
from vdm_jax.errors import UserError

_LEVEL_STREAM = 2**31 - 7  # of a batch's key, which is otherwise split
_NOISE_STREAM = 2**31 - 4  # of a sample's key, of which samplers draw from 0, 1, 2, ... and augmentations from the last


@config
class FirstFrame(VideoSource):
    """The picture a video begins with, whose latents the network sees next to every frame (Blattmann et al. 2023, arXiv
    2311.15127, appendix D): noise is added to its pixels, then the mode of its moments is taken, not scaled."""

    shown = "first frame"
    condition = "first_frame"
    single_frames = True
    frames: ClassVar[int] = 1

    # Mean and standard deviation of the natural logarithm of the noise's standard deviation in training
    log_noise: tuple[LogNoise, Spread] = (-3.0, 0.5)
    noise: NonNegative = 0.02  # standard deviation of the noise in sampling

    def size(self, video: Any) -> tuple[int, int, int]:
        """One whole frame."""
        return 1, video.height, video.width

    def degrade(self, x: Float[Array, "B T H W 3"]) -> Float[Array, "B 1 H W 3"]:
        """The first frame."""
        return x[:, :1]

    def stride(self, frames: int) -> int:
        """All frames."""
        return frames

    def given(self, masked_video: Any, stage: Stage) -> tuple[Any, Any]:
        """The first frames that are given. Raises `UserError` where more or less is given."""
        mask = np.broadcast_to(masked_video.mask, (*masked_video.video.shape[:-1], 1))
        if not mask[:, 0].all() or mask[:, 1:].any():
            raise UserError(f"stage {stage.name!r} begins with a picture, and other conditioning frames are given; "
                            "permitted: their first frames, such as frame_masks.masked_first_frame makes")
        return masked_video.video[:, :1], None


class FirstFramePicture(Condition):
    """The latents of the first frame, and the standard deviation of the noise on it."""

    name = "first_frame"
    enters = "channels"
    parts = ("image",)
    guidance = "prompt"
    made = True

    def taken(self, network: Network) -> bool:
        """Where the network has channels for it."""
        return network.first_frame

    def shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """One frame of latents."""
        return {"image": ((1, *stage.shape[1:]), jnp.float32)}

    def in_training(self, conditioning: Conditioning, clips: TrainingClips) -> dict[str, Any]:
        """The clips' first frames, with noise of log-normal strength."""
        mean, std = clips.stage.source.log_noise
        drawn = jax.random.normal(jax.random.fold_in(clips.key, _LEVEL_STREAM), (len(clips.x),))
        return first_frame(clips.low, clips.keys, jnp.exp(mean + std * drawn), clips.encode)

    def arguments(self, network: Network) -> tuple[str, ...]:
        """The standard deviation of the noise on the picture."""
        return ("picture_noise",)

    def of_request(self, stage: Stage, request: Request) -> dict[str, Any]:
        """That which is asked for. Raises `UserError` for a negative one."""
        noise = request.get("picture_noise")
        if noise is None:
            return {}
        check_value(noise, NonNegative, "picture_noise")
        return {"scalars": {"noise": jnp.full(len(request.captions), noise, jnp.float32)}}

    def in_sampling(self, conditioning: Conditioning, videos: SampledVideos) -> dict[str, Any]:
        """The given pictures, with the noise that is asked for, or that for sampling."""
        own = jnp.full((videos.shape[0],), videos.stage.source.noise)
        noise = conditioning.scalars.get("noise", own)
        return first_frame(videos.low, videos.keys, noise, videos.encode, videos.picture_noise)


def first_frame(
    picture: Float[Array, "B 1 H W 3"], keys: Array, noise: Float[Array, " B"], encode: Encode,
    drawn: Float[Array, "B 1 H W 3"] | None = None,
) -> dict[str, Any]:
    """Latents of the pictures and of noise on them, of standard deviation `noise`, which is given or `drawn` from the
    `keys` `[B]` of the samples."""
    drawn = noise_from_keys(keys, _NOISE_STREAM, picture.shape) if drawn is None else drawn
    image = encode(picture + noise[:, None, None, None, None] * drawn, scaled=False)
    return {"image": image, "scalars": {"noise": noise}}
