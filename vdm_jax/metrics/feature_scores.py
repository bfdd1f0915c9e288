"""Scores of features: which features each metric needs, what is gathered of them while they pass, and the score.

Features go by part by part. What stays of them is `Statistics` for distances, sums of class probabilities for Inception
scores, and a number a video for CLIP's similarities.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from vdm_jax.errors import UserError
from vdm_jax.metrics import frames
from vdm_jax.metrics.detectors import c3d, clip, i3d, weights
from vdm_jax.metrics.features import FeatureKind, c3d_kind, clip_kind, i3d_kind, inception_kind
from vdm_jax.metrics.fvd import FeatureSet, block_fvd, fvd, kvd, trajectory_fvd
from vdm_jax.metrics.fvd_protocols import FVDProtocol, find_protocol
from vdm_jax.metrics.image_protocols import ImageProtocol, find_c3d_protocol, find_image_protocol
from vdm_jax.metrics.inception_score import ClassTotals, score_interval, split_of
from vdm_jax.metrics.scores import Score
from vdm_jax.metrics.statistics import Statistics

FeatureName = Literal["b_fvd", "fvd_c3d", "fid", "fid_first", "fid_average", "is", "is_first", "is_c3d", "is_i3d",
                      "clipsim", "prompt_consistency", "clip_frame_consistency", "clip_frame_consistency_all"]
# Vectors that count: all, the first of a video alone, each place in the video for itself, each trajectory for itself
Place = Literal["all", "first", "each", "trajectory"]
CLIPSIM_MODEL = "ViT-B-32"  # of the published CLIPSIM (Wu et al. 2021, GODIVA, arXiv 2104.14806)
_I3D_SPLITS = 10  # of Inception scores by I3D; the papers that report them do not say


@dataclasses.dataclass(frozen=True)
class FeatureMetric:
    """What a metric takes of which features."""

    kind: Callable[[Any], FeatureKind]  # of the settings
    score: Literal["frechet", "kernel", "classes", "values"]
    place: Place = "all"
    protocol: Callable[[Any], FVDProtocol | None] = lambda settings: None
    values: Callable[..., np.ndarray] | None = None  # of features, and of the texts' embeddings where it takes them
    texts: bool = False
    conditions: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _original(settings: Any) -> FVDProtocol:
    return find_protocol(settings.protocol)


def _image(settings: Any) -> ImageProtocol:
    return find_image_protocol(settings.fid_protocol)


def _c3d(settings: Any) -> ImageProtocol:
    return find_c3d_protocol(settings.c3d_protocol)


def _i3d_kind(settings: Any) -> FeatureKind:
    return i3d_kind(_original(settings).resize)


def _frame_kind(settings: Any) -> FeatureKind:
    return inception_kind(_image(settings))


def _c3d_kind(settings: Any) -> FeatureKind:
    return c3d_kind()


def _clip_kind(settings: Any) -> FeatureKind:
    return clip_kind(settings.clip)


FEATURE_METRICS = {
    "fvd": FeatureMetric(_i3d_kind, "frechet", "all", _original),
    "kvd": FeatureMetric(_i3d_kind, "kernel", "all", _original),
    "b_fvd": FeatureMetric(lambda s: i3d_kind(_original(s).resize, s.block_frames), "frechet", "each", _original),
    "fvd_c3d": FeatureMetric(_c3d_kind, "frechet", "all", _c3d),
    "fid": FeatureMetric(_frame_kind, "frechet", "all", _image),
    "fid_first": FeatureMetric(_frame_kind, "frechet", "first", _image),
    "fid_average": FeatureMetric(_frame_kind, "frechet", "each", _image),
    "is": FeatureMetric(_frame_kind, "classes", "all", _image),
    "is_first": FeatureMetric(_frame_kind, "classes", "first", _image),
    "is_c3d": FeatureMetric(_c3d_kind, "classes", "all", _c3d),
    "is_i3d": FeatureMetric(_i3d_kind, "classes", "all", _original),
    "clipsim": FeatureMetric(lambda s: clip_kind(CLIPSIM_MODEL), "values", values=frames.similarity, texts=True,
                             conditions={"cosine": "frames and caption"}),
    "prompt_consistency": FeatureMetric(_clip_kind, "values", values=frames.similarity, texts=True,
                                        conditions={"cosine": "frames and caption"}),
    "clip_frame_consistency": FeatureMetric(_clip_kind, "values", values=frames.consistency,
                                            conditions={"pairs": "consecutive"}),
    "clip_frame_consistency_all": FeatureMetric(
        _clip_kind, "values", values=lambda embeddings: frames.consistency(embeddings, "all"),
        conditions={"pairs": "all"}),
}
# Settings that only some metrics read, and which. A protocol also says which clips all of them see.
READERS = {
    "fid_protocol": ("fid", "fid_first", "fid_average", "is", "is_first"),
    "c3d_protocol": ("fvd_c3d", "is_c3d"),
    "block_frames": ("b_fvd",),
    "clip": ("prompt_consistency", "clip_frame_consistency", "clip_frame_consistency_all"),
    "resamples": tuple(name for name, metric in FEATURE_METRICS.items() if metric.score != "values"),
}


# --- before anything is generated ---------------------------------------------------------------------------------


def require_detectors(name: str, settings: Any) -> None:
    """Raises `UserError` for missing weights of a metric."""
    metric = FEATURE_METRICS[name]
    for file in metric.kind(settings).needs:
        weights.find(file)
    if metric.texts:
        clip.merges_file(_clip_name(name, settings))


def require_sight(name: str, settings: Any, shape: tuple[int, int, int], videos: int) -> None:
    """Raises `UserError` for videos (frames, height, width) that a metric's detector cannot see, and for too few."""
    metric, length = FEATURE_METRICS[name], shape[0]
    if metric.kind(settings).file is weights.I3D:
        length = min(length, settings.block_frames) if name == "b_fvd" else length
        if length < i3d.LEAST_FRAMES or (name == "b_fvd" and shape[0] < settings.block_frames):
            least = f"from {i3d.LEAST_FRAMES}, which is what I3D can see"
            blocks = f" in blocks of {settings.block_frames}" if name == "b_fvd" else ""
            raise UserError(f"{name} of videos of {shape[0]} frames{blocks}; permitted: {least}")
    if metric.kind(settings).file is weights.C3D and length != c3d.FRAMES:
        raise UserError(f"{name} of videos of {length} frames; permitted: {c3d.FRAMES}, which is what C3D sees")
    if name.startswith("clip_frame") and length < 2:
        raise UserError(f"{name} of videos of {length} frames; permitted: from 2")
    if metric.score == "frechet" and not getattr(metric.protocol(settings), "distance", True):
        raise UserError(f"{name} under protocol {metric.protocol(settings).name!r}, which is of a score alone; "
                        "permitted: a protocol with a distance")
    if metric.score == "classes" and videos < (splits := _splits(metric, settings)):
        raise UserError(f"{name} of {videos} videos in {splits} splits; permitted: a video or more in each")


def _clip_name(name: str, settings: Any) -> str:
    return CLIPSIM_MODEL if name == "clipsim" else settings.clip


def place_of(name: str, settings: Any) -> Place:
    """The vectors that count for a metric: under a protocol of several trajectories, FVD is of each for itself."""
    metric = FEATURE_METRICS[name]
    return "trajectory" if name == "fvd" and metric.protocol(settings).trajectories else metric.place


def _splits(metric: FeatureMetric, settings: Any) -> int:
    return getattr(metric.protocol(settings), "splits", _I3D_SPLITS)


# --- what is gathered -----------------------------------------------------------------------------------------------


class Gathered:
    """What stays of one side's features of one kind, for the metrics that need it; `clips` videos of `total` are one
    trajectory."""

    def __init__(self, kind: FeatureKind, metrics: Sequence[str], settings: Any, total: int, clips: int):
        self.kind, self.metrics, self.settings, self.total, self.clips = kind, metrics, settings, total, clips
        # By place: one, or one for each place in the video, or for each trajectory, by its number
        self.statistics: dict[Place, dict[int, Statistics]] = {}
        self.totals: dict[str, ClassTotals] = {}  # by metric
        self.values: dict[str, list[np.ndarray]] = {}  # by metric

    def take(self, features: np.ndarray, numbers: Sequence[int], captions: Callable[[], list[str]]) -> None:
        """Features of the videos of these numbers."""
        features = features[:, None] if features.ndim == 2 else features
        numbers = np.asarray(numbers)
        of_sets = (name for name in self.metrics if FEATURE_METRICS[name].score != "values")
        for place in {place_of(name, self.settings) for name in of_sets}:
            gathered = self.statistics.setdefault(place, {})
            for key, rows, part in placed(features, place, numbers // self.clips):
                made = Statistics.of(part, numbers[rows])
                gathered[key] = gathered[key] + made if key in gathered else made
        for name in self.metrics:
            metric = FEATURE_METRICS[name]
            if metric.score == "classes":
                self._count(name, metric, features, numbers)
            if metric.score == "values":
                texts = ()
                if metric.texts:
                    texts = (clip.text_embeddings(captions(), _clip_name(name, self.settings)),)
                self.values.setdefault(name, []).append(metric.values(features, *texts))

    def _count(self, name: str, metric: FeatureMetric, features: np.ndarray, numbers: np.ndarray) -> None:
        splits, ((_, _, chosen),) = _splits(metric, self.settings), placed(features, metric.place)
        probabilities = self.kind.classes(chosen).reshape(len(chosen) * chosen.shape[1], -1)
        split = split_of(numbers, self.total, splits).repeat(chosen.shape[1])
        totals = ClassTotals.of(probabilities, split, splits)
        self.totals[name] = self.totals[name] + totals if name in self.totals else totals


def placed(features: np.ndarray, place: Place, trajectories: np.ndarray | None = None
           ) -> list[tuple[int, np.ndarray | slice, np.ndarray]]:
    """Features [N, V, D] as the sets that a place means: number of the set, its videos, its features."""
    everything = slice(None)
    if place == "each":
        return [(i, everything, features[:, i : i + 1]) for i in range(features.shape[1])]
    if place == "trajectory":
        return [(int(key), trajectories == key, features[trajectories == key]) for key in np.unique(trajectories)]
    return [(0, everything, features[:, :1] if place == "first" else features)]


# --- scores ---------------------------------------------------------------------------------------------------------


def sets_of(gathered: Gathered, place: Place, about: Mapping[str, Any]) -> list[FeatureSet]:
    """The statistics of a side as sets of features that say what they are of."""
    kind, file = gathered.kind, gathered.kind.detector()
    shared = {"resize": kind.resize, "layer": kind.layer, "detector": file.name, "detector_sha256": file.sha256}
    if kind.file is weights.I3D and kind.frames:
        shared["frames"] = kind.frames
    return [FeatureSet.of(one, **{**about, **shared}) for _, one in sorted(gathered.statistics[place].items())]


def distance_score(name: str, settings: Any, real: Sequence[FeatureSet], made: Sequence[FeatureSet]) -> Score:
    """A Frechet or kernel distance."""
    metric = FEATURE_METRICS[name]
    protocol, how = metric.protocol(settings), {"resamples": settings.resamples, "seed": settings.seed}
    if metric.score == "kernel":
        score = kvd(real[0], made[0], protocol, **how)
    elif place_of(name, settings) == "trajectory":
        score = trajectory_fvd(real[0], made, protocol, **how)
    elif metric.place == "each":
        score = block_fvd(list(real), list(made), protocol, metric="" if name == "b_fvd" else name, **how)
    else:
        score = fvd(real[0], made[0], protocol, metric=name, **how)
    extra = {"vectors": f"{metric.place} frame{'' if metric.place == 'first' else 's'}"} if name[:3] == "fid" else {}
    return dataclasses.replace(score, conditions={**score.conditions, **extra})


def class_score(name: str, gathered: Gathered, about: Mapping[str, Any]) -> Score:
    """An Inception score: the mean over splits, whose deviation is what papers give after the sign."""
    metric, settings, kind = FEATURE_METRICS[name], gathered.settings, gathered.kind
    protocol, scores = metric.protocol(settings), gathered.totals[name].scores()
    value, statistics = float(scores.mean()), gathered.statistics[metric.place][0]
    interval = None
    if settings.resamples:
        interval = score_interval(kind.classes(statistics.kept), statistics.videos, len(scores), value,
                                  resamples=settings.resamples, seed=settings.seed)
    file, place = kind.detector(), metric.place if kind.frames == 1 else "video"
    made = {"frames": about["frames"], "stride": about["stride"], "generated_clips": statistics.videos}
    # A protocol of FVD lends an Inception score by I3D its pixels and nothing else.
    deviations = protocol.deviations(**made) if isinstance(protocol, ImageProtocol) else ()
    named = protocol.name if isinstance(protocol, ImageProtocol) else ""
    return Score(
        metric=name, value=value, better="higher", protocol=named, deviations=deviations, detector=file.name,
        detector_sha256=file.sha256, interval=interval,
        conditions={**made, "split": about["split"], "size": about["size"], "resize": kind.resize, "vectors": place,
                    "splits": len(scores), "given_frames": settings.given_frames, "source": protocol.source},
        details={"deviation of splits": float(scores.std()), "data": about["data"]})


def value_score(name: str, gathered: Gathered, about: Mapping[str, Any]) -> Score:
    """The mean of a number a video."""
    kind, values = gathered.kind, np.concatenate(gathered.values[name])
    shared = {field: about[field] for field in ("frames", "size", "stride", "split")}
    conditions = {**FEATURE_METRICS[name].conditions, **shared, "resize": kind.resize,
                  "given_frames": gathered.settings.given_frames}
    return frames.mean_score(name, values, "higher", conditions, kind.detector())
