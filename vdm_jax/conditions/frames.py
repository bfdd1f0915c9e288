"""Conditioning frames: frames or pixels of the video itself that are given, and their mask, as channels.

A network with `conditioning_frames` takes them, zero elsewhere, and the mask as further input channels (Make-A-Video:
Singer et al. 2022, arXiv 2209.14792, section 3.3; Lumiere: Bar-Tal et al. 2024, arXiv 2401.12945). One network then
animates a picture, goes on with a clip, fills in frames or pixels, or makes a video from nothing, as far as its
training showed it such cases (`frame_masks.py`).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.conditions.conditioning import (
    Condition,
    Conditioning,
    Network,
    SampledVideos,
    Shapes,
    Sizes,
    Stage,
    TrainingClips,
)
from vdm_jax.conditions.frame_masks import (
    MaskedVideo,
    draw_masked_video,
    mask_of_latents,
    masked_first_frame,
    masked_key_frames,
)
from vdm_jax.conditions.sources import VideoSource
from vdm_jax.configuration import Range, Size, config
from vdm_jax.diffusion.arrays import noise_from_keys
from vdm_jax.errors import UserError

_MASK_STREAM, _STEP_STREAM = 2**31 - 3, 2**31 - 9  # of a batch's key, which is otherwise split
_NOISE_STREAM = 2**31 - 8  # of a sample's key, of which samplers draw from 0, 1, 2, ... and augmentations from the last


@config
class KeyFrames(VideoSource):
    """The video a stage fills in frames between: its frames 0, every, 2 every, ..., which the network takes as known
    (Make-A-Video: Singer et al. 2022, arXiv 2209.14792, section 3.3)."""

    shown = "key frames"
    condition = "frames"
    single_frames = True

    # Of the video it starts from; the stage's own has (frames - 1) every + 1
    frames: Annotated[int, Range(least=2, cap=2**16)]
    every: Annotated[int, Range(least=2, cap=10**9)] = 5  # frames from one to the next

    def size(self, video: Any) -> tuple[int, int, int]:
        """Some of the whole frames."""
        return self.frames, video.height, video.width

    def degrade(self, x: Float[Array, "B T H W 3"]) -> Float[Array, "B T2 H W 3"]:
        """Every k-th frame."""
        return x[:, :: self.every]

    def stride(self, frames: int) -> int:
        """From one to the next."""
        return self.every

    def has_parts(self, frames: int) -> bool:
        """Never: a part would begin between them."""
        return False

    def masked_video(self, low: Float[Array, "B T H W 3"] | None,
                     masked_video: MaskedVideo | None) -> MaskedVideo | None:
        """The key frames, where there are any."""
        return masked_video if low is None else masked_key_frames(low, self.every)

    def check(self, stage: Stage) -> None:
        """Raise `UserError` for a video of another length, and a network that takes no conditioning frames."""
        frames = (self.frames - 1) * self.every + 1
        if stage.video.frames != frames:
            raise UserError(f"Stage {stage.name!r}: video.frames={stage.video.frames} with {self}; permitted: {frames}")
        if not stage.network.conditioning_frames:
            raise UserError(f"Stage {stage.name!r}: network.conditioning_frames=False with {self}; permitted: True")


@config
class CurrentFrame(VideoSource):
    """The frame that a stage goes on from, the first of its video, which the network takes as known. The user gives it,
    or a segment before it made it."""

    shown = "current frame"
    condition = "frames"
    single_frames = True
    frames: ClassVar[int] = 1

    of: Size = 2  # frames of the stage's video

    def size(self, video: Any) -> tuple[int, int, int]:
        """One whole frame."""
        return 1, video.height, video.width

    def degrade(self, x: Float[Array, "B T H W 3"]) -> Float[Array, "B 1 H W 3"]:
        """The first frame."""
        return x[:, :1]

    def stride(self, frames: int) -> int:
        """All frames."""
        return frames

    def has_parts(self, frames: int) -> bool:
        """Never: a part would begin after it."""
        return False

    def masked_video(self, low: Float[Array, "B 1 H W 3"] | None,
                     masked_video: MaskedVideo | None) -> MaskedVideo | None:
        """The frame, where there is one."""
        return masked_video if low is None else masked_first_frame(low[:, 0], self.of)

    def check(self, stage: Stage) -> None:
        """Raise `UserError` for a video of another length, and a network that takes no conditioning frames."""
        if stage.video.frames != self.of or not stage.network.conditioning_frames:
            raise UserError(f"Stage {stage.name!r}: video.frames={stage.video.frames}, network.conditioning_frames="
                            f"{stage.network.conditioning_frames} with {self}; permitted: {self.of} and True")


class ConditioningFrames(Condition):
    """Given frames or pixels and their mask; latents may be noised to a timestep."""

    name = "frames"
    enters = "channels"
    parts = ("conditioning_frames", "conditioning_mask")
    frame_parts = ("conditioning_frames", "conditioning_mask")
    guidance = "frames"
    made = True

    def taken(self, network: Network) -> bool:
        """Where the network takes them."""
        return network.conditioning_frames

    def needed(self, network: Network) -> tuple[str, ...]:
        """Frames and mask, and the timestep of the noise on them, where the network takes it."""
        told = network.frame_noise is not None and network.frame_noise.told
        return self.parts + (("scalars/frame_noise_step",) if told else ())

    def shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """Those of what the network denoises, and the channels of the mask."""
        noisy = {"scalars/frame_noise_step": ((), jnp.float32)} if stage.network.frame_noise else {}
        return {"conditioning_frames": (stage.shape, jnp.float32),
                "conditioning_mask": ((*stage.shape[:3], stage.network.mask_channels), jnp.float32)} | noisy

    def in_training(self, conditioning: Conditioning, clips: TrainingClips) -> dict[str, Any]:
        """One of the stage's masking strategies for each clip; nothing is given of appended images."""
        stage, count = clips.stage, len(clips.x)
        draws = jax.random.split(jax.random.fold_in(clips.key, _MASK_STREAM), count)
        if stage.network.masks_frames:
            video, mask = draw_masked_video(stage.training.masking, clips.video, draws, clips.valid)[:2]
            return {"conditioning_frames": clips.encode(jnp.where(mask > 0, video, 0)), "conditioning_mask":
                    mask_of_latents(mask, clips.x.shape[1:4], stage.latent.frame_factor)}
        videos = clips.x[:, : clips.x.shape[1] - clips.images]
        found = conditioning_frames(videos.shape, draw_masked_video(stage.training.masking, videos, draws, clips.valid),
                         clips.images)
        if stage.network.frame_noise is None:
            return found
        steps = stage.network.frame_noise.steps
        step = jax.random.randint(jax.random.fold_in(clips.key, _STEP_STREAM), (count,), 0, steps)
        return noised(found, stage, clips.keys, step.astype(jnp.float32))

    def in_sampling(self, conditioning: Conditioning, videos: SampledVideos) -> dict[str, Any]:
        """What is given of the videos, or nothing."""
        network = videos.stage.network
        if network.masks_frames:
            video, mask = videos.masked_video[:2]
            return {"conditioning_frames": video, "conditioning_mask": mask}
        found = conditioning_frames(videos.shape, videos.masked_video)
        if network.frame_noise is None:
            return found
        step = jnp.full((videos.shape[0],), network.frame_noise.step, jnp.float32)
        return noised(found, videos.stage, videos.keys, step)

    def loss_mask(self, network: Network, conditioning: Conditioning) -> Float[Array, "B T H W 1"] | None:
        """The rest, where the network sees what is given without noise in place of the noisy video."""
        return 1 - conditioning.conditioning_mask if network.in_place else None


def conditioning_frames(shape: tuple[int, ...], masked_video: MaskedVideo | None = None, images: int = 0) -> dict[str,
                                                                                                                  Array]:
    """What is given of videos of `shape` `[B, T, H, W, C]`, and where; nothing of `images` appended ones."""
    if masked_video is None:
        masked_video = MaskedVideo(jnp.zeros(shape), jnp.zeros((*shape[:-1], 1)))
    mask = jnp.broadcast_to(masked_video.mask, (*shape[:-1], 1)).astype(jnp.float32)
    video = jnp.where(mask > 0, masked_video.video, 0)
    if images:
        video, mask = (jnp.pad(a, ((0, 0), (0, images), (0, 0), (0, 0), (0, 0))) for a in (video, mask))
    return {"conditioning_frames": video, "conditioning_mask": mask}


def noised(given: dict[str, Array], stage: Stage, keys: Array, step: Float[Array, " B"]) -> dict[str, Any]:
    """Given latents at a timestep of the network's table, with noise from the `keys` `[B]` of the samples, and the
    timestep, on which the network is conditioned (He et al. 2022, arXiv 2211.13221, section 3.3)."""
    x, mask, schedule = given["conditioning_frames"], given["conditioning_mask"], stage.network.frame_noise.schedule
    alpha, sigma = (a[:, None, None, None, None] for a in schedule.alpha_sigma(schedule.logsnr_at(step)))
    noisy = alpha * x + sigma * noise_from_keys(keys, _NOISE_STREAM, x.shape)
    return {"conditioning_frames": jnp.where(mask > 0, noisy, 0), "conditioning_mask": mask,
            "scalars": {"frame_noise_step": step}}
