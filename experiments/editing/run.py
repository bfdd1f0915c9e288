"""Edits of real clips that can be scored: another colour, another digit, both, of test clips of captioned digits.

Run:  python -m experiments.editing.run [captioned_digits_full] --clips 32

Every method is measured next to two bounds: "no edit" keeps the clip, "generated anew" samples the new caption and
knows nothing of it. A row is written when it is there, so an interrupted run goes on; a row of an older record that
lacks the peak of memory is measured again, in its place. results/digits.json is the record; `report.py` puts it into
README.md.

Peak memory is the process's resident memory at its highest while a method makes the clips, compilation, interpreter
and libraries included: Linux forgets the peak so far when a 5 is written to /proc/self/clear_refs, and VmHWM in
/proc/self/status is the peak since then. Each row begins with newly loaded weights and no compiled functions. Where the
system cannot forget a peak the row has none.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from jaxtyping import Bool, Float, UInt8

from experiments.exit_codes import exit_code
from vdm_jax.benchmark.machine import describe, forget_peak, peak_resident_bytes, versions
from vdm_jax.digits.clips import COLOURS, DIGIT_WORDS, DigitClip, DigitObject, generate_clip
from vdm_jax.digits.scorer import DigitScorer
from vdm_jax.errors import UserError
from vdm_jax.generation.editing.ddim_inversion import DDIMInversion
from vdm_jax.generation.editing.ddpm_inversion import DDPMInversion
from vdm_jax.generation.editing.edit import edit
from vdm_jax.generation.editing.fatezero import FateZero
from vdm_jax.generation.editing.prompt_to_prompt import PromptToPrompt
from vdm_jax.generation.editing.sdedit import SDEdit
from vdm_jax.generation.generator import Generator
from vdm_jax.metrics.flow import warp_error
from vdm_jax.runs.directory import load
from vdm_jax.video.writing import atomic_path

FOLDER = Path(__file__).parent
EditKind = Literal["colour", "digit", "both"]
NAMED_BY = ("edit", "method", "clips", "model", "seed")  # what a row is of
PEAK = "peak_memory_mib"
FOREGROUND = 60  # value of the brightest channel from which a pixel is of a digit
NO_EDIT, ANEW = "no edit", "generated anew"
# Of the first stage: guidance leads away from the given video
METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim, no guidance": (DDIMInversion(), {"guidance": 0.0}),
    "ddim": (DDIMInversion(), {}),
    "prompt_to_prompt, no guidance": (PromptToPrompt(), {"guidance": 0.0}),
    "prompt_to_prompt": (PromptToPrompt(), {}),
    # All places keep the inversion's self-attention, or those of the words that change do not
    "fatezero everywhere, no guidance": (FateZero(threshold=1.0), {"guidance": 0.0}),
    "fatezero, no guidance": (FateZero(), {"guidance": 0.0}),
    "fatezero": (FateZero(), {}),
    "ddpm 0.8, no guidance": (DDPMInversion(strength=0.8), {"guidance": 0.0}),
    "ddpm 0.6, no guidance": (DDPMInversion(strength=0.6), {"guidance": 0.0}),
    "sdedit 0.5": (SDEdit(strength=0.5), {}),
    "sdedit 0.7": (SDEdit(strength=0.7), {}),
    "sdedit 0.9": (SDEdit(strength=0.9), {}),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """Measure methods of editing on test clips of one digit."""

    model: tyro.conf.Positional[str] = "captioned_digits_full"
    clips: int = 32
    at_once: int = 8  # clips that are edited together
    edits: tuple[EditKind, ...] = ("colour", "digit", "both")
    methods: tuple[str, ...] = (NO_EDIT, ANEW, *METHODS)
    seed: int = 0
    out: Path = FOLDER / "results" / "digits.json"


def clips_of(spec: Any, count: int) -> list[DigitClip]:
    """The first test clips of one digit, of pairs of digit and motion that training showed."""
    found, index = [], 0
    while len(found) < count:
        clip, index = generate_clip(spec, "test", index), index + 1
        if len(clip.objects) == 1 and not clip.objects[0].held_out:
            found.append(clip)
    return found


def edited_captions(clips: Sequence[DigitClip], kind: EditKind, seed: int) -> list[str]:
    """Captions that differ from those of the clips in a word or two, drawn."""
    rng, names, found = np.random.default_rng(seed), list(COLOURS), []
    for clip in clips:
        item, (article, colour, digit, *motion) = clip.objects[0], clip.caption.split()
        other = names[(names.index(item.colour) + rng.integers(1, len(names))) % len(names)]
        digits = [d for d in range(10) if d != item.digit and not DigitObject(d, item.colour, item.motion).held_out]
        drawn = int(rng.choice(digits))
        if kind in ("colour", "both"):
            article, colour = "an" if other == "orange" else "a", other
        if kind in ("digit", "both"):
            digit = DIGIT_WORDS[drawn] if digit in DIGIT_WORDS else str(drawn)
        found.append(" ".join([article, colour, digit, *motion]))
    return found


def digit_pixels(videos: UInt8[np.ndarray, "N T H W 3"]) -> Bool[np.ndarray, "N T H W"]:
    """Where a digit is."""
    return videos.max(-1) > FOREGROUND


def centres(videos: UInt8[np.ndarray, "N T H W 3"]) -> Float[np.ndarray, "N T 2"]:
    """Middle (y, x) of the box around the digit in every frame, pixels; NaN where there is none. A box follows the
    motion of digits of other strokes more closely than their centroids do."""
    mask, found = digit_pixels(videos), np.full((*videos.shape[:2], 2), np.nan)
    for place in np.ndindex(videos.shape[:2]):
        for axis in (0, 1):
            lines = np.flatnonzero(mask[place].sum(1 - axis) > 1)
            if len(lines):
                found[(*place, axis)] = (lines[0] + lines[-1]) / 2
    return found


def measured(scorer: DigitScorer, made: Any, source: Any, captions: Sequence[str]) -> dict[str, float]:
    """How well edited clips show what is asked for, and what else they change."""
    table = scorer.score(made, captions)
    error = np.linalg.norm(centres(made) - centres(source), axis=-1)
    outside = ~(_grown(digit_pixels(made)) | _grown(digit_pixels(source)))
    change = np.abs(made.astype(int) - source).mean(-1)
    return {
        "whole": float(table.whole.mean()), "colour": float(table.colour.mean()), "digit": float(table.digit.mean()),
        "motion": float(table.motion.mean()), "trajectory_error": float(np.nanmean(error)),
        "lost_frames": float(np.isnan(error).mean()),
        "background_change": float(change[outside].mean() / 255) if outside.any() else float("nan"),
        "warp_error": float(np.nanmean(warp_error(made, source))),
        "frame_change": float(np.abs(np.diff(digit_pixels(made).sum((2, 3)), axis=1)).mean()),
    }


def _grown(mask: Bool[np.ndarray, "N T H W"]) -> Bool[np.ndarray, "N T H W"]:
    """With the pixels up to two beyond."""
    from scipy.ndimage import maximum_filter

    return maximum_filter(mask, (1, 1, 5, 5))


def made_by(generator: Generator, method: str, videos: Any, source: Sequence[str], target: Sequence[str],
            options: Run) -> UInt8[np.ndarray, "N T H W 3"]:
    """The clips that a method makes."""
    if method == NO_EDIT:
        return videos
    done, spec = [], METHODS.get(method, (None, {}))[0]
    # The words that change are at other places where the article does, which FateZero takes of one caption at a time
    size = 1 if isinstance(spec, FateZero) else options.at_once
    for start in range(0, len(videos), size):
        rows = slice(start, start + size)
        if method == ANEW:
            done.append(generator(target[rows], seed=options.seed, first_index=start).videos)
        else:
            more = METHODS[method][1]
            done.append(edit(generator, videos[rows], target[rows], source_captions=source[rows], method=spec,
                             seed=options.seed, first_index=start, **more).videos)
    return np.concatenate(done)


def rows(options: Run) -> Iterator[dict[str, Any]]:
    """A row for each edit and method that is not there yet. Raises `UserError` for a method that is none."""
    if unknown := [name for name in options.methods if name not in (NO_EDIT, ANEW, *METHODS)]:
        raise UserError(f"methods={unknown[0]!r}; permitted: {', '.join((NO_EDIT, ANEW, *METHODS))}",
                        "run.methods")
    data = load(options.model).experiment.data
    scorer, clips = DigitScorer(data), clips_of(data, options.clips)
    videos, source = np.stack([clip.video for clip in clips]), [clip.caption for clip in clips]
    there = read(options.out)
    for kind in options.edits:
        target = edited_captions(clips, kind, options.seed)
        for method in options.methods:
            named = {"edit": kind, "method": method, "clips": options.clips, "model": options.model,
                     "seed": options.seed}
            if any(named.items() <= row.items() and PEAK in row for row in there):
                continue
            forget_functions()
            generator = load(options.model)
            made, used = with_cost(made_by, generator, method, videos, source, target, options)
            yield named | measured(scorer, made, videos, target) | used | describe_machine()


def forget_functions() -> None:
    """Free compiled functions and what is no longer used, so that memory is not that of the methods before."""
    jax.clear_caches()
    gc.collect()


def with_cost(make: Callable[..., Any], *arguments: Any) -> tuple[UInt8[np.ndarray, "N T H W 3"], dict[str, Any]]:
    """The clips that a function makes, and what they took: processor seconds over their number, and peak memory."""
    watched, began = forget_peak(), time.process_time()
    made = make(*arguments)
    return made, {"cpu_seconds_per_clip": (time.process_time() - began) / len(made),
                  PEAK: round(peak_resident_bytes() / 2**20) if watched else None}


def describe_machine() -> dict[str, Any]:
    """Where a row was measured."""
    return {"machine": describe(jax.devices()[0], 1), "versions": versions()}


def read(path: Path) -> list[dict[str, Any]]:
    """The rows that are there."""
    return json.loads(path.read_text()) if path.is_file() else []


def with_row(there: Sequence[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows with one more, in the place of an older one of the same."""
    same = [all(row[name] == other[name] for name in NAMED_BY) for other in there]
    return [row if old else other for old, other in zip(same, there, strict=True)] + ([] if any(same) else [row])


def main(options: Run) -> None:
    """Measure what is missing and write it row by row."""
    for row in rows(options):
        with atomic_path(options.out) as temporary:
            temporary.write_text(json.dumps(with_row(read(options.out), row), indent=1) + "\n")
        print({name: value for name, value in row.items() if name not in ("machine", "versions")}, flush=True)


if __name__ == "__main__":
    sys.exit(exit_code("editing", lambda: main(tyro.cli(Run, description=__doc__))))
