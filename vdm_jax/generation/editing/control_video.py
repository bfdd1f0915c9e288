"""ControlVideo: videos by an image network with a ControlNet, without training (Zhang et al. 2023, arXiv 2305.13077).

In the main network all frames attend to each other, the ControlNet sees each frame's map by itself, and all frames
begin with one noise. After two of the steps every other frame of the estimate is interpolated (`smoothing.py`), by
RIFE's network as in their code where its weights are given, or else by optical flow. Long videos are sampled from key
frames (`diffusion/key_frames.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from vdm_jax.attention import FirstFrames, Full
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.inputs import check_uncut
from vdm_jax.configuration import Count, Range, Share, config
from vdm_jax.diffusion.arrays import Video
from vdm_jax.diffusion.inversion import sampled_from, steps_from
from vdm_jax.diffusion.key_frames import from_key_frames, key_frames, published_window
from vdm_jax.diffusion.windows import ConditionalDenoiser
from vdm_jax.errors import UserError
from vdm_jax.generation.editing.ddim_inversion import deterministic
from vdm_jax.generation.editing.interpolation import by_network, parameters
from vdm_jax.generation.editing.parts import EditParts, EditsStage, from_one_noise
from vdm_jax.generation.editing.patterns import with_spatial_pattern
from vdm_jax.generation.editing.smoothing import by_flow, check_sides, smoothed
from vdm_jax.metrics.flow import require_opencv
from vdm_jax.networks.sparse_control import SparseControlNet
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Stage

MOST_TOGETHER = 64  # frames that all see each other, which takes time with the square of their number
Window = Annotated[int, Range(least=3)]


@config
class ControlVideo(EditsStage):
    """Full attention over space and time in the network and none of it in its ControlNets, one noise for all frames,
    deterministic DDIM. Sizes are those published for 50 steps."""

    name: ClassVar[str] = "controlvideo"
    inverts: ClassVar[bool] = False
    whole_video: ClassVar[bool] = True

    strength: Share = 1.0  # share of the steps that are made; 1: from noise, without the pixels of the given video
    # Steps after which frames are smoothed, counted from the end, where 1 is the last: of 50 these are 30 and 31 from 0
    smooth: tuple[Count, ...] = (20, 19)
    # File of RIFE's weights, version HDv3 (.safetensors, or the authors' .pkl), by which frames are interpolated; None:
    # by optical flow (OpenCV's DIS)
    interpolator: str | None = None
    # Long videos are sampled from key frames, so that the network never sees all frames at once
    hierarchical: bool = False
    window: Window | None = None  # frames from one key frame to the next, both included; None: floor(sqrt(frames))

    def __post_init__(self):
        if self.window is not None and not self.hierarchical:
            raise UserError(f"ControlVideo.window={self.window} with hierarchical=False; permitted: None, or "
                            "hierarchical=True")
        if self.interpolator is not None and not self.smooth:
            raise UserError(f"ControlVideo.interpolator={self.interpolator!r} with smooth=(), which interpolates no "
                            "frame; permitted: None, or steps in smooth")

    def stage(self, stage: Stage) -> Stage:
        """The stage whose frames see each other. Raises `UserError` as `with_spatial_pattern`, for a network that takes
        no map of the given video, for too many frames that see each other, and for frames that cannot be smoothed; and
        as `check_files`."""
        self.check_files()
        found = with_spatial_pattern(stage, Full())
        self._check_length(stage)
        if self.strength == 1 and not any(entry.condition.form == "map" for entry in stage.network.conditions):
            raise UserError(f"Stage {stage.name!r}: network that takes no control map with strength=1 of method="
                            f"{self.name!r}, which keep nothing of the given video; permitted: a network with a "
                            "ControlNet, or a lower strength", "ControlVideo.stage")
        if self.smooth and self.interpolator is None:
            require_opencv()
            check_sides(stage.video.height, stage.video.width)
        if not self.hierarchical or stage.latent is None:
            return found
        return dataclasses.replace(found, latent=dataclasses.replace(
            stage.latent, encode_frames=stage.latent.encode_frames or 1, decode_frames=stage.latent.decode_frames or 1))

    def files(self) -> tuple[Path, ...]:
        """The weights of the interpolating network."""
        return () if self.interpolator is None else (Path(self.interpolator),)

    def check_files(self) -> None:
        """Raise `UserError` where these cannot be read."""
        for path in self.files():
            parameters(path)

    def _check_length(self, stage: Stage) -> None:
        """Raise `UserError` for more frames that see each other than `MOST_TOGETHER`."""
        frames = stage.shape[0]
        window = self.window or published_window(frames)
        together = len(key_frames(frames, window)) if self.hierarchical else frames
        if together > MOST_TOGETHER:
            found = f"{together} key frames of window={window}" if self.hierarchical else f"{frames} frames"
            other = "a longer window" if self.hierarchical else "hierarchical=True, or fewer frames in a clip"
            raise UserError(f"Stage {stage.name!r}: {found} that all attend to each other with method={self.name!r}; "
                            f"permitted: up to {MOST_TOGETHER}, by {other}", "ControlVideo.length")

    def check(self, stage: Stage, sampling: Sampling) -> None:
        """Raise `UserError` for key frames with a network that tells frames by their place among its own, that takes
        maps of the frames around each one, or whose frames see each other in other ways than by spatial attention."""
        if not self.hierarchical:
            return
        check_uncut(stage.network.conditions, f"Stage {stage.name!r}: ControlVideo.hierarchical=True")
        network, terms, found = stage.network, [term.name for term in sampling.terms], None
        if network.unet.video:
            found = "a network with temporal layers or motion modules"
        elif network.unet.norm_over != "frame":
            found = f"a network with norm_over={network.unet.norm_over!r}"
        elif any(isinstance(net, SparseControlNet) for net in network.control_nets):
            found = "a SparseControlNet, which has motion modules,"
        elif "time" in terms:
            found = f"sampling.terms of {', '.join(terms)}"
        if found is not None:
            raise UserError(f"Stage {stage.name!r}: {found} with ControlVideo.hierarchical=True, by which frames are "
                            "estimated in parts of the video; permitted: an image network whose frames see each other "
                            "by spatial attention alone, terms without 'time', or hierarchical=False",
                            "ControlVideo.check")

    def sampling(self, sampling: Sampling) -> Sampling:
        """How a stage is sampled: by deterministic DDIM, all frames from the same noise. Raises `UserError` for key
        frames with windows."""
        if self.hierarchical and sampling.windows is not None:
            raise UserError(f"sampling.windows={sampling.windows} with ControlVideo.hierarchical=True; permitted: one "
                            "of them", "ControlVideo.sampling")
        return dataclasses.replace(deterministic(sampling), shared_noise=True)

    def composed(self, stage: Stage, estimate: Callable[[Stage], ConditionalDenoiser]) -> ConditionalDenoiser:
        """The network's estimate of all frames, or from that of key frames, which the others of a gap attend to."""
        frames = stage.shape[0]
        if not self.hierarchical:
            return estimate(stage)
        unet = dataclasses.replace(stage.network.unet, spatial_pattern=FirstFrames(count=2))
        gap = dataclasses.replace(stage, network=dataclasses.replace(stage.network, unet=unet))

        def at(conditioning: Conditioning, numbers: Any) -> Conditioning:
            return conditioning.at_frames(numbers, frames)

        return from_key_frames(estimate(stage), estimate(gap), at, frames=frames,
                               window=self.window or published_window(frames))

    def begin(self, x: Video, parts: EditParts) -> Video:
        """z at the first of the steps that are made."""
        return from_one_noise(x, parts, steps_from(parts.steps, self.strength), self.strength)

    def edit(self, x: Video, parts: EditParts) -> Video:
        """The edited video, or latents, without a smoother."""
        steps = steps_from(parts.steps, self.strength)
        if not len(steps.level):
            return x
        return sampled_from(self.begin(x, parts), parts.sampler, parts.target, parts.keys, steps, parts.process, True)

    def steps_made(self, steps: int) -> int:
        """Of so many steps, those that are made: the last ones."""
        return int(steps * self.strength)

    def pauses(self, steps: int) -> tuple[int, ...]:
        """Numbers of the steps after which frames are smoothed. Raises `UserError` for steps that are not made."""
        made = self.steps_made(steps)
        if made and self.smooth and max(self.smooth) > made:
            raise UserError(f"ControlVideo.smooth={self.smooth} with {made} steps; permitted: up to {made}, counted "
                            "from the end, or () for none", "ControlVideo.smooth")
        return tuple(sorted(steps - number for number in self.smooth)) if made else ()

    def at_pause(self, number: Int[np.ndarray, ""] | int, videos: Float[np.ndarray, "B T H W 3"]
                 ) -> Float[np.ndarray, "B T H W 3"]:
        """What the estimate of a step becomes."""
        return smoothed(videos, int(number), by_flow if self.interpolator is None else by_network(self.interpolator))
