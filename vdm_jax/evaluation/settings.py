"""What to measure of a run, and on what."""

from __future__ import annotations

import re
from typing import Annotated

from vdm_jax.configuration import (
    Count,
    CountOrZero,
    Guidance,
    Length,
    Range,
    Resamples,
    SamplingSteps,
    Seed,
    Size,
    Split,
    config,
)
from vdm_jax.errors import UserError
from vdm_jax.metrics.detectors import clip
from vdm_jax.metrics.fvd_protocols import ProtocolName
from vdm_jax.metrics.image_protocols import C3DProtocolName, ImageProtocolName
from vdm_jax.metrics.measures import (
    MEASURES,
    RunMetric,
)


@config
class MetricSettings:
    """What to measure, on what."""

    metrics: Annotated[tuple[RunMetric, ...], Length()]
    count: Annotated[int, Range(least=2, cap=10**9)] = 96  # real clips, counted from the split's first
    samples_per_clip: Count = 1  # videos generated for each of them
    split: Split = "test"
    seed: Seed = 0
    steps: SamplingSteps | None = None  # sampler steps of every stage; each stage's own by default
    guidance: Guidance | None = None  # of the first stage; its own by default
    # Of the real clip that a video begins with; paired metrics are of the frames after them
    given_frames: CountOrZero = 0
    protocol: ProtocolName = "original"  # of fvd, kvd and b_fvd
    fid_protocol: ImageProtocolName = "fid_tensorflow"  # of fid* and is*
    c3d_protocol: C3DProtocolName = "tganv2_ucf"  # of fvd_c3d and is_c3d
    block_frames: Size = 16  # of a block of b_fvd
    clip: clip.ModelName = "ViT-L-14"  # of prompt_consistency and clip_frame_consistency*; clipsim has its own
    resamples: Resamples = 100  # of the 95 % intervals of distances and Inception scores
    part: Count = 32  # videos that are generated and measured at a time
    reference_statistics: str | None = None  # file of statistics of real clips: written once, then read
    share: str = ""  # 'i/n': generate and measure only the i-th of n shares of the parts, from 1, without scores

    def __post_init__(self):

        parse_share(self.share)
        paired = [name for name in self.metrics if name in MEASURES and MEASURES[name].paired]
        if paired and not self.given_frames:
            raise UserError(f"MetricSettings.given_frames=0 with {paired[0]}, which compares a video with the clip "
                            "that it continues; permitted: given_frames >= 1, or metrics without a counterpart")


def parse_share(text: str) -> tuple[int, int]:
    """(number from 0, shares) of 'i/n'; (0, 1) of nothing. Raises `UserError` for other text."""
    if not text:
        return 0, 1
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    number, shares = (int(group) for group in match.groups()) if match else (0, 0)
    if not 1 <= number <= shares:
        raise UserError(f"share={text!r} is not valid; permitted: i/n, i from 1 to n")
    return number - 1, shares
