"""Frechet video distance: distances of I3D features of real and generated clips, by named protocols.

FVD rises with pixel noise much more than with broken motion: never report it alone. Its value depends on how many clips
there are, so scores of different counts are never compared.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

from vdm_jax.configuration import Range, check_value
from vdm_jax.errors import UserError
from vdm_jax.metrics.detectors import i3d, weights
from vdm_jax.metrics.extraction import Extractor
from vdm_jax.metrics.frechet import (
    Interval,
    Moments,
    bootstrap,
    checked,
    frechet_distance,
    frechet_interval,
    kernel_distance,
)
from vdm_jax.metrics.fvd_protocols import FVDProtocol
from vdm_jax.metrics.resizing import Resize, resized
from vdm_jax.metrics.scores import Score
from vdm_jax.metrics.statistics import Statistics
from vdm_jax.weights.safetensors import load_params, save_params

# --- features -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """Features of clips and what they came from: of all clips, or of a draw of them next to the moments of all.
    Intervals and kernel distances need features; the Frechet distance needs moments alone."""

    features: Float[np.ndarray, "N D"] | Float[np.ndarray, "N V D"]  # a vector a clip, or one of each of its frames
    data: str  # which clips
    split: str
    frames: int  # that the detector saw
    stride: int  # source frames between two of them
    size: str  # height x width before resizing, pixels
    resize: str
    start: str = "as the data set gives it"  # of a clip in its video; or "random"
    draw: str = "without replacement"  # of the clips from the split
    given_frames: int = 0  # of a real clip that a generated one begins with
    detector: str = weights.I3D.name
    detector_sha256: str = weights.I3D.sha256
    layer: str = "logits averaged over time"  # of the detector
    clips: int = 0  # all of them; 0: those of `features`
    moments: Moments | None = None  # of all vectors; None: `features` are all

    def __post_init__(self):
        checked(np.reshape(self.features, (-1, np.shape(self.features)[-1])))

    @property
    def count(self) -> int:
        """Number of clips."""
        return self.clips or len(self.features)

    @property
    def vectors(self) -> Float[np.ndarray, "M D"]:
        """The features that are here, one vector a row."""
        return self.features.reshape(-1, self.features.shape[-1])

    @property
    def all_moments(self) -> Moments:
        """Moments of the features of all clips."""
        return self.moments or Moments.of(self.vectors)

    @classmethod
    def of(cls, statistics: Statistics, **about: Any) -> FeatureSet:
        """From statistics of the clips."""
        return cls(features=statistics.kept, clips=statistics.videos, moments=statistics.moments, **about)

    def about(self) -> dict[str, Any]:
        """All but the numbers, as JSON data."""
        names = [field.name for field in dataclasses.fields(self)]
        return {name: getattr(self, name) for name in names if name not in ("features", "moments")}

    def arrays(self) -> dict[str, np.ndarray]:
        """The numbers by name."""
        made = {"features": np.asarray(self.features, np.float32)}
        if self.moments:
            count, mean, scatter = np.asarray(self.moments.count), self.moments.mean, self.moments.scatter
            made |= {"count": count, "mean": mean, "scatter": scatter}
        return made

    @classmethod
    def build(cls, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> FeatureSet:
        """From what `arrays` and `about` gave. Raises KeyError and TypeError for something else."""
        there = "count" in arrays
        moments = Moments(int(arrays["count"]), arrays["mean"], arrays["scatter"]) if there else None
        return cls(features=arrays["features"], moments=moments, **about)

    def save(self, path: Path) -> None:
        """Write it to a .safetensors file; statistics of real clips are worth keeping."""
        save_params(path, self.arrays(), {"features": json.dumps(self.about())})

    @classmethod
    def load(cls, path: Path) -> FeatureSet:
        """Read what `save` wrote. Raises `UserError` for other files."""
        arrays, metadata = load_params(path)
        try:
            return cls.build(arrays, json.loads(metadata["features"]))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(f"{path} is not a file of features ({error}); permitted: one written by FeatureSet.save"
                            ) from error


def i3d_features(
    clips: Iterable[UInt8[np.ndarray, "T H W 3"]], resize: Resize, *, batch_size: int = 8,
    devices: Sequence[jax.Device] | None = None, progress: Callable[[int], None] = lambda done: None,
) -> Float[np.ndarray, "N 400"]:
    """Logits of I3D averaged over time, clip by clip. The last batch is filled up, and no clip is dropped.

    Args:
      clips: all of one shape, from 9 frames.
      resize: how they become 224x224.
      batch_size: clips at a time on each device.
      devices: all accelerators of this process, or one CPU, by default.
      progress: called with the number of clips done.

    Raises:
      UserError: clips that are not uint8, of different shapes or of fewer than 9 frames; no weights.
    """
    extractor = _extractor(resize, batch_size, devices and tuple(devices))
    return extractor((_checked(np.asarray(clip)) for clip in clips), progress)


def _checked(clip: np.ndarray) -> UInt8[np.ndarray, "T H W 3"]:
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[3] != 3 or len(clip) < i3d.LEAST_FRAMES:
        raise UserError(f"a clip of {clip.dtype} {list(clip.shape)}; permitted: uint8 [T, H, W, 3], T from "
                        f"{i3d.LEAST_FRAMES} frames, which is what I3D can see")
    return clip


@lru_cache(maxsize=2)
def _extractor(resize: Resize, batch_size: int, devices: tuple[jax.Device, ...] | None) -> Extractor:
    return Extractor(lambda params, clips: i3d.I3D().apply({"params": params}, prepared(clips, resize)),
                     i3d.parameters(), batch_size, devices)


def prepared(clips: UInt8[Array, "B T H W 3"], resize: Resize) -> Float[Array, "B T 224 224 3"]:
    """What I3D sees: clips resized, then brought from [0, 255] to [-1, 1]."""
    return resized(clips, i3d.SIDE, resize) / 127.5 - 1


# --- scores ---------------------------------------------------------------------------------------------------------


def fvd(
    real: FeatureSet, generated: FeatureSet, protocol: FVDProtocol, *, resamples: int = 100, seed: int = 0,
    metric: str = "fvd",
) -> Score:
    """The Frechet video distance under a protocol, with a bootstrap interval (none with resamples=0). With features of
    other detectors it is another `metric`.

    Raises `UserError` for features that were made differently or with another filter than the protocol's.
    """
    _require_alike(metric, real, generated, protocol)
    value = frechet_distance(real.all_moments, generated.all_moments, protocol.divisor)
    interval = _interval([real], [generated], value, protocol, resamples, seed)
    return _score(metric, value, interval, real, generated, protocol)


def trajectory_fvd(
    real: FeatureSet, generated: Sequence[FeatureSet], protocol: FVDProtocol, *, resamples: int = 100, seed: int = 0,
) -> Score:
    """FVD of stochastic prediction: `fvd` of one generated video for each clip, averaged over trajectories (MCVD:
    Voleti et al. 2022, arXiv 2205.09853). The details have that of each, their deviation, and the distance of all
    videos together, which is another number.

    The interval is of the mean over other trajectories of the same clips; of a single trajectory, that of `fvd`.
    Raises `UserError` as `fvd`.
    """
    draws = resamples if len(generated) == 1 else 0
    scores = [fvd(real, one, protocol, resamples=draws, seed=seed) for one in generated]
    score, values = scores[0], np.array([one.value for one in scores])
    value, interval, details = float(values.mean()), score.interval, {"trajectories": values.tolist()}
    if len(values) > 1:
        deviation = float(values.std(ddof=1))
        margin = 1.96 * deviation / len(values) ** 0.5
        interval = Interval(low=value - margin, high=value + margin, level=0.95, resamples=0)
        everything = functools.reduce(operator.add, (one.all_moments for one in generated))
        details |= {"deviation": deviation,
                    "all together": frechet_distance(real.all_moments, everything, protocol.divisor)}
    made = {"trajectories": len(values)}
    return dataclasses.replace(
        score, value=value, interval=interval, conditions={**score.conditions, **made},
        deviations=score.deviations + protocol.deviations(**made), details={**score.details, **details})


def kvd(
    real: FeatureSet, generated: FeatureSet, protocol: FVDProtocol, *, resamples: int = 100, seed: int = 0,
) -> Score:
    """The kernel video distance on the same features; otherwise like `fvd`. Of clips whose features are not all here it
    is that of the draw, and says so."""
    _require_alike("kvd", real, generated, protocol)
    sides = real.vectors, generated.vectors
    value = kernel_distance(*sides)
    interval = bootstrap(kernel_distance, *sides, resamples=resamples, seed=seed) if resamples else None
    score = _score("kvd", value, interval, real, generated, protocol)
    drawn = {name: f"{len(side.features)} of {side.count}" for name, side in
             (("real_drawn", real), ("generated_drawn", generated)) if len(side.features) < side.count}
    return dataclasses.replace(score, conditions={**score.conditions, **drawn})


def block_fvd(
    real: list[FeatureSet], generated: list[FeatureSet], protocol: FVDProtocol, *, resamples: int = 0, seed: int = 0,
    metric: str = "",
) -> Score:
    """B-FVD-k of long videos (Yin et al. 2023, NUWA-XL, arXiv 2303.12346): FVD averaged over blocks of k frames.

    Each list has a set per block, its clips in the same order of videos; `blocks` cuts videos. Each block is compared
    with the same block of the real videos, or, where `real` has one set, with that one. The paper does not say which.
    The interval is from videos that are resampled with all their blocks. Another `metric` has other parts than blocks.
    """
    if len(real) not in (1, len(generated)) or not generated:
        raise UserError(f"{len(real)} real and {len(generated)} generated blocks; permitted: as many real ones, or one")
    pairs = list(zip(real * (len(generated) // len(real)), generated, strict=True))
    scores = [fvd(*pair, protocol, resamples=0) for pair in pairs]
    value = float(np.mean([score.value for score in scores]))
    reference = "one set" if len(real) == 1 else "same block"
    conditions = scores[0].conditions | {"blocks": len(pairs), "reference": reference}
    return dataclasses.replace(
        scores[0], metric=metric or f"b-fvd-{generated[0].frames}", value=value, conditions=conditions,
        interval=_interval(*zip(*pairs, strict=True), value, protocol, resamples, seed),
        details={"blocks": [score.to_dict() for score in scores]})


def _interval(real: Sequence[FeatureSet], generated: Sequence[FeatureSet], value: float, protocol: FVDProtocol,
              resamples: int, seed: int) -> Interval | None:
    if not resamples:
        return None
    sides = ([one.features if one.features.ndim == 3 else one.features[:, None] for one in side]
             for side in (real, generated))
    return frechet_interval(*sides, value, protocol.divisor, videos=(real[0].count, generated[0].count),
                            resamples=resamples, seed=seed)


def blocks(videos: Shaped[np.ndarray, "N T *rest"], frames: int) -> list[Shaped[np.ndarray, "N frames *rest"]]:
    """Long videos in blocks of `frames`; a last block that is not full is left out. Raises `UserError` for videos that
    are shorter than a block."""
    check_value(frames, Annotated[int, Range(least=1, most=videos.shape[1])], "frames")
    return [videos[:, i : i + frames] for i in range(0, videos.shape[1] - frames + 1, frames)]


def _require_alike(metric: str, real: FeatureSet, generated: FeatureSet, protocol: FVDProtocol) -> None:
    for name in ("detector", "detector_sha256", "layer", "resize", "frames"):
        a, b = getattr(real, name), getattr(generated, name)
        if a != b:
            raise UserError(f"{metric}: {name} of real and generated features is {a!r} and {b!r}; permitted: the same")
    if real.resize != protocol.resize:
        raise UserError(f"{metric}: features were resized by {real.resize!r}; permitted under protocol "
                        f"{protocol.name!r}: {protocol.resize!r}")


def _score(metric: str, value: float, interval: Interval | None, real: FeatureSet, generated: FeatureSet,
           protocol: FVDProtocol) -> Score:
    made = {"frames": real.frames, "stride": real.stride, "real_clips": real.count,
            "generated_clips": generated.count, "split": real.split, "start": real.start,
            "draw": real.draw, "given_frames": generated.given_frames}
    return Score(
        metric=metric, value=value, better="lower", protocol=protocol.name,
        conditions={**made, "generated_stride": generated.stride, "real_data": real.data, "real_size": real.size,
                    "size": generated.size, "resize": protocol.resize, "covariance": protocol.divisor,
                    "layer": real.layer, "source": protocol.source},
        deviations=protocol.deviations(**made, data_set=real.data.partition(" ")[0]),
        detector=real.detector, detector_sha256=real.detector_sha256, interval=interval,
        details={"generated_data": generated.data, "protocol_note": protocol.note})
