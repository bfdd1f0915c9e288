"""Metrics of a run: videos generated next to real clips, measured part by part, every part kept.

Sampling is what costs, so videos and what was measured of them are written as they come, into a folder named after all
that decides about the videos (weights, config, seed, steps, data). The same call again goes on where it stopped, with
more videos or other metrics too, and several machines may each make a share of the parts. What stays in memory does not
grow with the videos, but for a few numbers each.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.data.source import RandomAccessSource
from vdm_jax.errors import UserError
from vdm_jax.evaluation.run_clips import Clips, Side
from vdm_jax.evaluation.settings import MetricSettings, parse_share
from vdm_jax.generation.generator import Generator
from vdm_jax.metrics import flow, frames
from vdm_jax.metrics.detectors import weights
from vdm_jax.metrics.feature_scores import (
    FEATURE_METRICS,
    Gathered,
    class_score,
    distance_score,
    place_of,
    require_detectors,
    require_sight,
    sets_of,
    value_score,
)
from vdm_jax.metrics.fvd import FeatureSet
from vdm_jax.metrics.fvd_protocols import find_protocol
from vdm_jax.metrics.measures import (
    MEASURES,
    Videos,
)
from vdm_jax.metrics.reference import Reference
from vdm_jax.metrics.scores import Score, require_finite, table
from vdm_jax.video.writing import atomic_path


# What is measured of videos alone, also in training, and what `vdm-jax evaluate` measures next to it.
@dataclasses.dataclass(frozen=True, kw_only=True)
class RunMetrics:
    """Scores of a run, and of the real clips by the measures that need no counterpart."""

    scores: tuple[Score, ...]
    real: tuple[Score, ...]
    settings: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        return {"scores": [score.to_dict() for score in self.scores], "real": [score.to_dict() for score in self.real],
                "settings": dict(self.settings)}

    def require_finite(self, where: str) -> None:
        """Raises `NotFinite` naming the scores that are not; `where` they are written."""
        require_finite({score.label: score.value for score in self.scores} |
                       {f"{score.label} of real clips": score.value for score in self.real}, where)

    def table(self) -> str:
        """Markdown."""
        parts = ["Generated videos", "", table(self.scores)]
        return "\n".join([*parts, "Real clips", "", table(self.real)] if self.real else parts)


def evaluate_run(
    generator: Generator, source: RandomAccessSource, settings: MetricSettings, folder: Path, *,
    real_folder: Path | None = None, progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> RunMetrics:
    """Generate a video for each of the first `count` clips of `source` and measure them.

    Args:
      generator: the trained cascade; its last stage's videos are measured.
      source: the clips of `settings.split` of its data set.
      folder: where parts are kept; a subfolder per set of videos.
      real_folder: the same for what was measured of real clips, which runs on the same data share; `folder` by default.
      progress: called with (what, videos done, videos in all).

    Raises `UserError` for fewer clips than asked for, clips that do not fit the cascade, and missing detectors.
    """
    require_available(settings.metrics, settings)
    if len(source) < settings.count and find_protocol(settings.protocol).draw != "with replacement":
        raise UserError(f"count={settings.count} for {len(source)} clips of split {settings.split!r}; permitted: up to "
                        f"{len(source)}")
    clips = Clips(generator, source, settings)
    require_visible(settings.metrics, clips.shape, settings)
    reference = Reference.open(settings.reference_statistics)
    with atomic_path(folder / clips.name / "about.json") as temporary:
        temporary.write_text(json.dumps(clips.about, indent=1) + "\n")
    unpaired = [name for name in settings.metrics if name not in MEASURES or not MEASURES[name].paired]
    distances = [name for name in unpaired if name in FEATURE_METRICS and
                 FEATURE_METRICS[name].score in ("frechet", "kernel")]
    real_about = _about(clips, clips.data)
    masked_video = [name for name in distances if reference.covers(name, settings, real_about)]
    made = _measured("generated", settings.metrics, clips, folder / clips.name, progress)
    real = _measured("real", [name for name in unpaired if name not in masked_video], clips,
                     (real_folder or folder) / f"real-{clips.real_name}", progress)
    about = dataclasses.asdict(settings) | clips.about
    if settings.share:
        return RunMetrics(scores=(), real=(), settings=about)
    sides = {name: _real_sets(name, clips, real, reference, real_about) for name in distances}
    scores = [_score(name, clips, made, sides) for name in settings.metrics]
    beside = [_score(name, clips, real, {}) for name in unpaired if name not in distances]
    reference.keep(sides, settings, real_about)
    return RunMetrics(scores=tuple(scores), real=tuple(beside), settings=about)


def _measured(side: Side, names: Sequence[str], clips: Clips, folder: Path,
              progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    """What metrics need of all videos of a side, from parts that are kept: a number per video of measures, by metric,
    and what was gathered of features, by kind."""
    settings, found = clips.settings, {}
    total = settings.count * (settings.samples_per_clip if side == "generated" else 1)
    gathered = gathering(names, settings, total, settings.count)
    plain = sorted(name for name in names if name in MEASURES)
    number, shares = parse_share(settings.share)
    starts = range(0, total if names else 0, settings.part)[number::shares]
    for start in starts:
        numbers = range(start, min(start + settings.part, total))
        file = f"{numbers[0]:06d}-{numbers[-1]:06d}.npz"

        @cache
        def videos(numbers: range = numbers, file: str = file) -> Videos:  # real clips are at hand, the others are kept
            made = clips.real if side == "real" else clips.generated
            return made(numbers) if side == "real" else _kept(folder / "videos" / file, lambda: made(numbers))

        for name in plain:
            detector = MEASURES[name].detector
            place = f"{name}-{detector.sha256[:8]}" if detector else name
            found.setdefault(name, []).append(
                _kept(folder / place / file, partial(_values, name, videos, clips, numbers)))
        for one in gathered.values():
            features = _kept(folder / one.kind.place / file, lambda one=one, videos=videos: one.kind.make(videos()))
            one.take(features, numbers, partial(clips.captions, side, numbers))
        progress(f"{side} videos", numbers[-1] + 1, total)
    return gathered | {name: np.concatenate(parts) for name, parts in found.items()}


def gathering(names: Sequence[str], settings: Any, total: int, clips: int) -> dict[str, Gathered]:
    """What will be gathered of `total` videos of so many clips, by kind of features."""
    metrics: dict[str, list[str]] = {}
    kinds = {}
    for name in names:
        if name in FEATURE_METRICS:
            kind = FEATURE_METRICS[name].kind(settings)
            kinds[kind.name] = kind
            metrics.setdefault(kind.name, []).append(name)
    return {name: Gathered(kind, metrics[name], settings, total, clips) for name, kind in kinds.items()}


def _values(name: str, videos: Callable[[], Videos], clips: Clips, numbers: Sequence[int]) -> np.ndarray:
    if MEASURES[name].paired:
        return MEASURES[name].values(*(clips.unknown(x) for x in (videos(), clips.counterparts(numbers))))
    return MEASURES[name].values(videos())


def _kept(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array in a file, made and written where it is not there."""
    if not path.exists():
        values = make()
        try:
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, values=values)
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error}); permitted: a folder that can (--out, --data-dir)"
                            ) from error
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["values"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}); permitted: delete it, and it is made again") from error


def _about(clips: Clips, data: str) -> dict[str, Any]:
    """How the videos of a side were made."""
    return {"data": data, "split": clips.settings.split, "frames": clips.shape[0], "stride": clips.stride,
            "size": "{1}x{2}".format(*clips.shape), "start": clips.start, "draw": clips.draw,
            "given_frames": clips.settings.given_frames}


def _real_sets(name: str, clips: Clips, real: Mapping[str, Any], reference: Reference, about: Mapping[str, Any],
               ) -> list[FeatureSet]:
    if reference.covers(name, clips.settings, about):
        return reference.sets(name, clips.settings)
    return sets_of(real[FEATURE_METRICS[name].kind(clips.settings).name], place_of(name, clips.settings), about)


def _score(name: str, clips: Clips, found: Mapping[str, Any], real: Mapping[str, list[FeatureSet]]) -> Score:
    settings = clips.settings
    if name in MEASURES:
        return _mean(name, found[name], clips)
    metric, about = FEATURE_METRICS[name], _about(clips, clips.name)
    gathered = found[metric.kind(settings).name]
    if metric.score == "values":
        return value_score(name, gathered, about)
    if metric.score == "classes":
        return class_score(name, gathered, about)
    return distance_score(name, settings, real[name], sets_of(gathered, place_of(name, settings), about))


def _mean(name: str, values: np.ndarray, clips: Clips) -> Score:
    measure, settings = MEASURES[name], clips.settings
    seen = clips.unknown(np.zeros((1, clips.shape[0]))).shape[1] if measure.paired else clips.shape[0]
    conditions = {**measure.conditions, "frames": seen, "size": "{1}x{2}".format(*clips.shape),
                  "stride": clips.stride, "split": settings.split, "given_frames": settings.given_frames,
                  "data": clips.data}
    if measure.best:
        samples = values.reshape(settings.samples_per_clip, settings.count)
        return frames.best_score(name, samples, measure.better, conditions, measure.detector)
    return frames.mean_score(name, values, measure.better, conditions, measure.detector)


def require_available(names: Sequence[str], settings: MetricSettings | None = None) -> None:
    """Raises `UserError` for detectors and packages that metrics need and that are missing, before anything is
    generated."""
    settings = settings or MetricSettings(metrics=("motion",))
    for name in names:
        if name in FEATURE_METRICS:
            require_detectors(name, settings)
        if name in MEASURES and (file := MEASURES[name].detector):
            weights.find(file)
        if name in ("motion", "warp_error"):
            flow.require_opencv()
        if name in ("ssim", "mcvd_ssim"):
            frames.require_scikit_image()


def require_visible(names: Sequence[str], shape: tuple[int, int, int], settings: MetricSettings | None = None) -> None:
    """Raises `UserError` for videos (frames, height, width) that a metric cannot see, before any is generated."""
    settings = settings or MetricSettings(metrics=("motion",))
    for name in names:
        if name in FEATURE_METRICS:
            require_sight(name, settings, shape, settings.count * settings.samples_per_clip)
        if name in MEASURES and not MEASURES[name].sees(shape):
            least = MEASURES[name]
            raise UserError(f"{name} of {shape[0]} frames of {shape[1]}x{shape[2]} pixels; permitted: from "
                            f"{least.least_side} a side, {least.least_frames} frames")
