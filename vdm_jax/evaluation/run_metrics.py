"""Metrics of a run: videos generated beside real clips, measured part by part, every part kept.

Sampling is what costs, so videos and what was measured of them are written as they come, into a folder named after all
that decides about the videos (weights, config, seed, steps, data). The same call again goes on where it stopped, with
more videos or other metrics too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import UInt8

from vdm_jax.cascade.generator import Generator
from vdm_jax.cascade.observations import Known
from vdm_jax.configuration import digest, to_data
from vdm_jax.data.source import RandomAccessSource
from vdm_jax.errors import UserError
from vdm_jax.evaluation import flow, frames
from vdm_jax.evaluation.detectors import i3d, weights
from vdm_jax.evaluation.detectors.lpips import LEAST_SIDE
from vdm_jax.evaluation.detectors.weights import DetectorFile
from vdm_jax.evaluation.fvd import FeatureSet, fvd, i3d_features, kvd
from vdm_jax.evaluation.fvd_protocols import find_protocol
from vdm_jax.evaluation.scores import Score, table
from vdm_jax.video.arrays import resize, subsample_frames, to_float, to_uint8
from vdm_jax.video.writing import atomic_path

Metric = Literal["fvd", "kvd", "psnr", "ssim", "lpips", "lpips_vgg16", "frame_lpips", "frame_consistency", "motion",
                 "warp_error"]
Split = Literal["train", "validation", "test"]
Videos = UInt8[np.ndarray, "n t h w 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """A number per video."""

    values: Callable[..., np.ndarray]  # of videos, and of the real ones where it is paired
    better: str = "lower"
    paired: bool = False  # compares a video with the clip it should be
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
    "motion": Measure(values=flow.motion, better="as real", least_side=flow.LEAST_SIDE, least_frames=2,
                      conditions={"flow": "DIS", "unit": "pixels a frame"}),
    "warp_error": Measure(values=flow.warp_error, least_side=flow.LEAST_SIDE, least_frames=2,
                          conditions={"flow": "DIS", "range": "[0, 1]"}),
}
DISTANCES = {"fvd": fvd, "kvd": kvd}
COMPANIONS = ("motion", "frame_lpips")  # always beside those, which hardly notice frozen and shuffled frames


def accompanied(metrics: Sequence[str], shape: tuple[int, int, int]) -> tuple[str, ...]:
    """The metrics, and with a Frechet or kernel distance the measures that hear what it does not, where videos (frames,
    height, width) are large enough for them."""
    if not any(name in DISTANCES for name in metrics):
        return tuple(metrics)
    return (*metrics, *(name for name in COMPANIONS if name not in metrics and MEASURES[name].sees(shape)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricSettings:
    """What to measure, on what."""

    metrics: tuple[Metric, ...]
    count: int = 96  # real clips, counted from the split's first
    samples_per_clip: int = 1  # videos generated for each of them
    split: Split = "test"
    seed: int = 0
    steps: int | None = None  # sampler steps of every stage; each stage's own by default
    guidance: float | None = None  # of the first stage; its own by default
    given_frames: int = 0  # of the real clip that a video begins with; paired metrics are of the frames after them
    protocol: str = "original"  # of fvd and kvd
    resamples: int = 100  # of their 95 % interval
    part: int = 32  # videos that are generated and measured at a time

    def __post_init__(self):
        for name, least in {"count": 2, "samples_per_clip": 1, "given_frames": 0, "resamples": 0, "part": 1}.items():
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} is not valid; permitted: >= {least}")
        unknown = [name for name in self.metrics if name not in get_args(Metric)]
        if unknown or not self.metrics:
            raise UserError(f"metrics={unknown or '()'} is not valid; permitted: {', '.join(get_args(Metric))}")
        find_protocol(self.protocol)
        paired = [name for name in self.metrics if name in MEASURES and MEASURES[name].paired]
        if paired and not self.given_frames:
            raise UserError(f"{paired[0]} compares a video with the clip that it continues, and given_frames=0 gives "
                            "it nothing to continue; permitted: given_frames >= 1, or metrics without a counterpart")


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
    require_available(settings.metrics)
    if len(source) < settings.count:
        raise UserError(f"count={settings.count} for {len(source)} clips of split {settings.split!r}; permitted: up to "
                        f"{len(source)}")
    clips = Clips(generator, source, settings)
    require_visible(settings.metrics, clips.shape)
    with atomic_path(folder / clips.name / "about.json") as temporary:
        temporary.write_text(json.dumps(clips.about, indent=1) + "\n")
    alone = [name for name in settings.metrics if name not in MEASURES or not MEASURES[name].paired]
    made = _measured("generated", settings.metrics, clips, folder / clips.name, progress)
    real = _measured("real", alone, clips, (real_folder or folder) / f"real-{clips.real_name}", progress)
    scores = [_distance(name, clips, real, made) if name in DISTANCES else
              _mean(name, made[name], clips) for name in settings.metrics]
    beside = [_mean(name, real[name], clips) for name in alone if name in MEASURES]
    return RunMetrics(scores=tuple(scores), real=tuple(beside), settings=dataclasses.asdict(settings) | clips.about)


class Clips:
    """The videos of an evaluation by number: real ones, and those generated for them. `about` is all that decides about
    them, as JSON data, and `name` a short name of that; `real_name` is one of what decides about the real ones."""

    def __init__(self, generator: Generator, source: RandomAccessSource, settings: MetricSettings):
        self.generator, self.source, self.settings = generator, source, settings
        first, last = generator.experiment.stages[0].video, generator.experiment.stages[-1].video
        self.first, self.shape = first, (last.frames, last.height, last.width)
        if settings.given_frames >= first.frames:
            raise UserError(f"given_frames={settings.given_frames} of the {first.frames} frames of stage "
                            f"{generator.experiment.stages[0].name!r}; permitted: fewer")
        random = find_protocol(settings.protocol).start == "random" and hasattr(source, "clip")
        self.start = "random" if random else "as the data set gives it"
        real = self._about_real()
        self.about = real | self._about_generated()
        self.real_name, self.name = _short_name(real | {"size": self.shape}), _short_name(self.about)

    def real(self, numbers: Sequence[int]) -> Videos:
        """Real clips at the frames and pixels of the last stage."""
        return self._fitted(numbers, *self.shape)

    def generated(self, numbers: Sequence[int]) -> Videos:
        """The videos of these numbers; video `i` is for clip `i % count`."""
        settings, items = self.settings, [self._clip(i % self.settings.count) for i in numbers]
        given = {name: np.stack([item[name] for item in items]) for name in ("embeddings", "text_mask")
                 if name in items[0]}
        given |= {name: items[0][name] for name in ("null_embeddings", "null_mask") if name in items[0]}
        if "label" in items[0]:
            given["labels"] = [int(item["label"]) for item in items]
        if settings.given_frames:
            clips = self._fitted([i % settings.count for i in numbers], self.first.frames, self.first.height,
                                 self.first.width)
            mask = np.zeros((len(clips), self.first.frames, 1, 1, 1), np.float32)
            mask[:, : settings.given_frames] = 1
            given["known"] = Known(to_float(clips), mask)
        return self.generator([item["caption"] for item in items], seed=settings.seed, first_index=numbers[0],
                              steps=settings.steps, guidance=settings.guidance, **given).videos

    def counterparts(self, numbers: Sequence[int]) -> Videos:
        """The real clip that each of the videos should be."""
        return self.real([i % self.settings.count for i in numbers])

    def unknown(self, videos: Videos) -> Videos:
        """The frames that were not given: at the rate of the last stage, those after the last given one."""
        rate = self.shape[0] // self.first.frames
        start = (self.settings.given_frames - 1) * rate + 1 if self.settings.given_frames else 0
        return videos[:, start:]

    @property
    def stride(self) -> int:
        """Source frames between two frames of a clip."""
        data = self.generator.experiment.data
        own = getattr(getattr(data, "data", data), "frame_stride", 1)
        return own * (len(self.source[0]["video"]) // self.shape[0])

    @property
    def data(self) -> str:
        """A short name of the data set and its config."""
        data = self.generator.experiment.data
        return f"{type(data).__name__} {digest(data)}"

    def _about_real(self) -> dict[str, Any]:
        # The config of a data set may name a folder whose files have changed since.
        clip = self.source[0]
        fingerprint = hashlib.sha256(np.ascontiguousarray(clip["video"]).tobytes() + clip["caption"].encode())
        start = f"random, seed {self.settings.seed}" if self.start == "random" else self.start
        return {"data": to_data(self.generator.experiment.data), "split": self.settings.split, "start": start,
                "source_clips": len(self.source), "first_clip": fingerprint.hexdigest()[:16]}

    def _about_generated(self) -> dict[str, Any]:
        settings, experiment = self.settings, self.generator.experiment
        norms = {name: f"{float(optax.tree.norm(params)):.8g}" for name, params in self.generator.params.items()}
        return {"experiment": experiment.name, "stages": digest(experiment.stages), "weights": norms,
                "seed": settings.seed, "steps": settings.steps, "guidance": settings.guidance,
                "given_frames": settings.given_frames,
                # A video's clip follows from the count, unless each clip has one video.
                "clips": settings.count if settings.samples_per_clip > 1 else "one a video"}

    def _clip(self, number: int) -> dict[str, Any]:
        if self.start == "random":
            return self.source.clip(number, np.random.default_rng([self.settings.seed, number]))
        return self.source[number]

    def _fitted(self, numbers: Sequence[int], count: int, height: int, width: int) -> Videos:
        clips = np.stack([self._clip(i)["video"] for i in numbers])
        if clips.shape[1:4] == (count, height, width):
            return clips
        small = resize(subsample_frames(to_float(jnp.asarray(clips)), count), height, width, "area")
        return np.asarray(to_uint8(small))


def _measured(side: Literal["real", "generated"], names: Sequence[str], clips: Clips, folder: Path,
              progress: Callable[[str, int, int], None]) -> dict[str, np.ndarray]:
    """What metrics need of all videos of a side, a row per video, from parts that are kept."""
    settings, found = clips.settings, {}
    total = settings.count * (settings.samples_per_clip if side == "generated" else 1)
    wanted = {_features(settings) if name in DISTANCES else name for name in names}
    for start in range(0, total if wanted else 0, settings.part):
        numbers = range(start, min(start + settings.part, total))
        file = f"{numbers[0]:06d}-{numbers[-1]:06d}.npz"

        @cache
        def videos(numbers: range = numbers, file: str = file) -> Videos:  # real clips are at hand, the others are kept
            made = clips.real if side == "real" else clips.generated
            return made(numbers) if side == "real" else _kept(folder / "videos" / file, lambda: made(numbers))

        for name in sorted(wanted):
            detector = weights.I3D if name == _features(settings) else MEASURES[name].detector
            place = f"{name}-{detector.sha256[:8]}" if detector else name
            make = partial(_values, name, videos, clips, numbers)
            found.setdefault(name, []).append(_kept(folder / place / file, make))
        progress(f"{side} videos", numbers[-1] + 1, total)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _short_name(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]


def _features(settings: MetricSettings) -> str:
    return f"i3d_{find_protocol(settings.protocol).resize}"


def _values(name: str, videos: Callable[[], Videos], clips: Clips, numbers: Sequence[int]) -> np.ndarray:
    if name == _features(clips.settings):
        return i3d_features(videos(), find_protocol(clips.settings.protocol).resize)
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


def _distance(name: str, clips: Clips, real: Mapping[str, np.ndarray], made: Mapping[str, np.ndarray]) -> Score:
    settings, protocol, key = clips.settings, find_protocol(clips.settings.protocol), _features(clips.settings)
    shared = {"split": settings.split, "frames": clips.shape[0], "stride": clips.stride, "resize": protocol.resize,
              "size": "{1}x{2}".format(*clips.shape), "start": clips.start}
    sides = (FeatureSet(features=real[key], data=clips.data, **shared),
             FeatureSet(features=made[key], data=clips.name, **shared))
    score = DISTANCES[name](*sides, protocol, resamples=settings.resamples, seed=settings.seed)
    return dataclasses.replace(score, conditions={**score.conditions, "given_frames": settings.given_frames})


def _mean(name: str, values: np.ndarray, clips: Clips) -> Score:
    measure, settings = MEASURES[name], clips.settings
    seen = clips.unknown(np.zeros((1, clips.shape[0]))).shape[1] if measure.paired else clips.shape[0]
    conditions = {**measure.conditions, "frames": seen, "size": "{1}x{2}".format(*clips.shape),
                  "stride": clips.stride, "split": settings.split, "given_frames": settings.given_frames,
                  "data": clips.data}
    return frames.mean_score(name, values, measure.better, conditions, measure.detector)


def require_available(names: Sequence[str]) -> None:
    """Raises `UserError` for detectors and packages that metrics need and that are missing, before anything is
    generated."""
    if any(name in DISTANCES for name in names):
        weights.find(weights.I3D)
    for name in names:
        if name in MEASURES and (file := MEASURES[name].detector):
            weights.find(file)
        if name in ("motion", "warp_error"):
            flow.require_opencv()


def require_visible(names: Sequence[str], shape: tuple[int, int, int]) -> None:
    """Raises `UserError` for videos (frames, height, width) that a metric cannot see, before any is generated."""
    for name in names:
        if name in DISTANCES and shape[0] < i3d.LEAST_FRAMES:
            raise UserError(f"{name} of videos of {shape[0]} frames; permitted: from {i3d.LEAST_FRAMES}, which is what "
                            "I3D can see")
        if name in MEASURES and not MEASURES[name].sees(shape):
            least = MEASURES[name]
            raise UserError(f"{name} of {shape[0]} frames of {shape[1]}x{shape[2]} pixels; permitted: from "
                            f"{least.least_side} a side, {least.least_frames} frames")
