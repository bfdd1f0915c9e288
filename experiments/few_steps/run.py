"""How many steps a cascade needs, by every way that this package has, on one trained run of captioned digits: samplers
that need no training, and students.

Run:  python -m experiments.few_steps.run captioned_digits_full     (weights that come with the package, or a run)

A row is written when it is there, and trainings resume, so an interrupted run goes on. results/digits.json is the
record; `report.py` puts it into README.md. README.md has what the defaults cost.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from jaxtyping import Float, UInt8

from experiments.exit_codes import exit_code
from vdm_jax.benchmark.machine import describe, versions
from vdm_jax.benchmark.record import difference, open_record, save
from vdm_jax.commands.distil_command import main as distil
from vdm_jax.configuration import digest
from vdm_jax.diffusion.caching import ByChange, Cache
from vdm_jax.diffusion.samplers import DDIM, DPMSolver, Heun, Sampler, UniPC
from vdm_jax.errors import UserError
from vdm_jax.evaluation.digits import real_clips, scorer_of
from vdm_jax.generation.cache_plans import cache_of
from vdm_jax.generation.generator import Generator
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.runs.directory import find_run, load, load_stage, read_cascade
from vdm_jax.runs.teachers import params_hash
from vdm_jax.stages.stage import Experiment, Stage

FOLDER = Path(__file__).parent
STEPS = (1, 2, 4, 8, 16, 48)
SAMPLERS: dict[str, Sampler] = {"DDIM": DDIM(), "DPM-Solver++ 2M": DPMSolver(), "UniPC": UniPC(), "Heun": Heun()}
Student = Literal["progressive", "guided progressive", "consistency", "LoRA consistency", "dmd"]
TEACHER = "teacher, as it is sampled"


@dataclasses.dataclass(frozen=True)
class Run:
    """Measure samplers and students of a run at several numbers of steps."""

    teacher: tyro.conf.Positional[str]  # run directory or name
    work: Path = Path("runs/few_steps")  # where students are trained
    out: Path = FOLDER / "results" / "digits.json"
    steps: tuple[int, ...] = STEPS
    cached: tuple[int, ...] = (2, 4, 8)  # steps of the teacher's sampler between evaluations of the whole network
    thresholds: tuple[float, ...] = (0.1, 0.2, 0.4)  # or of a transformer changes of the noise level's embedding
    students: tuple[Student, ...] = ("progressive", "consistency", "dmd")  # '--students' alone: what needs no training
    seeds: tuple[int, ...] = (0, 1, 2)  # of sampling, each with test captions of its own; students are trained once
    captions: int = 64  # test captions per seed
    alike: int = 8  # captions whose samples are compared with each other
    samples: int = 2  # of each of these
    batch: int = 8  # videos sampled at a time; times are of one batch
    student_steps: tuple[int, ...] = (1, 2, 4)  # of students; rounds of progressive ones begin with twice the most
    updates: int = 100  # training steps of a round of progressive students
    consistency_updates: int = 300  # and of consistency students
    dmd_updates: int = 200  # of the critics of students by distribution matching, which have a fifth of them
    learning_rate: float = 3e-4  # of students
    lora_rank: int = 16  # of consistency students that are LoRAs
    guidance_range: tuple[float, float] = (0.0, 2.0)  # weights that guided progressive students take
    data_dir: Path | None = None  # where prepared data sets live
    fresh: bool = False  # forget the record; trainings stay

    @property
    def training(self) -> dict[str, Any]:
        """What students depend on."""
        return {"student_steps": list(self.student_steps), "updates": self.updates,
                "consistency_updates": self.consistency_updates, "dmd_updates": self.dmd_updates,
                "learning_rate": self.learning_rate, "lora_rank": self.lora_rank,
                "guidance_range": list(self.guidance_range)}


@dataclasses.dataclass(frozen=True)
class Row:
    """A way to sample and what it cost to learn."""

    method: str
    steps: int  # of the sampler of the stages that take most
    generator: Generator
    updates: int = 0  # training steps, of all stages together

    @property
    def evaluations(self) -> int:
        """Evaluations of the whole networks for one video; two where a step is guided by two estimates."""
        return sum(whole_evaluations(stage) * (2 if stage.sampling.guided and not stage.takes_weight else 1)
                   for stage in self.generator.experiment.stages)


def main() -> int:
    """Entry of the script."""
    return exit_code("few_steps", lambda: run(tyro.cli(Run, config=(tyro.conf.AvoidSubcommands,))))


def run(options: Run) -> dict[str, Any]:
    """Measure what is missing; returns the record. Raises `UserError` for sizes that cannot be measured, and for rows
    of students that were trained otherwise."""
    check(options)
    teacher = load(options.teacher)
    record = open_record(options.out, fresh=options.fresh, about={
        "device": describe(jax.devices()[0], len(jax.devices())), "versions": versions(),
        "protocol": {"experiment": teacher.experiment.name, "config": digest(teacher.experiment),
                     "weights": {name: params_hash(params)[:16] for name, params in teacher.params.items()},
                     "captions": options.captions, "alike": options.alike, "samples": options.samples,
                     "batch": options.batch}})
    record["command"] = f"python -m experiments.few_steps.run {options.teacher}"
    if options.students and record.setdefault("training", options.training) != options.training:
        raise UserError(f"{options.out} has students of another training: "
                        f"{difference(record['training'], options.training)}; permitted: the same, another --out with "
                        "another --work, or --fresh")
    for row, seed in turns(options, teacher):
        key = f"{row.method} | {row.steps} | {seed}"
        if key in record["rows"]:
            continue
        record["rows"][key] = {"method": row.method, "steps": row.steps, "seed": seed, "updates": row.updates,
                               "evaluations": row.evaluations, **measured(row.generator, options, seed)}
        save(options.out, record)
        print(key, json.dumps(record["rows"][key]), file=sys.stderr, flush=True)
    return record


def check(options: Run) -> None:
    """Raise `UserError` where there is no batch to time after the one that compiles, or nothing to compare."""
    if options.batch % jax.device_count():
        raise UserError(f"--batch={options.batch} with {jax.device_count()} devices; permitted: a multiple of them")
    if options.captions <= options.batch:
        raise UserError(f"--captions={options.captions} with --batch={options.batch}; permitted: more captions than "
                        "a batch has, since its first one compiles and is not timed")
    if options.samples < 2 or not 1 <= options.alike <= options.captions:
        raise UserError(f"--samples={options.samples} of --alike={options.alike} with --captions={options.captions}; "
                        "permitted: 2 samples or more of 1 caption or more, up to all")


def turns(options: Run, teacher: Generator) -> Iterator[tuple[Row, int]]:
    """All ways to sample with all seeds: those without training first, where a seed takes all of them in turn, so that
    each is timed at several moments and compiled once."""
    untrained = list(untrained_rows(options, teacher))
    yield from ((row, seed) for seed in options.seeds for row in untrained)
    makers = {"consistency": consistency_rows, "LoRA consistency": consistency_rows, "dmd": matching_rows}
    for method in options.students:
        rows = list(makers.get(method, progressive_rows)(options, method))
        yield from ((row, seed) for seed in options.seeds for row in rows)


def untrained_rows(options: Run, teacher: Generator) -> Iterator[Row]:
    """The teacher, by its own and by other samplers, and with cached features."""
    yield Row(TEACHER, max(stage.sampling.steps for stage in teacher.experiment.stages), teacher)
    for name, sampler in SAMPLERS.items():
        for steps in options.steps:
            yield Row(name, steps, sampled(teacher, sampler, steps))
    for name, cache in cache_plans(options, teacher.experiment).items():
        yield Row(name, max(stage.sampling.steps for stage in teacher.experiment.stages), cached(teacher, cache))


def cache_plans(options: Run, experiment: Experiment) -> dict[str, Cache | ByChange]:
    """Ways to keep features, by the names of their rows; some are for transformers alone."""
    found: dict[str, Cache | ByChange] = {f"teacher, cached for {every} steps": Cache(every=every)
                                          for every in options.cached}
    turns = {len(stage.network.patterns) for stage in experiment.stages if isinstance(stage.network, VideoTransformer)}
    if len(turns) == len(experiment.stages) == 1:
        turn, = turns
        found |= {f"teacher, cached for {every} steps but for the first {turn} blocks": Cache(every=every, branch=turn)
                  for every in options.cached}
        found |= {f"teacher, cached up to a change of {threshold}": ByChange(threshold=threshold)
                  for threshold in options.thresholds}
    return found


def whole_evaluations(stage: Stage) -> int:
    """Evaluations of a stage's whole network by its sampler, without those that reuse features."""
    sampling, steps = stage.sampling, stage.sampling.sampler_steps(stage.shape[0])
    evaluations = sampling.evaluations(stage.shape[0])
    return evaluations if sampling.cache is None else round(evaluations * sampling.cache.count(steps) / steps)


def cached(generator: Generator, cache: Cache | ByChange) -> Generator:
    """The cascade as it is sampled, with the whole networks at the steps of a plan alone."""
    def plan(stage: Stage) -> Cache | None:
        return cache_of(stage, stage.sampling, generator.params[stage.name], cache, generator.mesh)

    stages = tuple(dataclasses.replace(stage, sampling=dataclasses.replace(stage.sampling, cache=plan(stage)))
                   for stage in generator.experiment.stages)
    return generator.of(dataclasses.replace(generator.experiment, stages=stages))


def sampled(generator: Generator, sampler: Sampler, steps: int) -> Generator:
    """The cascade with another sampler in all its stages."""
    stages = generator.experiment.stages
    changed = tuple(dataclasses.replace(stage, sampling=dataclasses.replace(
        stage.sampling, sampler=sampler, steps=steps_of(stage, stages, steps), scheduler=None)) for stage in stages)
    return generator.of(dataclasses.replace(generator.experiment, stages=changed))


def steps_of(stage: Stage, stages: Sequence[Stage], steps: int) -> int:
    """Steps of a stage: so many, or no more than its own where it is sampled with fewer than others are."""
    own, most = stage.sampling.steps, max(other.sampling.steps for other in stages)
    return steps if own == most else min(steps, own)


def progressive_rows(options: Run, method: str) -> Iterator[Row]:
    """The students of every round of one training, which goes down to the fewest steps: a checkpoint each."""
    least = min(options.student_steps)
    most = max(steps for steps in options.student_steps if steps / least == 2 ** int(math.log2(steps / least)))
    arguments = ["--method", "progressive", "--steps", str(least), "--start", str(2 * most), "--updates",
                 str(options.updates)]
    if method == "guided progressive":
        arguments += ["--guidance-range", *map(str, options.guidance_range)]
    folder, experiment = students(options, method, arguments, every=options.updates)
    rounds = {stage.name: stage.training.distillation.rounds for stage in experiment.stages}
    common = set.intersection(*(set(found) for found in rounds.values()))
    for steps in (steps for steps in options.student_steps if steps in common):
        ends = {name: (found.index(steps) + 1) * options.updates for name, found in rounds.items()}
        params = {stage.name: load_stage(folder, stage, step=ends[stage.name]) for stage in experiment.stages}
        yield Row(method, steps, Generator(with_steps(experiment, steps), params), sum(ends.values()))


def consistency_rows(options: Run, method: str) -> Iterator[Row]:
    """One training, of the network or of a LoRA, sampled with several numbers of steps."""
    lora = ["--lora-rank", str(options.lora_rank)] if method == "LoRA consistency" else []
    folder, experiment = students(options, method, ["--method", "consistency", "--steps", "4", "--updates",
                                                    str(options.consistency_updates), *lora])
    generator, updates = load(folder), options.consistency_updates * len(experiment.stages)
    for steps in (steps for steps in options.student_steps if steps <= 8):
        yield Row(method, steps, generator.of(with_steps(experiment, steps)), updates)


def matching_rows(options: Run, method: str) -> Iterator[Row]:
    """A training for each number of steps that is published, at which its students are sampled."""
    for steps in (steps for steps in options.student_steps if steps in (1, 4)):
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
    for stage in read_cascade(find_run(options.teacher)).stages:
        arguments += [f"--{stage.name}.training.learning-rate", str(options.learning_rate)]
        if every is not None:
            arguments += [f"--{stage.name}.training.checkpoint-every", str(every), f"--{stage.name}.training.keep",
                          "100"]
    if distil(arguments):
        raise UserError(f"vdm-jax distil {' '.join(arguments)} ended early; permitted: the same command again")
    return folder, read_cascade(folder)


def measured(generator: Generator, options: Run, seed: int) -> dict[str, Any]:
    """Scores with their sums over clips, diversity and time of a cascade. Every seed has test captions of its own."""
    scorer, count = scorer_of(generator.experiment), options.captions
    examples = scorer.examples("test", (seed + 1) * count)[seed * count:]
    captions = [example["caption"] for example in examples]
    more = [caption for caption in captions[: options.alike] for _ in range(options.samples - 1)]
    clock = Clock()
    videos = in_batches(generator, options.batch)([*captions, *more], seed=seed, progress=clock).videos
    videos, others = videos[:count], videos[count:].reshape(options.alike, -1, *videos.shape[1:])
    table = scorer.score(videos, captions)
    scores = {name: per_clip(getattr(table, name)) for name in ("whole", "digit", "motion")}
    alike = np.concatenate([videos[: options.alike, None], others], axis=1)
    real = real_clips(examples, videos.shape)
    return {"scores": scores, "diversity": diversity(alike), "distance_of_captions": diversity(real[None]),
            "ms_per_video": 1000 * clock.seconds() / options.batch}


def in_batches(generator: Generator, size: int) -> Generator:
    """The cascade with so many videos sampled at a time in all stages."""
    stages = tuple(dataclasses.replace(stage, sampling=dataclasses.replace(stage.sampling, batch_size=size))
                   for stage in generator.experiment.stages)
    return generator.of(dataclasses.replace(generator.experiment, stages=stages))


class Clock:
    """When each batch of each stage was done."""

    def __init__(self) -> None:
        self.done: dict[str, list[float]] = {}  # stage name -> seconds

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.done.setdefault(stage, []).append(time.perf_counter())

    def seconds(self) -> float:
        """Of a batch by all stages: medians over its batches but the first, which may compile."""
        return sum(float(np.median([after - before for before, after in pairwise(done)]))
                   for done in self.done.values())


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
    sys.exit(main())
