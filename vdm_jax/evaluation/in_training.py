"""Scores of a stage while it is trained: few videos of fixed validation clips with fixed noise, so that only the
weights move them. A stage with a source starts from the degraded real clip and is also compared with it.

Sampling is done by all processes together, scoring by the first. What is needed in addition to the package is looked
for before training begins.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from vdm_jax.configuration import digest
from vdm_jax.errors import UserError
from vdm_jax.evaluation.run_metrics import require_available, require_visible
from vdm_jax.metrics import frames
from vdm_jax.metrics.fvd import FeatureSet, i3d_features
from vdm_jax.metrics.fvd_protocols import find_protocol
from vdm_jax.metrics.measures import DISTANCES, MEASURES, Metric, accompanied
from vdm_jax.metrics.scores import Score
from vdm_jax.parallel.processes import first
from vdm_jax.runs.records import EVALUATION, json_ready
from vdm_jax.stages.stage import Experiment, Stage
from vdm_jax.training.samples import StageSamples
from vdm_jax.video.writing import atomic_path

FOLDER = "evaluation"  # of files, in the stage's
PROTOCOL = "original"  # of fvd and kvd

Videos = UInt8[np.ndarray, "N T H W 3"]


def metrics_of(experiment: Experiment, stage: Stage) -> tuple[str, ...]:
    """The metrics that a stage's training asks for, with those that always stand next to them.

    Raises `UserError` for unknown ones, those that the stage's videos or data do not permit, and for weights or
    packages that are not here.
    """
    asked, video, scorer = stage.training.evaluation.metrics, stage.trained().video, experiment.data.scorer()
    scored = () if scorer is None else (scorer.name,)
    shape = video.frames, video.height, video.width
    if not asked:
        asked = scored + (("motion",) if MEASURES["motion"].sees(shape) else ())
    where = f"Stage {stage.name!r}: training.evaluation.metrics"
    permitted = (*scored, *get_args(Metric))
    if unknown := [name for name in asked if name not in permitted]:
        raise UserError(f"{where} has {unknown[0]!r}; permitted for {type(experiment.data).__name__}: "
                        f"{', '.join(permitted)}")
    if not asked:
        raise UserError(f"{where}=() chooses the scorer of the data and motion, and there is neither for {video} "
                        f"videos of {type(experiment.data).__name__}; permitted: {', '.join(permitted)}")
    of_captions = tuple(name for name in scored if name in asked)
    if of_captions and video.height != video.width:
        raise UserError(f"{where} has {scorer.name!r} for videos of {video}; permitted: it for square ones")
    paired = [name for name in asked if name in MEASURES and MEASURES[name].paired]
    if paired and stage.source is None:
        raise UserError(f"{where} has {paired[0]!r}, which compares a video with the clip that it is made from; "
                        f"permitted: it for a stage with a source, which {stage.name!r} has not")
    names = accompanied([name for name in asked if name not in scored], shape)
    require_visible(names, shape)
    require_available(names)
    return of_captions + names


class StageEvaluation:
    """The evaluation of a stage in training. Every process makes one and makes the same calls.

    Args:
      experiment, stage: whose training asks for it.
      folder: of the stage; scores are written to `evaluation/training_STEP.json` in it.
      mesh: that the stage is trained on.
      data_dir: where prepared data sets live.
      autoencoder: weights of a latent stage's.
    """

    def __init__(self, experiment: Experiment, stage: Stage, folder: Path, mesh: Mesh, data_dir: Path | None,
                 autoencoder: tuple[Any, ...] = ()):
        self.metrics, self._scorer = metrics_of(experiment, stage), experiment.data.scorer()
        self._experiment, self._stage, self._folder = experiment, stage.trained(), folder / FOLDER
        self._samples = StageSamples(experiment, stage, stage.training.evaluation.clips, mesh, data_dir,
                                     autoencoder)

    def __call__(self, params: Any, step: int, progress: Callable[[int], None] = lambda done: None) -> dict[str, float]:
        """Sample with these parameters and score; the scalars for the metrics stream, in process 0 (none elsewhere).

        Raises `UserError`, in all processes, where the scores cannot be had or written.
        """
        videos = self._samples.videos(params, progress)
        return first(lambda: self._scored(videos, step)) or {}

    def _scored(self, videos: Videos, step: int) -> dict[str, float]:
        scores, real = self._scores(videos)
        record = {"scores": [score.to_dict() for score in scores], "real": [score.to_dict() for score in real],
                  "settings": {"stage": self._stage.name, "step": step, "weights": "averaged (EMA)"}}
        with atomic_path(self._folder / f"training_{step:07d}.json") as temporary:
            temporary.write_text(json.dumps(json_ready(record), indent=1, allow_nan=False) + "\n")
        return ({EVALUATION + score.metric: score.value for score in scores} |
                {f"{EVALUATION}real/{score.metric}": score.value for score in real})

    def _scores(self, videos: Videos) -> tuple[list[Score], list[Score]]:
        """Of the videos, and of the real clips by what needs no counterpart."""
        features = cache(lambda: i3d_features(videos, find_protocol(PROTOCOL).resize))
        scores: list[Score] = []
        for name in self.metrics:
            if self._scorer is not None and name == self._scorer.name:
                scores += self._of_captions(videos)
            elif name in DISTANCES:
                scores.append(self._distance(name, features()))
            else:
                sides = (videos, self._samples.real) if MEASURES[name].paired else (videos,)
                scores.append(self._mean(name, MEASURES[name].values(*sides)))
        return scores, self._real

    @cached_property
    def _real(self) -> list[Score]:
        real = self._samples.real
        scored = self._scorer is not None and self._scorer.name in self.metrics
        found = self._of_captions(real) if scored else []
        alone = [name for name in self.metrics if name in MEASURES and not MEASURES[name].paired]
        return found + [self._mean(name, MEASURES[name].values(real)) for name in alone]

    @cached_property
    def _real_features(self) -> Float[np.ndarray, "N D"]:
        return i3d_features(self._samples.real, find_protocol(PROTOCOL).resize)

    def _of_captions(self, videos: Videos) -> list[Score]:
        means = self._scorer.score(videos, self._samples.captions).means()
        return [Score(metric=f"{self._scorer.name}/{name}", value=means[name], better="higher",
                      conditions=self._conditions) for name in self._scorer.attributes]

    def _distance(self, name: str, features: Float[np.ndarray, "N D"]) -> Score:
        protocol, made = find_protocol(PROTOCOL), self._conditions
        shared = {key: made[key] for key in ("split", "frames", "stride", "size", "data")} | {"resize": protocol.resize}
        sides = (FeatureSet(features=array, **shared) for array in (self._real_features, features))
        return DISTANCES[name](*sides, protocol, resamples=0)

    def _mean(self, name: str, values: Float[np.ndarray, " N"]) -> Score:
        measure = MEASURES[name]
        return frames.mean_score(name, values, measure.better, {**measure.conditions, **self._conditions},
                                 measure.detector)

    @cached_property
    def _conditions(self) -> dict[str, Any]:
        video, data = self._stage.video, self._experiment.data
        return {"videos": self._samples.count, "frames": video.frames, "size": f"{video.height}x{video.width}",
                "stride": self._samples.source_frames // video.frames, "split": self._experiment.validation_split,
                "data": f"{type(data).__name__} {digest(data)}", "sampler steps": self._stage.sampling.steps,
                "from": "noise" if self._stage.source is None else "degraded real clips", "seed": self._experiment.seed}
