"""Rerender-A-Video: key frames made one after another by an image network, without training, and the frames between
them propagated (Yang et al. 2023, arXiv 2306.07954).

Every `interval`-th frame is a key frame. In the network's self-attention on the way up it sees the first key frame and
the previous one in place of itself, at the same step; its estimates are fused with theirs (`rerender_fusion.py`). Key
frames are made by `rerender_keys.py`, the others by `propagation.py`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from vdm_jax.attention import Spatial
from vdm_jax.conditions.inputs import check_uncut
from vdm_jax.configuration import Ascending, Share, Size, config
from vdm_jax.diffusion.arrays import Video
from vdm_jax.diffusion.inversion import steps_from
from vdm_jax.errors import UserError
from vdm_jax.generation.editing.ddim_inversion import deterministic
from vdm_jax.generation.editing.parts import EditParts, EditsStage, from_one_noise
from vdm_jax.generation.editing.patterns import with_spatial_pattern
from vdm_jax.generation.editing.rerender_fusion import steps_of
from vdm_jax.metrics.flow import LEAST_SIDE, require_opencv
from vdm_jax.metrics.flow_estimators import BY_DIS, FlowEstimator, GMFlow
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Stage

# Shares of the steps at which something begins and ends; (): it is left out
Period = Annotated[tuple[Share, ...], Ascending()]


@config
class Rerender(EditsStage):
    """Key frames by deterministic DDIM, all from the same noise.

    Interval, periods and strengths are by default those of the authors' code, with three differences: `colour` is that
    of their sample settings (their code's own default, the period (1, 1), leaves it out); noise is made up for wherever
    z is mixed (by default they do so only where the mask of the pixels is flat, not along its borders); and the target
    of the pixels is not multiplied by that mask before noise is added to it (theirs is). Their optical flow is GMFlow's
    (`flow`), and OpenCV's DIS stands in for it where its weights are not given.
    """

    name: ClassVar[str] = "rerender"
    inverts: ClassVar[bool] = False
    by_key_frames: ClassVar[bool] = True

    interval: Size = 10  # frames from one key frame to the next
    strength: Share = 1.0  # share of the steps that are made; 1: from noise, without the pixels of the given video
    cross_frame: bool = True  # whether key frames see the first and the previous one in place of themselves
    shape: Period = (0.0, 0.1)  # steps whose estimate is that of another key frame, moved, where that is seen
    shape_from: Literal["first", "previous"] = "first"  # which key frame
    pixel: Period = (0.5, 0.8)  # steps, but for those at its ends, at which z is drawn towards the moved results
    pixel_strength: Share = 0.5  # by how much
    inner_strength: Share = 0.9  # how much of the noise is made up for that mixing takes away
    colour: Period = (0.8, 1.0)  # steps whose estimate has the colours of the first key frame's
    poisson: bool = False  # whether frames between key frames are blended by their gradients too
    # File of GMFlow's weights of one scale, .pth as published or .safetensors, for all optical flow; None: OpenCV's DIS
    flow: str | None = None

    def __post_init__(self):
        for name in ("shape", "pixel", "colour"):
            if len(getattr(self, name)) not in (0, 2):
                raise UserError(f"Rerender.{name}={getattr(self, name)}; permitted: two shares of the steps, or () to "
                                "leave it out")

    def stage(self, stage: Stage) -> Stage:
        """The stage, of which nothing is recomputed. Raises `UserError` as `with_spatial_pattern`, for a network with
        temporal layers or of a cascade, for one that takes no map of the given video where its pixels do not count, and
        for frames that are too small for optical flow; for a file of weights as `read_weights`; and last where OpenCV,
        which finds it or moves pictures along it, is not installed."""
        stage, video = with_spatial_pattern(stage, Spatial()), stage.video
        network, where = stage.network.rematerialised("none"), f"Stage {stage.name!r}"
        if stage.source is not None or network.unet.video:
            found = "a source" if stage.source is not None else "temporal layers or motion modules"
            raise UserError(f"{where}: {found} with method={self.name!r}, which makes single frames; permitted: an "
                            "image network", "Rerender.stage")
        if self.strength == 1 and not any(entry.condition.form == "map" for entry in network.conditions):
            raise UserError(f"{where}: network that takes no control map with strength=1 of method={self.name!r}, "
                            "which keep nothing of the given video; permitted: a network with a ControlNet, or a lower "
                            "strength", "Rerender.stage")
        if min(video.height, video.width) < LEAST_SIDE:
            raise UserError(f"{where}: optical flow of frames of {video.height}x{video.width}; permitted: sides from "
                            f"{LEAST_SIDE} pixels", "Rerender.stage")
        self.check_files()
        require_opencv()
        return dataclasses.replace(stage, network=network)

    def check(self, stage: Stage, sampling: Sampling) -> None:
        """Raise `UserError` for sampling in windows of frames, terms of guidance that lack the other frames, and maps
        of the frames around each one."""
        check_uncut(stage.network.conditions, f"Stage {stage.name!r}: single frames of method={self.name!r}")
        if sampling.windows is not None or "time" in [term.name for term in sampling.terms]:
            raise UserError(f"Stage {stage.name!r}: sampling.windows={sampling.windows}, terms of "
                            f"{', '.join(term.name for term in sampling.terms) or 'none'} with method={self.name!r}, "
                            "which makes single frames; permitted: no windows, terms without 'time'", "Rerender.check")

    def sampling(self, sampling: Sampling) -> Sampling:
        """How a stage is sampled: by deterministic DDIM, all frames from the same noise."""
        return dataclasses.replace(deterministic(sampling), shared_noise=True)

    def begin(self, x: Video, parts: EditParts) -> Video:
        """z at the first of the steps that are made, or x where none are."""
        steps = steps_from(parts.steps, self.strength)
        return from_one_noise(x, parts, steps, self.strength) if len(steps.level) else x

    def files(self) -> tuple[Path, ...]:
        """The file of weights, where there is one."""
        return () if self.flow is None else (Path(self.flow),)

    def check_files(self) -> None:
        """Raise `UserError` as `flows`."""
        self.flows()

    def flows(self) -> FlowEstimator:
        """What finds optical flow, and what it finds again. Raises `UserError` as `read_weights`."""
        return BY_DIS if self.flow is None else GMFlow(self.flow)

    def key_frames(self, frames: int, steps: int) -> tuple[int, ...]:
        """Numbers of the key frames of so many frames: every `interval`-th and the last, or all where no steps are
        made."""
        interval = self.interval if self.first_step(steps) < steps else 1
        return (*range(0, frames - 1, interval), frames - 1)

    def first_step(self, steps: int) -> int:
        """Number of the first of the steps that are made."""
        return steps - int(steps * self.strength)

    def steps_by_shape(self, steps: int) -> tuple[int, ...]:
        """Numbers of the steps, of so many, that are fused by shape."""
        return steps_of(self.shape, steps, ends=True)

    def steps_by_pixels(self, steps: int) -> tuple[int, ...]:
        """Those that are fused by pixels, and are made."""
        first = self.first_step(steps)
        return tuple(n for n in steps_of(self.pixel, steps, ends=False) if n >= first and self.pixel_strength)

    def steps_by_colour(self, steps: int) -> tuple[int, ...]:
        """Those whose colours are adapted."""
        return steps_of(self.colour, steps, ends=True)
