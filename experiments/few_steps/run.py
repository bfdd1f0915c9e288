"""How many steps a cascade needs, by every way that this package has, on one trained run of captioned digits: samplers
that need no training, and students.

Run:  python -m experiments.few_steps.run captioned_digits          (a run, or weights that come with the package)

A row is written when it is there, and trainings resume, so an interrupted run goes on. results/digits.json is the
record; `report.py` puts it into README.md.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from jaxtyping import Float, UInt8

from vdm_jax.benchmark.machine import describe, versions
from vdm_jax.benchmark.record import open_record, save
from vdm_jax.commands.distil_command import main as distil
from vdm_jax.configuration import digest
from vdm_jax.diffusion.caching import Cache
from vdm_jax.diffusion.samplers import DDIM, DPMSolver, Heun, Sampler, UniPC
from vdm_jax.errors import UserError
from vdm_jax.evaluation.digits import real_clips, scorer_of
from vdm_jax.generation.generator import Generator
from vdm_jax.runs.directory import find_run, load, load_stage, read_cascade
from vdm_jax.runs.teachers import params_hash
from vdm_jax.stages.stage import Experiment, Stage

FOLDER = Path(__file__).parent
STEPS = (1, 2, 4, 8, 16, 48)
SAMPLERS: dict[str, Sampler] = {"DDIM": DDIM(), "DPM-Solver++ 2M": DPMSolver(), "UniPC": UniPC(), "Heun": Heun()}
Student = Literal["progressive", "guided progressive", "consistency", "LoRA consistency", "dmd"]
STUDENTS: tuple[Student, ...] = ("progressive", "guided progressive", "consistency", "LoRA consistency", "dmd")
TEACHER = "teacher, as it is sampled"


@dataclasses.dataclass(frozen=True)
class Run:
    """Measure samplers and students of a run at several numbers of steps."""

    teacher: tyro.conf.Positional[str]  # run directory or name
    work: Path = Path("runs/few_steps")  # where students are trained
    out: Path = FOLDER / "results" / "digits.json"
    steps: tuple[int, ...] = STEPS
    cached: tuple[int, ...] = (2, 4, 8)  # steps of the teacher's sampler between evaluations of the whole network
    students: tuple[Student, ...] = STUDENTS
    seeds: tuple[int, ...] = (0, 1, 2)  # of sampling; students are trained once
    captions: int = 256  # test captions per seed
    alike: int = 8  # captions whose samples are compared with each other
    samples: int = 8  # of each of these
    updates: int = 2000  # training steps of a round of progressive students
    consistency_updates: int = 10_000  # and of consistency students
    dmd_updates: int = 10_000  # of the critics of students by distribution matching, which have a fifth of them
    lora_rank: int = 16  # of consistency students that are LoRAs
    guidance_range: tuple[float, float] = (0.0, 2.0)  # weights that guided progressive students take
    data_dir: Path | None = None  # where prepared data sets live
    fresh: bool = False  # forget the record; trainings stay


@dataclasses.dataclass(frozen=True)
class Row:
    """A way to sample and what it cost to learn."""

    method: str
    steps: int  # of every stage's sampler
    generator: Generator
    updates: int = 0  # training steps, of all stages together

    @property
    def evaluations(self) -> int:
        """Evaluations of the whole networks for one video; two where a step is guided by two estimates."""
        return sum(whole_evaluations(stage) * (2 if stage.sampling.guided and not stage.takes_weight else 1)
                   for stage in self.generator.experiment.stages)


def main() -> None:
    """Entry of the script."""
    run(tyro.cli(Run, config=(tyro.conf.AvoidSubcommands,)))


def run(options: Run) -> dict[str, Any]:
    """Measure what is missing; returns the record."""
    teacher = load(options.teacher)
    record = open_record(options.out, fresh=options.fresh, about={
        "device": describe(jax.devices()[0], len(jax.devices())), "versions": versions(),
        "protocol": {"experiment": teacher.experiment.name, "config": digest(teacher.experiment),
                     "weights": {name: params_hash(params)[:16] for name, params in teacher.params.items()},
                     "captions": options.captions, "alike": options.alike, "samples": options.samples,
                     "updates": options.updates, "consistency_updates": options.consistency_updates,
                     "dmd_updates": options.dmd_updates, "lora_rank": options.lora_rank,
                     "guidance_range": list(options.guidance_range)}})
    record["command"] = f"python -m experiments.few_steps.run {options.teacher}"
    for row in rows(options, teacher):
        for seed in options.seeds:
            key = f"{row.method} | {row.steps} | {seed}"
            if key in record["rows"]:
                continue
            record["rows"][key] = {"method": row.method, "steps": row.steps, "seed": seed, "updates": row.updates,
                                   "evaluations": row.evaluations, **measured(row.generator, options, seed)}
            save(options.out, record)
            print(key, json.dumps(record["rows"][key]), file=sys.stderr, flush=True)
    return record


def rows(options: Run, teacher: Generator) -> Iterator[Row]:
    """All ways to sample, those without training first."""
    yield Row(TEACHER, max(stage.sampling.steps for stage in teacher.experiment.stages), teacher)
    for name, sampler in SAMPLERS.items():
        for steps in options.steps:
            yield Row(name, steps, sampled(teacher, sampler, steps))
    for every in options.cached:
        yield Row(f"teacher, cached for {every} steps", max(
            stage.sampling.steps for stage in teacher.experiment.stages), cached(teacher, every))
    makers = {"consistency": consistency_rows, "LoRA consistency": consistency_rows, "dmd": matching_rows}
    for method in options.students:
        yield from makers.get(method, progressive_rows)(options, method)


def whole_evaluations(stage: Stage) -> int:
    """Evaluations of a stage's whole network by its sampler, without those that reuse features."""
    sampling, steps = stage.sampling, stage.sampling.sampler_steps(stage.shape[0])
    evaluations = sampling.evaluations(stage.shape[0])
    return evaluations if sampling.cache is None else round(evaluations * sampling.cache.count(steps) / steps)


def cached(generator: Generator, every: int) -> Generator:
    """The cascade as it is sampled, with the whole networks at every N-th step alone."""
    stages = tuple(dataclasses.replace(stage, sampling=dataclasses.replace(
        stage.sampling, cache=Cache(every=every))) for stage in generator.experiment.stages)
    return generator.of(dataclasses.replace(generator.experiment, stages=stages))


def sampled(generator: Generator, sampler: Sampler, steps: int) -> Generator:
    """The cascade with another sampler in all its stages."""
    stages = tuple(dataclasses.replace(stage, sampling=dataclasses.replace(
        stage.sampling, sampler=sampler, steps=steps, scheduler=None)) for stage in generator.experiment.stages)
    return generator.of(dataclasses.replace(generator.experiment, stages=stages))


def progressive_rows(options: Run, method: str) -> Iterator[Row]:
    """The students of every round of one training, which goes down to the fewest steps: a checkpoint each."""
    least = min(options.steps)
    most = max(steps for steps in options.steps if steps / least == 2 ** int(math.log2(steps / least)))
    arguments = ["--method", "progressive", "--steps", str(least), "--start", str(2 * most), "--updates",
                 str(options.updates)]
    if method == "guided progressive":
        arguments += ["--guidance-range", *map(str, options.guidance_range)]
    folder, experiment = students(options, method, arguments, every=options.updates)
    rounds = {stage.name: stage.training.distillation.rounds for stage in experiment.stages}
    common = set.intersection(*(set(found) for found in rounds.values()))
    for steps in (steps for steps in options.steps if steps in common):
        ends = {name: (found.index(steps) + 1) * options.updates for name, found in rounds.items()}
        params = {stage.name: load_stage(folder, stage, step=ends[stage.name]) for stage in experiment.stages}
        yield Row(method, steps, Generator(with_steps(experiment, steps), params), sum(ends.values()))


def consistency_rows(options: Run, method: str) -> Iterator[Row]:
    """One training, of the network or of a LoRA, sampled with several numbers of steps."""
    lora = ["--lora-rank", str(options.lora_rank)] if method == "LoRA consistency" else []
    folder, experiment = students(options, method, ["--method", "consistency", "--steps", "4", "--updates",
                                                    str(options.consistency_updates), *lora])
    generator, updates = load(folder), options.consistency_updates * len(experiment.stages)
    for steps in (steps for steps in options.steps if steps <= 8):
        yield Row(method, steps, generator.of(with_steps(experiment, steps)), updates)


def matching_rows(options: Run, method: str) -> Iterator[Row]:
    """A training for each number of steps that is published, at which its students are sampled."""
    for steps in (steps for steps in options.steps if steps in (1, 4)):
        folder, experiment = students(options, f"{method} {steps}", ["--method", "dmd", "--steps", str(steps),
                                                                     "--updates", str(options.dmd_updates)])
        yield Row(method, steps, load(folder), options.dmd_updates * len(experiment.stages))


def with_steps(experiment: Experiment, steps: int) -> Experiment:
    """Students sampled with a number of steps."""
    return dataclasses.replace(experiment, stages=tuple(
        dataclasses.replace(stage, sampling=dataclasses.replace(stage.sampling, steps=steps))
        for stage in experiment.stages))


def students(options: Run, method: str, arguments: Sequence[str], every: int | None = None) -> tuple[Path, Experiment]:
    """Train the students of all stages, or go on with it; their run. `every` round keeps its checkpoint."""
    folder = options.work / method.replace(" ", "_")
    arguments = [options.teacher, "--run", str(folder), "--quiet", *arguments]
    arguments += [] if options.data_dir is None else ["--data-dir", str(options.data_dir)]
    if every is not None:
        for stage in read_cascade(find_run(options.teacher)).stages:
            arguments += [f"--{stage.name}.training.checkpoint-every", str(every), f"--{stage.name}.training.keep",
                          "100"]
    if distil(arguments):
        raise UserError(f"vdm-jax distil {' '.join(arguments)} ended early; permitted: the same command again")
    return folder, read_cascade(folder)


def measured(generator: Generator, options: Run, seed: int) -> dict[str, Any]:
    """Scores with their sums over clips, diversity and time of a cascade."""
    scorer = scorer_of(generator.experiment)
    examples = scorer.examples("test", options.captions)
    captions = [example["caption"] for example in examples]
    generator(captions, seed=seed)  # compiles
    start = time.perf_counter()
    videos = generator(captions, seed=seed).videos
    seconds = time.perf_counter() - start
    table = scorer.score(videos, captions)
    scores = {name: per_clip(getattr(table, name)) for name in ("whole", "digit", "motion")}
    repeated = [caption for caption in captions[: options.alike] for _ in range(options.samples)]
    alike = generator(repeated, seed=seed, first_index=options.captions).videos
    real = real_clips(examples, videos.shape)
    return {"scores": scores, "diversity": diversity(alike.reshape(-1, options.samples, *alike.shape[1:])),
            "distance_of_captions": diversity(real[None]), "ms_per_video": 1000 * seconds / len(captions)}


def per_clip(values: np.ndarray) -> dict[str, float]:
    """Mean and variance over clips, and their number."""
    values = np.asarray(values, float)
    return {"mean": float(values.mean()), "variance": float(values.var()), "clips": len(values)}


def diversity(videos: UInt8[np.ndarray, "N M T H W 3"]) -> float:
    """Root mean squared difference of pixels in [0, 1] between two of the M videos in a group, over N groups."""
    groups: Float[np.ndarray, "N M D"] = videos.reshape(*videos.shape[:2], -1).astype(np.float32) / 255
    pairs = [np.sqrt(np.mean((group[i] - group[j]) ** 2)) for group in groups
             for i in range(len(group)) for j in range(i)]
    return float(np.mean(pairs)) if pairs else math.nan


if __name__ == "__main__":
    main()
