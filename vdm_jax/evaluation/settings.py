"""What to measure of a run, and on what."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import ClassVar, get_args

from vdm_jax.errors import UserError
from vdm_jax.metrics.detectors import clip
from vdm_jax.metrics.fvd_protocols import find_protocol
from vdm_jax.metrics.image_protocols import find_c3d_protocol, find_image_protocol
from vdm_jax.metrics.measures import (
    MEASURES,
    RunMetric,
    Split,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure, of a run or of files, and by which protocols."""

    METRICS: ClassVar[tuple[str, ...]]  # that there are
    LEAST: ClassVar[Mapping[str, int]]  # values of fields

    metrics: tuple[str, ...]
    seed: int = 0  # of draws
    given_frames: int = 0  # at the beginning of a video, which paired metrics leave out
    protocol: str = "original"  # of fvd, kvd and b_fvd
    fid_protocol: str = "fid_tensorflow"  # of fid* and is*
    c3d_protocol: str = "tganv2_ucf"  # of fvd_c3d and is_c3d
    block_frames: int = 16  # of a block of b_fvd
    clip: clip.ModelName = "ViT-L-14"  # of prompt_consistency and clip_frame_consistency*; clipsim has its own
    resamples: int = 100  # of the 95 % intervals of distances and Inception scores

    def __post_init__(self):
        for name, least in {"given_frames": 0, "resamples": 0, "block_frames": 1, **self.LEAST}.items():
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} is not valid; permitted: >= {least}")
        if self.resamples == 1:  # has no interval
            raise UserError("resamples=1 is not valid; permitted: 0, or 2 or more")
        unknown = [name for name in self.metrics if name not in self.METRICS]
        if unknown or not self.metrics:
            raise UserError(f"metrics={unknown or '()'} is not valid; permitted: {', '.join(self.METRICS)}")
        for find, name in ((find_protocol, self.protocol), (find_image_protocol, self.fid_protocol),
                           (find_c3d_protocol, self.c3d_protocol), (clip.find_model, self.clip)):
            find(name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricSettings(Settings):
    """What to measure of a run, on what. The videos of a run begin with `given_frames` of the real clip."""

    METRICS = get_args(RunMetric)
    LEAST = {"count": 2, "samples_per_clip": 1, "part": 1}

    metrics: tuple[RunMetric, ...]
    count: int = 96  # real clips, counted from the split's first
    samples_per_clip: int = 1  # videos generated for each of them
    split: Split = "test"
    steps: int | None = None  # sampler steps of every stage; each stage's own by default
    guidance: float | None = None  # of the first stage; its own by default
    part: int = 32  # videos that are generated and measured at a time
    reference_statistics: str | None = None  # file of statistics of real clips: written once, then read
    share: str = ""  # 'i/n': generate and measure only the i-th of n shares of the parts, from 1, without scores

    def __post_init__(self):
        super().__post_init__()
        parse_share(self.share)
        paired = [name for name in self.metrics if name in MEASURES and MEASURES[name].paired]
        if paired and not self.given_frames:
            raise UserError(f"{paired[0]} compares a video with the clip that it continues, and given_frames=0 gives "
                            "it nothing to continue; permitted: given_frames >= 1, or metrics without a counterpart")


def parse_share(text: str) -> tuple[int, int]:
    """(number from 0, shares) of 'i/n'; (0, 1) of nothing. Raises `UserError` for other text."""
    if not text:
        return 0, 1
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    number, shares = (int(group) for group in match.groups()) if match else (0, 0)
    if not 1 <= number <= shares:
        raise UserError(f"share={text!r} is not valid; permitted: i/n, i from 1 to n")
    return number - 1, shares
