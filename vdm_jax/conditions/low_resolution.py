"""The low-resolution video that a super-resolution stage starts from: degraded, enlarged, augmented, as channels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vdm_jax.conditions.conditioning import (
    Condition,
    Conditioning,
    Encode,
    Network,
    SampledVideos,
    Shapes,
    Sizes,
    Stage,
    TrainingClips,
)
from vdm_jax.conditions.sources import VideoSource
from vdm_jax.configuration import Size, config
from vdm_jax.diffusion.augmentation import Augmentation, NoiseAugmentation
from vdm_jax.errors import UserError
from vdm_jax.video.arrays import ResizeMethod, UpsampleMode, resize, subsample_frames, upsample_frames
from vdm_jax.video.arrays import crop as crop_frames


@config
class LowResolution(VideoSource):
    """The degraded video a super-resolution stage starts from, and how it is brought back to full size."""

    shown = "low resolution"
    condition = "low_resolution"

    frames: Size
    height: Size  # pixels
    width: Size  # pixels
    fill: UpsampleMode = "repeat"  # frames in between: repeated, blank or blended
    resize: ResizeMethod = "bilinear"  # pixels in between
    augmentation: Augmentation = NoiseAugmentation()

    def size(self, video: Any) -> tuple[int, int, int]:
        """Its own."""
        return self.frames, self.height, self.width

    def degrade(self, x: Float[Array, "B T H W 3"]) -> Float[Array, "B T2 H2 W2 3"]:
        """Some of the frames, pixels averaged over areas."""
        return resize(subsample_frames(x, self.frames), self.height, self.width, "area")

    def stride(self, frames: int) -> int:
        """Frames of the stage for one of this."""
        return frames // self.frames

    def has_parts(self, frames: int) -> bool:
        """Where it has all frames."""
        return self.frames == frames

    def part(self, frames: int) -> LowResolution:
        """With so many frames."""
        return dataclasses.replace(self, frames=frames)

    def check(self, stage: Stage) -> None:
        """Raise `UserError` for sizes that do not divide the video's."""
        for name in ("frames", "height", "width"):
            whole, part = getattr(stage.video, name), getattr(self, name)
            if whole % part:
                raise UserError(f"Stage {stage.name!r}: source.{name}={part} does not divide video.{name}={whole}; "
                                f"permitted: divisors of {whole}")


class LowResolutionVideo(Condition):
    """The enlarged low-resolution video and the level of the noise on it."""

    name = "low_resolution"
    enters = "channels"
    parts = ("low_resolution", "augmentation")
    frame_parts = ("low_resolution",)
    made = True

    def taken(self, network: Network) -> bool:
        """Where the network has channels for it."""
        return network.low_resolution

    def shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """Of the size of what the network denoises."""
        pixels = stage.latent is not None and stage.latent.low_resolution == "pixels"
        *grid, channels = stage.shape
        return {"low_resolution": ((*grid, 3 if pixels else channels), jnp.float32), "augmentation": ((), jnp.float32)}

    def in_training(self, conditioning: Conditioning, clips: TrainingClips) -> dict[str, Any]:
        """The degraded clips at levels drawn for each."""
        level_key, _ = jax.random.split(clips.key)
        logsnr = clips.stage.source.augmentation.draw_logsnr(level_key, len(clips.x))
        return low_resolution(clips.low, clips.stage, clips.keys, logsnr, corners=clips.corners, encode=clips.encode)

    def in_sampling(self, conditioning: Conditioning, videos: SampledVideos) -> dict[str, Any]:
        """The videos of the stage before, at the level for sampling."""
        augmentation = videos.stage.source.augmentation
        logsnr = jnp.full((videos.shape[0],), augmentation.sampling_logsnr)
        return low_resolution(videos.low, videos.stage, videos.keys, logsnr, shared_noise=videos.shared_noise,
                              corrupt=videos.corrupt and augmentation.while_sampling, encode=videos.encode)


def low_resolution(
    low: Float[Array, "B T H W 3"], stage: Stage, keys: Array, logsnr: Float[Array, " B"],
    *, corners: Int[Array, "B 2"] | None = None, corrupt: bool = True, shared_noise: bool = False,
    encode: Encode | None = None,
) -> dict[str, Array]:
    """The enlarged low-resolution video, or its latents, augmented per sample from `keys` `[B]` at level `logsnr`
    (Ho et al. 2021, arXiv 2106.15282, section 3), with the same noise for all frames where it is shared; with
    `corners`, its windows. `corrupt=False` leaves it as it is."""
    augmentation = stage.source.augmentation

    def augmented(x: Array, at: str) -> Array:
        return augmentation.augment(x, keys, logsnr, shared_noise) if corrupt and augmentation.at == at else x

    low = augmented(low, "low")
    large = enlarge(low, stage.source, low_grid(stage)) if corners is None else enlarge_window(low, corners, stage)
    if stage.latent is not None and stage.latent.low_resolution == "latents":
        large = encode(large)
    return {"low_resolution": augmented(large, "enlarged"), "augmentation": logsnr}


def enlarge(low: Float[Array, "B T H W 3"], source: LowResolution, video: Any) -> Float[Array, "B T2 H2 W2 3"]:
    """A low-resolution video at the frames and pixels of another one (`VideoSpec`), which is as large or larger."""
    return resize(upsample_frames(low, video.frames, source.fill), video.height, video.width, source.resize)


def low_grid(stage: Stage) -> Any:
    """The size (`VideoSpec`) to which a stage enlarges its low-resolution video: that of its own, or of its latents."""
    if stage.latent is None or stage.latent.low_resolution == "latents":
        return stage.video
    frames, height, width, _ = stage.shape
    return dataclasses.replace(stage.video, frames=frames, height=height, width=width)


def enlarge_window(
    low: Float[Array, "B T H W 3"], corners: Int[Array, "B 2"], stage: Stage
) -> Float[Array, "B T2 H2 W2 3"]:
    """`enlarge` followed by `cut_windows`, without enlarging whole frames.

    A window of low-resolution pixels is enlarged with one more pixel on each side, the last one that interpolation
    reaches, so that it equals the same window of an enlarged frame up to its edges.
    """
    grid, source, margin = low_grid(stage), stage.source, 1
    scales = grid.height // source.height, grid.width // source.width
    inner = [size // scale for size, scale in zip(stage.training.crop, scales_of(stage), strict=True)]
    low = jnp.pad(low, ((0, 0), (0, 0), (margin, margin), (margin, margin), (0, 0)), mode="edge")
    sizes = [size + 2 * margin for size in inner]
    low = upsample_frames(cut_windows(low, corners, sizes), grid.frames, source.fill)
    large = resize(low, sizes[0] * scales[0], sizes[1] * scales[1], source.resize)
    return crop_frames(large, margin * scales[0], margin * scales[1], inner[0] * scales[0], inner[1] * scales[1])


def scales_of(stage: Stage) -> tuple[int, int]:
    """Pixels of the stage's video for one of its source, along height and width."""
    return stage.video.height // stage.source.height, stage.video.width // stage.source.width


def cut_windows(x: Array, corners: Int[Array, "B 2"], sizes: Sequence[int]) -> Array:
    """Windows of these sizes (height, width), each from a corner of its own on."""
    return jax.vmap(lambda video, corner: crop_frames(video, corner[0], corner[1], *sizes))(x, corners)
