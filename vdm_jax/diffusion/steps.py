"""One step of a sampler as the scan sees it, and what all samplers share."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Array, Bool, Float, Int

from vdm_jax.configuration import config
from vdm_jax.diffusion.arrays import Video
from vdm_jax.diffusion.grids import Grid

Scalar = Float[Array, " ..."]  # one number, or one per frame as [T, 1, 1, 1]
Estimate = Callable[[Video, Scalar], Video]  # denoiser with hooks applied, at one log-SNR for the whole batch
Outcome = tuple[Video, Video, Any]  # next z, the estimate made at this step's level, memory for the next step


class Step(NamedTuple):
    """One step as the scan sees it; log-SNRs and `last` are of all, or of single frames."""

    index: Int[Array, ""]  # 0 for the first step
    previous: Scalar  # log-SNR of the step before; on the first step a made-up lower one
    level: Scalar  # log-SNR of z
    next: Scalar  # log-SNR to reach; on the last step a made-up higher one
    last: Bool[Array, "..."]  # the result of this step is discarded for its estimate
    count: int  # number of steps
    after: Scalar | None = None  # log-SNR that the next step reaches; infinity: it is none, or the last
    whole: Bool[Array, ""] | None = None  # the whole network is evaluated; None: the denoiser's own plan says it
    skipped: Int[Array, ""] | None = None  # steps of the grid before these, which are not made; None: there are none

    @property
    def of_grid(self) -> int | Int[Array, ""]:
        """Number of all steps of the grid, of which these are the last ones."""
        return self.count if self.skipped is None else self.count + self.skipped


@config
class OnGrid:
    """What all samplers share."""

    grid: Grid | None = None  # levels; None: uniform time, or the Karras ramp of an EDM schedule

    noises: ClassVar[int] = 1  # independent noises that a step is given
    frame_levels: ClassVar[bool] = False  # whether the frames of a video may be at levels of their own

    def evaluations(self, steps: int) -> int:
        """How often the denoiser is called in all."""
        return steps

    def memory(self, z: Video) -> Any:
        """What the first step receives of the step before it; nothing, except in multistep samplers."""
        return None
