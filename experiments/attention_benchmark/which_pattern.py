"""Which pattern is worth it: the same small model with each pattern, from several seeds, given the same training FLOPs
and the same training time.

FLOPs are mask-aware: they count the pairs of tokens that a pattern shows, whatever a kernel computes, so a pattern that
shows less is trained for more steps. Time is counted in steps too: how many a pattern makes while full attention
makes its own, by train steps of all patterns timed in turn. So no score depends on what else a machine did. The
learning rate is constant and the average long: one training is looked at where either budget ends.

Run:   python -m experiments.attention_benchmark.which_pattern --preset cpu             in the root of the repository
       python -m experiments.attention_benchmark.which_pattern --preset cpu --part 1/2  every second row; 2/2 the others
       python -m experiments.attention_benchmark.which_pattern --preset frames          clips of 8, 16 and 32 frames
       python -m experiments.attention_benchmark.which_pattern --report                 only tables and plots
Needs: pip install 'vdm_jax[plots]'
An interrupted run goes on where it stopped: finished rows are recorded, the one in training has checkpoints in
runs/which_pattern/.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.attention_benchmark.variants import FULL, VARIANTS, Cost, cost, with_patterns
from experiments.attention_benchmark.which_pattern_report import write_report
from experiments.attention_benchmark.which_pattern_samples import SHOWN, keep_strip, strip_path
from experiments.attention_benchmark.which_pattern_times import step_times
from experiments.exit_codes import exit_code
from vdm_jax.benchmark import machine
from vdm_jax.benchmark.cases import label
from vdm_jax.benchmark.plots import require_matplotlib
from vdm_jax.benchmark.record import load, open_record, save
from vdm_jax.commands.configs import load_config
from vdm_jax.commands.train_command import train
from vdm_jax.conditions.vocabulary import Vocabulary
from vdm_jax.data.opening import open_source
from vdm_jax.data.pipeline import Pipeline
from vdm_jax.evaluation.digits import scorer_of
from vdm_jax.generation.generator import Generator
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.runs.directory import load_stage, read_config
from vdm_jax.stages.stage import Experiment, Stage
from vdm_jax.training.loop import device_batch
from vdm_jax.training.step import compile_validation
from vdm_jax.video.arrays import resize, subsample_frames, to_float, to_uint8

HERE = Path(__file__).parent
RUNS = Path("runs/which_pattern")
SECONDS = 2.0  # that a clip lasts, whatever its frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """How much is trained and looked at."""

    config: str = "pattern_digits"
    stage: str = "base"
    variants: tuple[str, ...] = tuple(VARIANTS)
    seeds: tuple[int, ...] = (0, 1, 2)
    frames: tuple[int, ...] = (8,)
    tokens_of: int = 8  # frames of the config's batch; longer clips come in smaller batches, of as many tokens
    steps: int = 1600  # of full attention; its FLOPs and its time are everybody's budgets
    every: int = 100  # steps between checkpoints, which budgets are rounded to
    validation_clips: int = 256
    scored_clips: int = 192
    sampling_steps: int = 32

    def rows(self) -> list[Row]:
        """All rows, a seed after the other."""
        return [Row(variant, frames, seed)
                for seed in self.seeds for frames in self.frames for variant in self.variants]


PRESETS = {"cpu": Preset(), "frames": Preset(
    variants=(FULL, "sparse-causal (first, previous, own)", "spatial + temporal"), frames=(16, 32))}


@dataclasses.dataclass(frozen=True)
class Row:
    """One model to train."""

    variant: str
    frames: int
    seed: int

    @property
    def key(self) -> str:
        """Its name in the record."""
        return f"{self.variant} | {self.frames} frames | seed {self.seed}"

    def folder(self, work: Path) -> Path:
        """Where it is trained."""
        return work / re.sub(r"[^a-z0-9]+", "_", self.key)


def experiment_of(preset: Preset, variant: str, frames: int, seed: int = 0, steps: int | None = None) -> Experiment:
    """The experiment that trains a variant on clips of so many frames, which last as long whatever their number."""
    config = load_config(preset.config)
    base = with_patterns(config.stage(preset.stage), VARIANTS[variant])
    training = dataclasses.replace(
        base.training, steps=steps or preset.steps, decay=False, checkpoint_every=preset.every, keep=1000,
        batch_size=max(1, base.training.batch_size * preset.tokens_of // frames), validate_every=0, sample_every=0)
    rate = frames / SECONDS
    stage = dataclasses.replace(base, training=training, video=dataclasses.replace(base.video, frames=frames, fps=rate))
    drawn = max(config.data.frames, frames)
    data = dataclasses.replace(config.data, frames=drawn, fps=drawn / SECONDS)
    return dataclasses.replace(config, stages=(stage,), data=data, seed=seed)


def price(preset: Preset, variant: str, frames: int) -> Cost:
    """FLOPs of a clip."""
    return cost(experiment_of(preset, FULL, frames).stage(preset.stage), VARIANTS[variant])


def budgets(preset: Preset, variant: str, frames: int, ratio: float) -> dict[str, int]:
    """Steps that cost what full attention's steps cost, in FLOPs and in time, rounded to checkpoints; `ratio` is the
    time of a step against full attention's."""
    own, full = (price(preset, name, frames).training for name in (variant, FULL))
    return {name: max(1, round(preset.steps / each / preset.every)) * preset.every
            for name, each in (("FLOPs", own / full), ("time", ratio))}


def measure(preset: Preset, row: Row, times: dict[str, Any], run: Path, data_dir: Path | None = None, *,
            quiet: bool = False) -> dict[str, Any]:
    """Train a row to the end of its longer budget and look at it where each ends."""
    steps = budgets(preset, row.variant, row.frames, times["ratio"])
    experiment = experiment_of(preset, row.variant, row.frames, row.seed, max(steps.values()))
    start = time.perf_counter()
    train(experiment, [preset.stage], run, data_dir, quiet=quiet)
    seconds = time.perf_counter() - start  # of this sitting, compilation included
    experiment = read_config(run)  # with its vocabulary
    stage = experiment.stage(preset.stage)
    flops = price(preset, row.variant, row.frames)
    batch = stage.training.batch_size
    found = {step: scores(preset, experiment, row, run, step) for step in sorted(set(steps.values()))}
    params = load_stage(run, stage)
    patterns = [label(pattern) for pattern in VARIANTS[row.variant]]
    return {**dataclasses.asdict(row), "patterns": patterns, "batch": batch,
            "flops_per_step": batch * flops.training, "forward_flops_per_clip": flops.forward,
            "attention_share": round(flops.attention / flops.forward, 4),
            "parameters": sum(x.size for x in jax.tree.leaves(params)), "train_seconds": round(seconds, 1),
            "device": machine.describe(jax.devices()[0], len(jax.devices()))["kind"],
            "curve": curve(preset, experiment, stage, run, data_dir),
            "budgets": {name: {"steps": step, "scores": found[step]} for name, step in steps.items()}}


def scores(preset: Preset, experiment: Experiment, row: Row, run: Path, step: int) -> dict[str, dict[str, float]]:
    """What the videos of the first test captions show at a checkpoint, next to real clips of the same size. Both are
    enlarged to what the scorer knows strokes of."""
    generator = Generator(experiment, {preset.stage: load_stage(run, experiment.stage(preset.stage), step=step)})
    scorer = scorer_of(experiment)
    examples = scorer.examples("test", preset.scored_clips)
    captions = tuple(example["caption"] for example in examples)
    videos = generator(captions, seed=row.seed, steps=preset.sampling_steps).videos
    size = experiment.data.size
    real = subsample_frames(to_float(jnp.asarray(np.stack([example["video"] for example in examples]))), row.frames)
    clips = {"generated": to_float(jnp.asarray(videos)), "real clips (ceiling)": resize(
        real, *videos.shape[2:4], "area")}
    return {name: scorer.score(np.asarray(to_uint8(resize(small, size, size, "bilinear"))), captions).summary()
            for name, small in clips.items()}


def curve(preset: Preset, experiment: Experiment, stage: Stage, run: Path, data_dir: Path | None) -> list[dict]:
    """Loss of the averaged parameters at every checkpoint, on the same validation clips with the same noise."""
    mesh = make_mesh(experiment.mesh)
    size = min(stage.training.batch_size, preset.validation_clips)
    text = stage.network.text
    clips = Pipeline(open_source(experiment.data, "validation", data_dir), batch_size=size, seed=0,
                     tokenize=Vocabulary(text.words, text.length).encode)
    batches = [device_batch(clips.batch(i), mesh) for i in range(preset.validation_clips // size)]
    keys = jax.random.split(jax.random.key(0), len(batches))
    loss = compile_validation(stage, mesh)
    found = []
    for step in range(preset.every, stage.training.steps + 1, preset.every):
        params = load_stage(run, stage, step=step)
        losses = [float(loss(params, batch, key)) for batch, key in zip(batches, keys, strict=True)]
        found.append({"step": step, "validation_loss": float(np.mean(losses))})
    return found


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """While this process alone may write the record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def opened(preset: Preset, path: Path, *, fresh: bool = False) -> dict[str, Any]:
    """The record to go on with. Only times depend on the machine, which are said with theirs, so that rows of several
    machines may stand in one record."""
    device = machine.describe(jax.devices()[0], len(jax.devices()))
    if path.exists() and not fresh:
        device = load(path)["device"]
    shared = {name: value for name, value in dataclasses.asdict(preset).items()
              if name not in ("variants", "seeds", "frames")}
    about = {"device": device, "versions": machine.versions(), "protocol": {
        **shared, "work": "AdamW, constant learning rate, EMA; data and batches of a seed are the same for every "
                          "pattern",
        "flops": "2 per multiply-add in convolutions and matrix products, forward and backward; attention counts the "
                 "pairs that the mask shows"}}
    return {"times": {}, **open_record(path, about, fresh=fresh)}


def record_times(preset: Preset, path: Path, data_dir: Path | None = None, *, rounds: int = 15) -> None:
    """Time the train steps of the patterns that the record has no times of, in turn with full attention's. Another
    process waits meanwhile: all have the same budgets."""
    for frames in preset.frames:
        with alone(path):
            record = opened(preset, path)
            times = record["times"].setdefault(str(frames), {})
            missing = [name for name in preset.variants if name not in times]
            if not missing:
                continue
            found = step_times({name: experiment_of(preset, name, frames) for name in dict.fromkeys((FULL, *missing))},
                               preset.stage, data_dir, rounds=rounds)
            record["times"][str(frames)] = found | times
            save(path, record)


def record(preset: Preset, path: Path, work: Path, *, part: tuple[int, int] = (1, 1), data_dir: Path | None = None,
           quiet: bool = False) -> dict[str, Any]:
    """Measure the rows of a part that the record lacks; every finished one is written at once."""
    found = opened(preset, path)
    for row in preset.rows()[part[0] - 1::part[1]]:
        if row.key in found["rows"]:
            continue
        if not quiet:
            print(row.key, file=sys.stderr, flush=True)
        times = found["times"][str(row.frames)][row.variant]
        measured = measure(preset, row, times, row.folder(work), data_dir, quiet=quiet)
        with alone(path):
            found = opened(preset, path)
            found["rows"][row.key] = measured
            save(path, found)
    return found


def keep_samples(preset: Preset, path: Path, work: Path) -> None:
    """Keep the first videos of the rows of the first seed that were trained here, at the end of everybody's time."""
    for row in preset.rows():
        measured = load(path)["rows"].get(row.key)
        if row.seed != preset.seeds[0] or measured is None or not row.folder(work).exists():
            continue
        if strip_path(path.parent, row.variant, row.frames).exists():
            continue
        experiment = read_config(row.folder(work))
        step = measured["budgets"]["time"]["steps"]
        params = load_stage(row.folder(work), experiment.stage(preset.stage), step=step)
        captions = tuple(example["caption"] for example in scorer_of(experiment).examples("test", SHOWN))
        generator = Generator(experiment, {preset.stage: params})
        keep_strip(path.parent, row.variant, generator(captions, seed=row.seed, steps=preset.sampling_steps).videos)
        with alone(path):
            save(path, load(path) | {"captions": captions})


def a_part(text: str) -> tuple[int, int]:
    """1/2 as (1, 2)."""
    match = re.fullmatch(r"([1-9]\d?)/([1-9]\d?)", text)
    if match is None or int(match[1]) > int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a part; permitted: 1/2, 2/2 and so on")
    return int(match[1]), int(match[2])


def main() -> int:
    """Train, record and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, help="what to measure")
    parser.add_argument("--part", type=a_part, default=(1, 1), help="which of how many processes this is")
    parser.add_argument("--times", action="store_true", help="only time train steps")
    parser.add_argument("--report", action="store_true", help="only tables and plots from the record")
    args = parser.parse_args()
    if bool(args.preset) == args.report:
        parser.error("give either --preset or --report")
    path = HERE / "results" / "which_pattern.json"

    def work() -> None:
        require_matplotlib()
        if args.preset:
            record_times(PRESETS[args.preset], path)
            if not args.times:
                record(PRESETS[args.preset], path, RUNS, part=args.part)
                keep_samples(PRESETS[args.preset], path, RUNS)
        if load(path)["rows"]:
            write_report(path, HERE / "README.md", HERE.parent.parent / "docs" / "results.md")
        print(HERE / "README.md")

    return exit_code("which_pattern", work)


if __name__ == "__main__":
    sys.exit(main())
