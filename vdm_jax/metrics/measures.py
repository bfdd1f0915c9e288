"""Numbers per video by name, what each needs to see, and which metrics stand together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from vdm_jax.metrics import flow, frames, prediction
from vdm_jax.metrics.detectors import weights
from vdm_jax.metrics.detectors.lpips import LEAST_SIDE
from vdm_jax.metrics.detectors.weights import DetectorFile
from vdm_jax.metrics.feature_scores import (
    FeatureName,
)
from vdm_jax.metrics.fvd import fvd, kvd

Metric = Literal["fvd", "kvd", "psnr", "ssim", "lpips", "lpips_vgg16", "frame_lpips", "frame_consistency",
                 "frame_consistency_all", "motion", "warp_error"]
PredictionName = Literal["mcvd_mse", "mcvd_psnr", "mcvd_ssim", "mcvd_lpips"]
RunMetric = Literal[Metric, FeatureName, PredictionName]

Videos = UInt8[np.ndarray, "N T H W 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """A number per video."""

    values: Callable[..., np.ndarray]  # of videos, and of the real ones where it is paired
    better: str = "lower"
    paired: bool = False  # compares a video with the clip it should be
    best: bool = False  # of several videos of a clip the best one counts
    least_side: int = 1  # pixels of the smallest frame it can see
    least_frames: int = 1
    detector: DetectorFile | None = None
    conditions: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def sees(self, shape: tuple[int, int, int]) -> bool:
        """Whether videos (frames, height, width) are large enough."""
        return shape[0] >= self.least_frames and min(shape[1:]) >= self.least_side


MEASURES = {
    "psnr": Measure(values=frames.psnr, better="higher", paired=True, conditions={"range": 255}),
    "ssim": Measure(values=frames.ssim, better="higher", paired=True, least_side=11,
                    conditions={"window": "gaussian"}),
    "lpips": Measure(values=frames.lpips, paired=True, least_side=LEAST_SIDE["alexnet"], detector=weights.ALEXNET),
    "lpips_vgg16": Measure(values=partial(frames.lpips, backbone="vgg16"), paired=True,
                           least_side=LEAST_SIDE["vgg16"], detector=weights.VGG16),
    "frame_lpips": Measure(values=frames.frame_lpips, better="as real", least_side=LEAST_SIDE["alexnet"],
                           least_frames=2, detector=weights.ALEXNET,
                           conditions={"pairs": "consecutive frames of the video"}),
    "frame_consistency": Measure(values=lambda videos: frames.consistency(frames.alexnet_embeddings(videos)),
                                 better="higher", least_side=LEAST_SIDE["alexnet"], least_frames=2,
                                 detector=weights.ALEXNET,
                                 conditions={"pairs": "consecutive", "embeddings": "AlexNet, not CLIP"}),
    "frame_consistency_all": Measure(
        values=lambda videos: frames.consistency(frames.alexnet_embeddings(videos), "all"), better="higher",
        least_side=LEAST_SIDE["alexnet"], least_frames=2, detector=weights.ALEXNET,
        conditions={"pairs": "all", "embeddings": "AlexNet, not CLIP"}),
    "motion": Measure(values=flow.motion, better="as real", least_side=flow.LEAST_SIDE, least_frames=2,
                      conditions={"flow": "DIS", "unit": "pixels a frame"}),
    "warp_error": Measure(values=flow.warp_error, least_side=flow.LEAST_SIDE, least_frames=2,
                          conditions={"flow": "DIS", "range": "[0, 1]"}),
    "mcvd_mse": Measure(values=prediction.video_mse, paired=True, best=True, conditions={"range": "[0, 1]"}),
    "mcvd_psnr": Measure(values=prediction.video_psnr, better="higher", paired=True, best=True,
                         conditions={"of": "the mean squared error of the video"}),
    "mcvd_ssim": Measure(values=prediction.rounded_ssim, better="higher", paired=True, best=True, least_side=11,
                         conditions={"window": "gaussian", "pixels": "rounded to black or white"}),
    "mcvd_lpips": Measure(values=prediction.enlarged_lpips, paired=True, best=True, detector=weights.ALEXNET,
                          conditions={"pixels": "128x128, bilinear"}),
}
DISTANCES = {"fvd": fvd, "kvd": kvd}
COMPANIONS = ("motion", "frame_lpips")  # always next to these, which hardly notice frozen and shuffled frames
ACCOMPANIED = (*DISTANCES, "b_fvd", "fvd_c3d")


def accompanied(metrics: Sequence[str], shape: tuple[int, int, int]) -> tuple[str, ...]:
    """The metrics, and with a Frechet or kernel distance the measures that hear what it does not, where videos (frames,
    height, width) are large enough for them."""
    if not any(name in ACCOMPANIED for name in metrics):
        return tuple(metrics)
    return (*metrics, *(name for name in COMPANIONS if name not in metrics and MEASURES[name].sees(shape)))
