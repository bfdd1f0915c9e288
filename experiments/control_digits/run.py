"""Does the control control? Small models on captioned digits, whose truth is known, get maps of what to show where: a
base that reads captions, and one ControlNet for each kind of maps. The base stays as it is, but for `reference`.

Run:   python -m experiments.control_digits.run                         everything, in the root of the repository
       python -m experiments.control_digits.run --kinds edges track     only these kinds, and what both give together
       python -m experiments.control_digits.run --base-run runs/pattern_digits   a base that `vdm-jax train` trained
Needs: pip install 'vdm_jax[digits,metrics,plots]'

Every row is written when it is there, and trainings have checkpoints, so an interrupted run goes on.
results/cpu.json is the record; `report.py` puts it into README.md.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.control_digits import measures, models
from experiments.control_digits.measures import with_interval
from experiments.digit_rows import SHOWN, Rows, Videos, keep_strips
from experiments.exit_codes import exit_code
from vdm_jax.benchmark.record import difference
from vdm_jax.configuration import to_data
from vdm_jax.data.controlled_digits import without_digits
from vdm_jax.digits.clips import generate_clip
from vdm_jax.digits.controls import Kind, draw_control
from vdm_jax.digits.scorer import DigitScorer
from vdm_jax.errors import UserError
from vdm_jax.generation.generator import Generator
from vdm_jax.runs.teachers import params_hash
from vdm_jax.stages.stage import Experiment

FOLDER = Path(__file__).parent
REAL, NONE, SILENT = "real clips", "no control", "no control, caption without the digit"
BOTH: tuple[Kind, Kind] = ("edges", "track")  # kinds that also act at once
WEIGHTS = ((1.0, 1.0), (1.0, 0.5), (0.5, 1.0))  # of these
GOALS = {"trajectory_error": 2.0, "reference_digit": 0.8}


@dataclasses.dataclass(frozen=True)
class Run:
    """Train a ControlNet for each kind of maps, and measure what it does."""

    kinds: tuple[Kind, ...] = ("edges", "track", "strokes", "height", "reference")
    config: str = "pattern_digits"  # of the base: captioned digits, of one digit each
    base_run: Path | None = None  # of the base; trained where there is none, into work/base by default
    steps: int = 900  # of a ControlNet
    seed: int = 0  # of all trainings and of sampling
    clips: int = 128  # first ones of the test split
    sampling_steps: int = 32
    work: Path = Path("runs/control_digits")
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
        base = models.base_of(options.config, options.seed)
        if tuple(base.data.objects) != (1, 1):
            raise UserError(f"config {options.config!r} has clips of {base.data.objects} digits; permitted: (1, 1)")
        self.data, self.stage = base.data, base.stages[0]
        self.clips = [generate_clip(self.data, "test", i) for i in range(options.clips)]
        self.captions = [clip.caption for clip in self.clips]
        self.scorer = DigitScorer(self.data)
        video = self.stage.video
        self.real = measures.as_made(self.clips, video.frames, video.height)
        super().__init__(options, {
            "config": options.config, "steps": options.steps, "seed": options.seed, "clips": options.clips,
            "split": "test", "sampling_steps": options.sampling_steps, "base_steps": self.stage.training.steps,
            "batch": self.stage.training.batch_size, "edge_tolerance": measures.TOLERANCE,
            "shuffled": "the control of the next clip, the own caption"})

    def take_base(self, base: Experiment, params: Any) -> None:
        """Write the base into the record. Raises `UserError` for one of other clips than the config's, and as `take`
        does."""
        for name, found, wanted in (("data", base.data, self.data), ("video", base.stages[0].video, self.stage.video)):
            if found != wanted:
                raise UserError(f"{self.options.base_folder} has another {name} than config {self.options.config!r}: "
                                f"{difference(to_data(found), to_data(wanted))}; permitted: a base of the same "
                                "(--base-run)")
        self.take("base", {"seed": base.seed, "steps": base.stages[0].training.steps,
                           "weights": params_hash(params)[:16]})

    def maps(self, kind: Kind, *, shuffled: bool = False) -> Videos:
        """The maps of all clips, or for each those of the next one."""
        return np.roll(np.stack([draw_control(clip, kind) for clip in self.clips]), -shuffled, axis=0)

    def captions_of(self, kind: Kind | None, *, silent: bool = False) -> list[str]:
        """What a model of a kind is asked for."""
        return [without_digits(text) for text in self.captions] if kind == "reference" or silent else self.captions

    def measured(self, videos: Videos) -> dict[str, Any]:
        """All measures of videos in the size of the network, with intervals over clips."""
        side = self.data.size
        large, real = measures.enlarged(videos, side), measures.enlarged(self.real, side)
        table = self.scorer.score(large, self.captions)
        return {name: with_interval(values) for name, values in {
            "trajectory_error": measures.trajectory_errors(large, self.clips),
            "edge_f1": measures.edge_f1(large, real), "digit": table.digit, "colour": table.colour,
            "motion": table.motion, "whole": table.whole.astype(float)}.items()}

    def sampled(self, generator: Generator, captions: Sequence[str], **given: Any) -> Videos:
        """The videos of all clips."""
        options = self.options
        return generator(captions, seed=options.seed, steps=options.sampling_steps, **given).videos


def measure_kind(bench: Bench, alone: Generator, kind: Kind) -> Any:
    """Train the ControlNet of a kind, and measure it with each clip's own map and with that of another clip; whether a
    weight of 0 gives the videos of the base `alone` to the last bit. Returns its parameters."""
    options = bench.options
    start = time.perf_counter()  # of this sitting, compilation included
    experiment = models.controlled(alone.experiment, options.base_folder, kind, options.steps, options.seed)
    experiment, params = models.trained(experiment, options.work / kind, options.data_dir, quiet=options.quiet)
    if f"{kind}: training" not in bench.record["rows"]:
        bench.write(f"{kind}: training", {"train_seconds": round(time.perf_counter() - start, 1)})
    generator, captions = models.generator_of(experiment, params), bench.captions_of(kind)
    for shuffled in (False, True):
        bench.row(f"{kind}, of another clip" if shuffled else kind, lambda shuffled=shuffled: bench.sampled(
            generator, captions, control=bench.maps(kind, shuffled=shuffled)))
    keep_strips(options.out.parent, f"{kind} map", bench.maps(kind)[:SHOWN, :: bench.data.frames // len(bench.real[0])])
    name = f"{kind}: weight 0 is no control"
    if name not in bench.record["rows"] and kind not in models.TRAINABLE:
        few = slice(0, min(8, options.clips))
        with_zero = bench.sampled(generator, captions[few], control=bench.maps(kind)[few], control_scale=0.0)
        equal = bool((bench.sampled(alone, captions[few]) == with_zero).all())
        bench.write(name, {"equal": equal, "clips": len(with_zero)})
    return params


def measure(options: Run) -> dict[str, Any]:
    """All rows that the record lacks."""
    bench = Bench(options)
    bench.row(REAL, lambda: bench.real)
    base = models.read(options.base_run) if options.base_run else models.trained(
        models.base_of(options.config, options.seed), options.base_folder, options.data_dir, quiet=options.quiet)
    bench.take_base(*base)
    alone = models.generator_of(*base)
    bench.row(NONE, lambda: bench.sampled(alone, bench.captions))
    if "reference" in options.kinds:
        bench.row(SILENT, lambda: bench.sampled(alone, bench.captions_of(None, silent=True)))
    found = {}
    for kind in options.kinds:
        found[kind] = measure_kind(bench, alone, kind)
        if kind in BOTH and set(BOTH) <= set(found):
            measure_both(bench, models.joined(base[0], [found[name] for name in BOTH]))
    return bench.record


def measure_both(bench: Bench, both: Generator) -> None:
    """Two kinds of maps at once, each with its weight; nothing is trained for it."""
    for weights in WEIGHTS:
        given = {"control": bench.maps(BOTH[0]), "control_1": bench.maps(BOTH[1]),
                 "control_scale": weights[0], "control_1_scale": weights[1]}
        name = " + ".join(f"{kind} x {weight:g}" for kind, weight in zip(BOTH, weights, strict=True))
        bench.row(name, lambda given=given: bench.sampled(both, bench.captions, **given))


def main() -> int:
    """Entry of the script."""
    return exit_code("control_digits", lambda: measure(tyro.cli(Run, description=__doc__)))


if __name__ == "__main__":
    sys.exit(main())
