"""Scoring a cascade by what its captions ask for: generated clips next to the ceiling and the floor of real ones."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from vdm_jax.data.source import CaptionScorer
from vdm_jax.digits.scorer import COLUMNS
from vdm_jax.errors import UserError
from vdm_jax.generation.generator import Generator, Progress
from vdm_jax.stages.stage import Experiment
from vdm_jax.versions import VERSION

ROWS = ("generated", "real clips (ceiling)", "wrong captions (floor)")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores and everything needed to read them."""

    scores: dict[str, dict[str, float]]  # row -> attribute -> share right
    protocol: dict[str, Any]  # what was done, on what, with which versions
    videos: np.ndarray  # generated, uint8 [B, T, H, W, 3]
    captions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Scores and protocol as JSON data."""
        return {"scores": self.scores, "protocol": self.protocol}

    def table(self) -> str:
        """Markdown tables: all captions, and those of one digit."""
        lines = []
        for group, title in (("", "all captions"), ("single/", "captions of one digit")):
            lines += [f"| {title} | {' | '.join(COLUMNS)} |", "|---|" + "---:|" * len(COLUMNS)]
            for row, found in self.scores.items():
                values = (found.get(group + column, float("nan")) for column in COLUMNS)
                lines.append(f"| {row} | {' | '.join(f'{value:.2f}' for value in values)} |")
            lines.append("")
        shown = ", ".join(f"{name} {value}" for name, value in self.protocol.items())
        return "\n".join([*lines, shown, ""])


def scorer_of(experiment: Experiment) -> CaptionScorer:
    """What scores the videos of an experiment. Raises `UserError` where nothing can say what its captions ask for."""
    scorer = experiment.data.scorer()
    if scorer is None:
        raise UserError(f"a run on {type(experiment.data).__name__} has no captions of digits to score; permitted: "
                        "--metrics with any of fvd, kvd, motion, frame_lpips, frame_consistency, psnr, ssim, lpips "
                        "('vdm-jax evaluate --help' lists all)")
    return scorer


def evaluate_digits(
    generator: Generator, *, count: int, seed: int, steps: int | None = None, guidance: float | None = None,
    progress: Progress | None = None, note: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Generate videos of the first `count` test captions and score them.

    The ceiling is the same scorer on the real test clips of the same captions, brought to the frames and pixels that
    the cascade makes; the floor is those clips against the captions of their neighbours.

    Raises `UserError` where nothing scores the data set of the run.
    """
    scorer = scorer_of(generator.experiment)
    examples = scorer.examples("test", count)
    captions = tuple(example["caption"] for example in examples)
    result = generator(captions, seed=seed, steps=steps, guidance=guidance, progress=progress)
    note("scoring")
    real = real_clips(examples, result.videos.shape)
    shifted = captions[1:] + captions[:1]
    scores = dict(zip(ROWS, (
        scorer.score(result.videos, captions).summary(),
        scorer.score(real, captions).summary(),
        scorer.score(real, shifted).summary(),
    ), strict=True))
    first = generator.experiment.stages[0].sampling
    protocol = {
        "experiment": generator.experiment.name, "split": "test", "clips": count, "seed": seed,
        "steps": steps or "/".join(str(s.sampling.steps) for s in generator.experiment.stages),
        "guidance": first.guidance if guidance is None else guidance,
        "size": "x".join(map(str, result.videos.shape[1:4])),
        "device": jax.devices()[0].device_kind, "vdm_jax": VERSION, "jax": jax.__version__,
        "python": platform.python_version(),
    }
    return Evaluation(scores, protocol, result.videos, captions)


def real_clips(examples: Sequence[dict[str, Any]], shape: tuple[int, ...]) -> np.ndarray:
    """The videos of clips at the frames and pixels of `shape` (B, T, H, W, 3), uint8."""
    from vdm_jax.video.arrays import resize, subsample_frames, to_float, to_uint8

    clips = np.stack([example["video"] for example in examples])
    if clips.shape[1:] == shape[1:]:
        return clips
    small = resize(subsample_frames(to_float(jax.numpy.asarray(clips)), shape[1]), shape[2], shape[3], "area")
    return np.asarray(to_uint8(small))
