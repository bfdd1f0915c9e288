"""One-shot tuning of the digits that ship, in the manner of Tune-A-Video, and edits on the way: the curve.

Run:  python -m experiments.editing.tuning [captioned_digits_full]
Needs: pip install 'vdm_jax[digits,plots]'

A test clip of one digit becomes a folder of one captioned video. The stages of `--tuned` train on it by the code of
`vdm-jax train`, from the weights that ship. At each of `--steps` the clip is edited by plain DDIM inversion without a
caption (`TuneAVideo`): to another colour, another digit, both, and to its own caption, whose PSNR to the clip is the
reconstruction. Step 0 is the untuned start.

What differs from Wu et al. 2022 (arXiv 2212.11565), because the networks differ: they train the queries of
self-attention and of cross-attention and all of a new temporal attention. Here a base stage has all frames as channels
of one position, so that there is no temporal attention to add and no sparse-causal pattern to choose; its
self-attention, over positions of all frames at once, has queries, keys and values in one parameter and is trained
whole. It denoises pixels, not latents, and the learning rate is that of the weights' own training.

A row for each clip and step is written when it is there, and trainings resume, so an interrupted run goes on.
results/tuning.json is the record; `tuning_report.py` puts it into README.md.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
import tyro

from experiments.editing.run import EditKind, clips_of, describe_machine, edited_captions, measured, read
from experiments.exit_codes import exit_code
from vdm_jax.commands.train_command import train
from vdm_jax.configuration import Count, CountOrZero, Positive, Seed
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.digits.clips import DigitClip
from vdm_jax.digits.scorer import DigitScorer
from vdm_jax.errors import UserError
from vdm_jax.generation.editing.edit import edit
from vdm_jax.generation.editing.tune_a_video import TuneAVideo
from vdm_jax.generation.generator import Generator
from vdm_jax.metrics.frames import psnr
from vdm_jax.parallel.mesh import MeshSpec
from vdm_jax.runs.directory import load, load_stage, stage_checkpoints
from vdm_jax.stages.options import InitFrom
from vdm_jax.stages.stage import Experiment, Stage
from vdm_jax.video.writing import atomic_path, write_video

FOLDER = Path(__file__).parent
KINDS: tuple[EditKind, ...] = get_args(EditKind)
# Queries of cross-attention; self-attention, whose queries share a parameter with keys and values
TRAINABLE = (r"/cross_attention_\d+/query/", r"/full_attention_\d+/qkv/")
NAMED_BY = ("clip", "step", "model", "tuned", "learning_rate", "trainable", "seed")  # what a row is of


@dataclasses.dataclass(frozen=True)
class Run:
    """Tune the digits that ship on single test clips, and edit these on the way."""

    model: tyro.conf.Positional[str] = "captioned_digits_full"
    clips: Count = 8  # first test clips of one digit
    steps: tuple[CountOrZero, ...] = (0, 25, 50, 100, 200, 400)  # of the training, at which the clip is edited
    tuned: tuple[str, ...] = ("base",)  # stages that are tuned; the others are as they ship
    learning_rate: Positive = 1e-3
    trainable: tuple[str, ...] = TRAINABLE  # regular expressions found in the paths of what is trained
    seed: Seed = 0  # of training, of the captions that are drawn
    work: Path = Path("runs/editing_tuning")  # where trainings are, until their clip is done
    out: Path = FOLDER / "results" / "tuning.json"


def one_video(clip: DigitClip, folder: Path, fps: float) -> VideoFolder:
    """A folder with one captioned video, every pixel as it is in the clip."""
    frames, height, width = clip.video.shape[:3]
    folder.mkdir(parents=True, exist_ok=True)
    write_video(folder / "clip.mp4", clip.video, fps, lossless=True)
    with atomic_path(folder / "captions.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "caption"), ("clip.mp4", clip.caption)])
    return VideoFolder(path=str(folder), captions=str(folder / "captions.csv"), frames=frames, height=height,
                       width=width, clips="one", fractions=(1.0, 0.0, 0.0), cache=str(folder.parent / "index"))


def tuning_of(generator: Generator, data: VideoFolder, options: Run) -> Experiment:
    """The cascade of a generator, whose stages to tune begin as they are there. Raises `UserError` for other stages."""
    found = generator.experiment
    if unknown := [name for name in options.tuned if name not in [stage.name for stage in found.stages]]:
        raise UserError(f"tuned={unknown[0]!r}; permitted: {', '.join(stage.name for stage in found.stages)}",
                        "tuning.tuned")

    def tuned(stage: Stage) -> Stage:
        if stage.name not in options.tuned:
            return stage
        every = int(np.gcd.reduce(options.steps))
        training = dataclasses.replace(
            stage.training, steps=max(options.steps), batch_size=1, learning_rate=options.learning_rate, warmup_steps=0,
            decay=False, ema_decay=0.0, text_dropout=0.05, checkpoint_every=every, keep=max(options.steps) // every,
            sample_every=0, validate_every=0, evaluation=dataclasses.replace(stage.training.evaluation, every=0),
            trainable=options.trainable, init_from=InitFrom(stage=stage.name, run=options.model))
        return dataclasses.replace(stage, training=training)

    return dataclasses.replace(found, name=f"{found.name}_tuned", stages=tuple(map(tuned, found.stages)), data=data,
                               validation_split="train", seed=options.seed,
                               mesh=MeshSpec(data=1, tensor=-1))  # a batch of one


def tuned_at(generator: Generator, run: Path, experiment: Experiment, names: Sequence[str], step: int) -> Generator:
    """The generator with the named stages as training had them after a step, in the same compiled functions."""
    if not step:
        return generator
    trained = {name: jax.tree.map(lambda new, old: jax.device_put(new, old.sharding),
                                  load_stage(run, experiment.stage(name), step=step), generator.params[name])
               for name in names}
    return generator.of(generator.experiment, {**generator.params, **trained})


def row_of(generator: Generator, clip: DigitClip, captions: Sequence[str], scorer: DigitScorer,
           seed: int) -> dict[str, Any]:
    """What the generator's edits of a clip score: by its own caption, and by those of `KINDS`."""
    videos = np.repeat(clip.video[None], 1 + len(captions), axis=0)
    made = edit(generator, videos, [clip.caption, *captions], method=TuneAVideo(), seed=seed, same_noise=True).videos
    scores = {kind: measured(scorer, made[place: place + 1], clip.video[None], [caption])
              for place, (kind, caption) in enumerate(zip(KINDS, captions, strict=True), 1)}
    return {"reconstruction_psnr": float(psnr(made[:1], clip.video[None])[0]), "edits": scores}


def rows(options: Run) -> Iterator[dict[str, Any]]:
    """A row for each clip and step that is not there yet. Raises `UserError` for steps without a training."""
    if not max(options.steps, default=0):
        raise UserError(f"steps={options.steps}; permitted: some above 0", "tuning.steps")
    generator, there = load(options.model), read(options.out)
    data = generator.experiment.data
    scorer, clips = DigitScorer(data), clips_of(data, options.clips)
    captions = list(zip(*(edited_captions(clips, kind, options.seed) for kind in KINDS), strict=True))
    said = {name: json.loads(json.dumps(getattr(options, name))) for name in NAMED_BY if hasattr(options, name)}
    for number, clip in enumerate(clips):
        named = [said | {"clip": number, "step": step} for step in options.steps]
        missing = [one for one in named if not any(one.items() <= row.items() for row in there)]
        if not missing:
            continue
        folder = options.work / f"clip_{number}"
        experiment = tuning_of(generator, one_video(clip, folder / "video", data.fps), options)
        unfinished = [name for name in options.tuned
                      if stage_checkpoints(folder / "run", name).latest() != max(options.steps)]
        if unfinished:
            train(experiment, unfinished, folder / "run", None, quiet=True, plan=False)
        for one in missing:
            now = tuned_at(generator, folder / "run", experiment, options.tuned, one["step"])
            yield one | {"caption": clip.caption} | row_of(now, clip, captions[number], scorer, options.seed) | (
                describe_machine())
        shutil.rmtree(folder)


def main(options: Run) -> None:
    """Measure what is missing and write it row by row."""
    for row in rows(options):
        with atomic_path(options.out) as temporary:
            temporary.write_text(json.dumps([*read(options.out), row], indent=1) + "\n")
        right = {kind: (scores["whole"], round(scores["trajectory_error"], 2)) for kind, scores in row["edits"].items()}
        print(row["clip"], row["step"], round(row["reconstruction_psnr"], 1), right, flush=True)


if __name__ == "__main__":
    sys.exit(exit_code("editing", lambda: main(tyro.cli(Run, description=__doc__))))
