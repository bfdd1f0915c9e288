"""Scores of folders of video files, whoever made them: alone, against another folder, and with their sound.

Against another folder, `psnr`, `ssim` and `lpips` compare files of the same name (reconstruction, prediction) and
distances the two folders. Part by part, so memory does not grow with the files.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import UInt8

from vdm_jax.configuration import Count, CountOrZero, Length, NonNegative, Resamples, Seed, Size, config
from vdm_jax.data.captions import read_caption_files
from vdm_jax.data.folder import list_files
from vdm_jax.data.video_folder import SUFFIXES
from vdm_jax.errors import UserError
from vdm_jax.evaluation.run_metrics import RunMetrics, gathering, require_available
from vdm_jax.metrics import flow, frames
from vdm_jax.metrics.av_align import LEAST_MOTION, av_align
from vdm_jax.metrics.detectors import clip
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
from vdm_jax.metrics.fvd_protocols import ProtocolName
from vdm_jax.metrics.image_protocols import C3DProtocolName, ImageProtocolName
from vdm_jax.metrics.measures import MEASURES, RunMetric
from vdm_jax.metrics.onsets import RATE, require_librosa
from vdm_jax.metrics.scores import Score
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.sound import read_sound

FileMetric = Literal[RunMetric, "av_align"]
_PART = 8  # files that are in memory at a time


@config
class FileSettings:
    """What to measure of files. What a protocol fixes and files do not say is stated here, and recorded."""

    metrics: Annotated[tuple[FileMetric, ...], Length()]
    protocol: ProtocolName = "original"  # of fvd, kvd and b_fvd
    fid_protocol: ImageProtocolName = "fid_tensorflow"  # of fid* and is*
    c3d_protocol: C3DProtocolName = "tganv2_ucf"  # of fvd_c3d and is_c3d
    block_frames: Size = 16  # of a block of b_fvd
    clip: clip.ModelName = "ViT-L-14"  # of prompt_consistency and clip_frame_consistency*
    split: str = "not stated"  # of the real videos
    stride: Count = 1  # source frames between two of a file
    start: str = "not stated"  # of the real videos in their sources; or "random"
    draw: str = "not stated"  # of the real videos from the split; or "with replacement", "without replacement"
    resamples: Resamples = 100  # of the 95 % intervals of distances and Inception scores
    frames: Count | None = None  # of each file, from its beginning; None: all, which must be as many in all files
    seed: Seed = 0  # of them
    given_frames: CountOrZero = 0  # at the beginning of a file, which paired metrics leave out
    least_motion: NonNegative = LEAST_MOTION  # of av_align's peaks, pixels a frame


def evaluate_files(
    folder: Path, settings: FileSettings, against: Path | None = None, *,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> RunMetrics:
    """Measure the video files of a folder.

    Args:
      folder: with files of one size and length; captions, where a metric needs them, in .txt files next to them.
      settings: what to measure.
      against: folder of real videos, for distances and for metrics of pairs, whose files have the same names.
      progress: called with (what, files done, files in all).

    Raises:
      UserError: files that cannot be read or differ in size, metrics that need `against` or captions or sound and do
        not have it, missing detectors.
    """
    made = _Files(folder, settings)
    real = _Files(against, settings) if against else None
    _check(settings, made, real)
    found = made.measured(settings.metrics, real, progress, "videos")
    unpaired = [name for name in settings.metrics if name != "av_align" and not _paired(name)]
    of_real = real.measured(unpaired, None, progress, "real videos") if real else {}
    scores = tuple(_score(name, made, found, real, of_real) for name in settings.metrics)
    beside = tuple(_score(name, real, of_real, None, {}) for name in unpaired if real and not _distance(name))
    return RunMetrics(scores=scores, real=beside, settings=dataclasses.asdict(settings) | {
        "folder": str(folder), "against": str(against) if against else None})


def _paired(name: str) -> bool:
    return name in MEASURES and MEASURES[name].paired


def _distance(name: str) -> bool:
    return name in FEATURE_METRICS and FEATURE_METRICS[name].score in ("frechet", "kernel")


class _Files:
    """The videos of a folder by number."""

    def __init__(self, folder: Path, settings: FileSettings):
        self.folder, self.settings = folder, settings
        self.names = list_files("videos", str(folder), SUFFIXES)
        self.shape = self._checked_shape()

    def _checked_shape(self) -> tuple[int, int, int]:
        """Frames, height and width of all files. Raises `UserError` before anything is measured where they differ."""
        asked, shape = self.settings.frames, None
        for name in self.names:
            with VideoReader(self.folder / name) as reader:
                frames, size = len(reader), reader.frames([0]).shape[1:3]
            if asked is not None and frames < asked:
                raise UserError(f"{self.folder / name} has {frames} frames and frames={asked}; permitted: up to "
                                f"{frames}")
            found = (asked or frames, *size)
            if shape is not None and found != shape:
                hint = "" if found[1:] != shape[1:] else f", or frames={min(found[0], shape[0])} of each (--frames)"
                raise UserError(f"{self.folder / name} is {list(found)} (frames, height, width), {self.names[0]} "
                                f"{list(shape)}; permitted: one size in a folder{hint}")
            shape = found
        return shape

    def read(self, number: int) -> UInt8[np.ndarray, "T H W 3"]:
        with VideoReader(self.folder / self.names[number]) as reader:
            return np.asarray(reader.frames(range(self.settings.frames or len(reader))))

    def videos(self, numbers: Sequence[int]) -> UInt8[np.ndarray, "N T H W 3"]:
        found = [self.read(number) for number in numbers]
        for number, video in zip(numbers, found, strict=True):
            if video.shape[:3] != self.shape:
                raise UserError(f"{self.folder / self.names[number]} is {list(video.shape[:3])} (frames, height, width)"
                                f", {self.names[0]} {list(self.shape)}; permitted: one size in a folder")
        return np.stack(found)

    def captions(self, numbers: Sequence[int]) -> list[str]:
        names = [self.names[number] for number in numbers]
        found = read_caption_files(str(self.folder), names, ".txt")
        if missing := [name for name in names if not found[name]]:
            raise UserError(f"{self.folder / missing[0]} has no caption; permitted: a .txt file of its name next to it")
        return [found[name] for name in names]

    def about(self) -> dict[str, Any]:
        listed = hashlib.sha256("\n".join(self.names).encode()).hexdigest()[:16]
        return {"data": f"{len(self.names)} files {listed}", "split": self.settings.split, "frames": self.shape[0],
                "stride": self.settings.stride, "size": "{1}x{2}".format(*self.shape), "start": self.settings.start,
                "draw": self.settings.draw, "given_frames": self.settings.given_frames}

    def measured(self, names: Sequence[str], real: _Files | None, progress: Callable[[str, int, int], None],
                 what: str) -> dict[str, Any]:
        """A number per file of measures, by metric, and what was gathered of features, by kind."""
        values: dict[str, list[np.ndarray]] = {}
        gathered: dict[str, Gathered] = gathering(names, self.settings, len(self.names), len(self.names))
        for start in range(0, len(self.names), _PART):
            numbers = range(start, min(start + _PART, len(self.names)))
            videos = self.videos(numbers)
            for name in names:
                if name == "av_align":
                    values.setdefault(name, []).append(np.array([self._aligned(*x) for x in zip(numbers, videos,
                                                                                                strict=True)]))
                elif name in MEASURES:
                    given = self.settings.given_frames
                    pair = (videos[:, given:], real.videos(numbers)[:, given:]) if _paired(name) else (videos,)
                    values.setdefault(name, []).append(MEASURES[name].values(*pair))
            for one in gathered.values():
                one.take(one.kind.make(videos), numbers, lambda numbers=numbers: self.captions(numbers))
            progress(what, numbers[-1] + 1, len(self.names))
        return gathered | {name: np.concatenate(parts) for name, parts in values.items()}

    def _aligned(self, number: int, video: np.ndarray) -> float:
        path = self.folder / self.names[number]
        with VideoReader(path) as reader:
            rate = reader.fps
        return av_align(read_sound(path, RATE), video, rate, least_motion=self.settings.least_motion)


def _check(settings: FileSettings, made: _Files, real: _Files | None) -> None:
    """Raises `UserError` for what cannot be measured, before anything is."""
    for name in settings.metrics:
        if name == "av_align":
            flow.require_opencv()
            require_librosa()
        elif name in FEATURE_METRICS:
            require_detectors(name, settings)
            require_sight(name, settings, made.shape, len(made.names))
        else:
            require_available((name,))
            if not MEASURES[name].sees(made.shape):
                raise UserError(f"{name} of videos of {list(made.shape)} frames, height, width; permitted: larger ones")
        if (_paired(name) or _distance(name)) and real is None:
            raise UserError(f"{name} compares with real videos, and none are given; permitted: against=FOLDER")
        if _paired(name) and (real.names != made.names or real.shape != made.shape):
            raise UserError(f"{name} compares files of the same name and size; {made.folder} and {real.folder} hold "
                            "others; permitted: the same names, frames and pixels")
        if _paired(name) and settings.given_frames >= made.shape[0]:
            raise UserError(f"given_frames={settings.given_frames} of the {made.shape[0]} frames of a file; permitted: "
                            f"fewer, since {name} is of the frames after them")
        if _distance(name):
            _check_sides(name, settings, made, real)


def _check_sides(name: str, settings: FileSettings, made: _Files, real: _Files) -> None:
    """The same for the two folders of a distance."""
    require_sight(name, settings, real.shape, len(real.names))
    for files in (made, real):
        if len(files.names) < 2:
            raise UserError(f"{name} of {len(files.names)} file in {files.folder}; permitted: 2 or more")
    if name != "b_fvd" and made.shape[0] != real.shape[0]:
        raise UserError(f"{name} of files of {made.shape[0]} frames in {made.folder} and {real.shape[0]} in "
                        f"{real.folder}; permitted: as many (frames={min(made.shape[0], real.shape[0])} of each, "
                        "--frames)")


def _score(name: str, files: _Files, found: dict[str, Any], real: _Files | None, of_real: dict[str, Any]) -> Score:
    settings, about = files.settings, files.about()
    if name == "av_align":
        values = found[name]
        heard = values[~np.isnan(values)]
        if not len(heard):
            raise UserError("av_align: no file has a peak of sound or of motion; permitted: files with some")
        about["without_peaks"] = len(values) - len(heard)
        return frames.mean_score(name, heard, "higher", {
            **about, "flow": "Farneback", "least_motion": settings.least_motion})
    if name in MEASURES:
        measure = MEASURES[name]
        seen = about["frames"] - (settings.given_frames if measure.paired else 0)
        conditions = {**measure.conditions, **about, "frames": seen, "given_frames": settings.given_frames}
        return frames.mean_score(name, found[name], measure.better, conditions, measure.detector)
    metric = FEATURE_METRICS[name]
    kind = metric.kind(settings).name
    if metric.score == "values":
        return value_score(name, found[kind], about)
    if metric.score == "classes":
        return class_score(name, found[kind], about)
    place = place_of(name, settings)
    sides = (sets_of(of_real[kind], place, real.about()), sets_of(found[kind], place, about))
    return distance_score(name, settings, *sides)
