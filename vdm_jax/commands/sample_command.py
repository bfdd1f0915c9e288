"""`vdm-jax sample`: generate videos of captions from a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from vdm_jax.commands.arguments import parse
from vdm_jax.errors import UserError
from vdm_jax.training.manifest import Damaged
from vdm_jax.video.writing import SUFFIXES


@dataclasses.dataclass(frozen=True)
class Sample:
    """Generate videos of captions.

    RUN is a run directory, a name under runs/, or shipped weights. The same seed gives the same videos, whatever else
    is generated beside them. The suffix of --out decides what is written: .mp4 or .gif shows all videos side by side,
    .png is a sheet with one row of frames per video.

    Examples:
      vdm-jax sample captioned_digits "a red 3 moving left" --out three.gif
      vdm-jax sample runs/captioned_digits "a blue 7 bouncing" "a green one rising" --count 4 --seed 7 --out grid.mp4
      vdm-jax sample captioned_digits "a red 3 bouncing" --last base --frames 32 --out long.gif
    """

    run: tyro.conf.Positional[str]  # run directory or name
    captions: tyro.conf.Positional[tuple[str, ...]]  # one or more, each in quotes
    seed: int = 0
    count: int = 1  # videos per caption
    steps: int | None = None  # sampler steps of every stage; each stage's own by default
    guidance: float | None = None  # weight w of (1 + w) conditional - w unconditional, first stage; 0 is off
    labels: tuple[int, ...] = ()  # class numbers, one per caption, for stages that take a class; -1 is none
    split_guidance: bool | None = None  # a video's two estimates on two halves of the devices; the config's by default
    last: str | None = None  # stop after this stage, e.g. base
    frames: int | None = None  # a longer video, extended block by block; needs --last with the first stage
    overlap: int | None = None  # with --frames: frames that a block takes over from the one before; half by default
    method: Literal["reconstruction", "replacement"] | None = None  # with --frames: how; the config's by default
    damaged: Damaged = "refuse"  # a damaged newest checkpoint: refuse, or skip it and use the newest intact one
    out: tuple[Path, ...] = (Path("sample.mp4"),)  # one or more files: .mp4, .gif or .png


def main(arguments: Sequence[str]) -> int:
    """Entry of the command."""
    options = parse(Sample, arguments, "vdm-jax sample")
    check(options)
    import vdm_jax
    from vdm_jax.commands.progress import sampling_progress

    generator = vdm_jax.load(options.run, damaged=options.damaged)
    captions = [caption for caption in options.captions for _ in range(options.count)]
    labels = [label for label in options.labels for _ in range(options.count)] or None
    common = {"seed": options.seed, "steps": options.steps, "guidance": options.guidance, "labels": labels}
    with sampling_progress() as progress:
        if options.frames is None:
            result = generator(captions, **common, split_guidance=options.split_guidance, last=options.last,
                               progress=progress)
        else:
            result = extended(generator, captions, options, progress=progress, **common)
    for path in options.out:
        print(result.save(path))
    return 0


def extended(generator: Any, captions: Sequence[str], options: Sample, **common: Any) -> Any:
    """Longer videos of the first stage. Raises `UserError` when further stages were not left out."""
    first, *others = generator.experiment.stages
    if others and options.last != first.name:
        raise UserError(f"--frames={options.frames} with --last={options.last}: only the first stage can be extended; "
                        f"permitted: --last {first.name}")
    completion = first.sampling.completion
    if options.method is not None:
        completion = dataclasses.replace(completion, method=options.method)
    return generator.extend(captions, frames=options.frames, overlap=options.overlap, completion=completion, **common)


def check(options: Sample) -> None:
    """Refuse bad options before anything is loaded. Raises `UserError`."""
    if not options.captions:
        raise UserError("captions are missing; permitted: one or more, each in quotes")
    if options.count < 1:
        raise UserError(f"--count={options.count} is not valid; permitted: >= 1")
    if options.steps is not None and options.steps < 1:
        raise UserError(f"--steps={options.steps} is not valid; permitted: >= 1")
    for name in ("overlap", "method"):
        if options.frames is None and getattr(options, name) is not None:
            raise UserError(f"--{name}={getattr(options, name)} is for --frames; permitted: --frames N with it")
    for path in options.out:
        if path.suffix not in SUFFIXES:
            raise UserError(f"--out={path} has suffix {path.suffix!r}; permitted: {', '.join(SUFFIXES)}")
        if not path.parent.is_dir():
            raise UserError(f"--out={path}: the folder {path.parent} does not exist; "
                            "permitted: a file in an existing folder")
