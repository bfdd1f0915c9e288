"""Does sound control? A digit that jumps to a beat, by a model that hears the beat: how often jumps and beats fall
together (AV-Align), next to real clips and to the sound of another clip.

Run:   python -m experiments.sound_digits.run                                        in the root of the repository
       python -m experiments.sound_digits.run --base-run runs/pattern_digits         a base that `vdm-jax train` trained
Needs: pip install 'vdm_jax[digits,metrics,plots]'

Every row is written when it is there, and the training has checkpoints, so an interrupted run goes on.
results/cpu.json is the record; `report.py` puts it into README.md.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from jaxtyping import Float

from experiments.control_digits import models as control
from experiments.control_digits.measures import as_made, enlarged, with_interval
from experiments.digit_rows import Rows, Videos
from experiments.exit_codes import exit_code
from experiments.sound_digits import models
from vdm_jax.data.digit_beats import DigitBeats
from vdm_jax.digits.beats import make_beat_clip
from vdm_jax.digits.clips import DigitClips
from vdm_jax.digits.scorer import DigitScorer
from vdm_jax.generation.generator import Generator
from vdm_jax.metrics.av_align import LEAST_MOTION, matched, motion_peaks
from vdm_jax.metrics.flow import farneback
from vdm_jax.metrics.onsets import RATE, onsets
from vdm_jax.runs.directory import read_config
from vdm_jax.runs.teachers import params_hash

FOLDER = Path(__file__).parent
REAL, FLOOR = "real clips", "real clips, sound of another clip"
NONE, OWN, OTHER = "no sound", "sound", "sound of another clip"
GOAL = 0.6  # of AV-Align, by the own sound


@dataclasses.dataclass(frozen=True)
class Run:
    """Train a model that hears, and measure what it does."""

    config: str = "pattern_digits"  # of the base: captioned digits
    base_run: Path | None = None  # of the base; trained where there is none, into work/base by default
    steps: int = 1000  # of training with sound
    batch: int = 16  # clips of a step
    seed: int = 0  # of training and of sampling
    clips: int = 128  # first ones of the test split
    sampling_steps: int = 48
    weights: tuple[float, ...] = (2.0,)  # scales s of guidance by sound; the text has the base's
    work: Path = Path("runs/sound_digits")
    out: Path = FOLDER / "results" / "cpu.json"
    data_dir: Path | None = None
    fresh: bool = False  # forget the record
    quiet: bool = False

    @property
    def base_folder(self) -> Path:
        """Where the base is, or will be."""
        return self.base_run or self.work / "base"


class Bench(Rows):
    """The clips, what is measured of videos of them, and the record."""

    def __init__(self, options: Run):
        base = control.base_of(options.config, options.seed)
        self.base, self.data = base, models.data_of(base)
        self.clips = [make_beat_clip(self.data, "test", i) for i in range(options.clips)]
        self.captions = [clip.caption for clip in self.clips]
        self.onsets = [onsets(clip.sound(RATE)) for clip in self.clips]
        self.sound = np.stack([self.data.heard(clip) for clip in self.clips])
        self.jump = half_a_jump(self.data, base.stages[0].video.height)
        self.scorer = DigitScorer(DigitClips(digit_side=self.data.digit_side))
        super().__init__(options, {
            "config": options.config, "steps": options.steps, "batch": options.batch, "seed": options.seed,
            "clips": options.clips, "split": "test", "sampling_steps": options.sampling_steps,
            "sound_left_out": models.LEFT_OUT, "least_motion": LEAST_MOTION, "half_a_jump": round(self.jump, 4),
            "shuffled": "the sound of the next clip, the own caption"})

    def measured(self, videos: Videos, *, of_next: bool = False) -> dict[str, Any]:
        """All measures of videos in the size of the network, with intervals over clips, against the sound of their
        clips or of the next ones."""
        large, fps = enlarged(videos, self.data.size), self.data.fps
        heard = np.roll(np.arange(len(videos)), -of_next)
        peaks, jumps = ([motion_peaks(video, fps, least) for video in large] for least in (LEAST_MOTION, self.jump))
        pairs, with_jumps = ([(self.onsets[i], motions) for i, motions in zip(heard, found, strict=True)]
                             for found in (peaks, jumps))
        table = self.scorer.score(large, self.captions)
        return {name: with_interval(np.asarray(values, float)) for name, values in {
            "av_align": [matched(*pair, fps) for pair in pairs],
            "av_align_jumps": [matched(*pair, fps) for pair in with_jumps],
            "followed": [followed(*pair, fps) for pair in with_jumps],
            "peaks": [len(motions) for motions in peaks], "jumps": [len(motions) for motions in jumps],
            "digit": table.digit, "colour": table.colour}.items()}

    def take_model(self, params: Any) -> None:
        """Write the base and the hash of the weights into the record. Raises `UserError` as `take` does."""
        base = read_config(self.options.base_folder)
        self.take("model", {"weights": params_hash(params)[:16], "base_seed": base.seed,
                            "base_steps": base.stages[0].training.steps})


def half_a_jump(data: DigitBeats, side: int) -> float:
    """Pixels a frame: half of the mean flow of the weakest jump of the first real training clips in the size of the
    network. Below is what trembles, above what jumps."""
    clips = [make_beat_clip(data, "train", i) for i in range(64)]
    videos = enlarged(as_made(clips, data.frames, side), data.size)
    found = [np.linalg.norm(farneback(video[beat - 1], video[beat]), axis=-1).mean()
             for clip, video in zip(clips, videos, strict=True) for beat in clip.beats]
    return float(min(found)) / 2


def followed(sounds: Float[np.ndarray, " N"], motions: Float[np.ndarray, " M"], fps: float) -> float:
    """The share of sounds with a peak of motion less than a frame away; NaN without sounds."""
    near = np.abs(sounds[:, None] - motions[None]) < 1 / fps
    return float(near.any(1).mean()) if len(sounds) else float("nan")


def trained(bench: Bench) -> Generator:
    """The model that hears, trained on top of the base unless it is there."""
    options = bench.options
    if options.base_run is None:
        control.trained(bench.base, options.base_folder, options.data_dir, quiet=options.quiet)
    start = time.perf_counter()  # of this sitting, compilation included
    experiment = models.hearing(bench.base, options.base_folder, options.steps, options.batch, options.seed)
    experiment, params = control.trained(experiment, options.work / "sound", options.data_dir, quiet=options.quiet)
    bench.take_model(params)
    if "training" not in bench.record["rows"]:
        bench.write("training", {"train_seconds": round(time.perf_counter() - start, 1)})
    return control.generator_of(experiment, params)


def measure(options: Run) -> dict[str, Any]:
    """All rows that the record lacks."""
    bench, stage = (found := Bench(options)), found.base.stages[0]
    real = as_made(bench.clips, bench.data.frames, stage.video.height)
    bench.row(REAL, lambda: real)
    bench.row(FLOOR, lambda: real, of_next=True)
    generator = trained(bench)

    def sampled(sound: np.ndarray, **more: Any) -> Videos:
        return generator(bench.captions, seed=options.seed, steps=options.sampling_steps, sound=sound, **more).videos

    bench.row(OWN, lambda: sampled(bench.sound))
    bench.row(OTHER, lambda: sampled(np.roll(bench.sound, -1, axis=0)))
    bench.row(NONE, lambda: sampled(np.zeros_like(bench.sound)))
    for weight in options.weights:
        guide = {"text": 1 + stage.sampling.guidance, "sound": weight}
        bench.row(f"sound x {weight:g}", lambda guide=guide: sampled(bench.sound, guide=guide))
    return bench.record


def main() -> int:
    """Entry of the script."""
    return exit_code("sound_digits", lambda: measure(tyro.cli(Run, description=__doc__)))


if __name__ == "__main__":
    sys.exit(main())
