"""`vdm-jax measure`: score video files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from vdm_jax.commands.arguments import given, parse, refuse_unread, refuse_unused
from vdm_jax.commands.outputs import check_file
from vdm_jax.configuration import Count, CountOrZero, Positive, Seed, Size
from vdm_jax.errors import UserError
from vdm_jax.evaluation.edits import EDIT_METRICS, EditMetric, EditProtocolName, EditSettings
from vdm_jax.evaluation.run_metrics import RunMetrics
from vdm_jax.evaluation.video_files import FileMetric, FileSettings
from vdm_jax.metrics.detectors.clip import ModelName
from vdm_jax.metrics.feature_scores import READERS


@dataclasses.dataclass(frozen=True)
class Measure:
    """Score the video files of a folder, whoever made them. All files have one size and one length.

    With --against the real videos of another folder: fvd, kvd, b_fvd, fvd_c3d and fid compare the folders, psnr, ssim
    and lpips files of the same name. clipsim and prompt_consistency read captions from .txt files next to the videos,
    av_align the sound in the files or .wav files next to them. Every score is printed with how it was made, and written
    with --out.

    With --edits LIST the folder holds edits of given videos instead, of any size and length each: LIST says which
    videos were edited by which prompts, and --edit-protocol how many of both a paper has. --expected lists all files
    and prompts, and says what is missing.

    Examples:
      vdm-jax measure generated --against real --metrics fvd fid motion --split test
      vdm-jax measure reconstructed --against originals --metrics psnr ssim lpips
      vdm-jax measure with_sound --metrics av_align motion
      vdm-jax measure edited --edits davis/edits.json --edit-protocol controlvideo_davis --expected
      vdm-jax measure edited --edits davis/edits.json --edit-protocol controlvideo_davis
    """

    folder: tyro.conf.Positional[Path]  # folder of video files
    metrics: tuple[Literal[FileMetric, EditMetric], ...] = ()  # what to measure; with --edits all of its own by default
    against: Path | None = None  # folder of real videos
    protocol: str = "original"  # how fvd, kvd and b_fvd are made: original, fvd2048_16f, fvd2048_128f, vdm_bair, ...
    fid_protocol: str = "fid_tensorflow"  # how fid* and is* are made: fid_tensorflow, fid_pytorch, fid50k_full, ...
    c3d_protocol: str = "tganv2_ucf"  # how fvd_c3d and is_c3d are made: tganv2_ucf, isv2048_ucf, vdm_ucf
    block_frames: Size = 16  # frames of each block that b_fvd compares
    clip: ModelName = "ViT-L-14"  # model of prompt_consistency and clip_frame_consistency*
    split: str = "not stated"  # split of the real videos; recorded and compared with the protocol
    stride: Count = 1  # source frames between two frames of a file; recorded
    start: str = "not stated"  # where the real videos begin in their sources, such as random; recorded
    draw: str = "not stated"  # how real videos were drawn, such as 'with replacement'; recorded
    given_frames: CountOrZero = 0  # frames at the beginning of each file that psnr, ssim and lpips leave out
    resamples: CountOrZero = 100  # draws for the intervals of distances and Inception scores; 0: no intervals
    frames: Size | None = None  # read so many frames of each file, from its beginning; by default all
    seed: Seed = 0  # seed of the draws for intervals
    least_motion: Positive = 0.1  # least motion that av_align counts as a peak, pixels per frame
    # JSON, next to the given videos: which of them were edited by which prompts (docs/metrics.md)
    edits: Path | None = None
    edit_protocol: EditProtocolName | None = None  # how many videos and prompts there must be, with --edits
    # With --edits: list every file and prompt that LIST and --edit-protocol ask for, and say what is missing; nothing
    # is measured, and the exit status is 1 where something is missing
    expected: bool = False
    out: Path | None = None  # .json for the scores


def main(arguments: Sequence[str]) -> int:
    """Entry of the command."""
    options = parse(Measure, arguments, "vdm-jax measure")
    if options.expected:
        return _listed(options)
    measured = _measured_files if options.edits is None else _measured_edits
    from vdm_jax.runs.records import json_ready
    from vdm_jax.video.writing import atomic_path

    result = measured(options)
    if options.out:
        with atomic_path(options.out) as temporary:
            temporary.write_text(json.dumps(json_ready(result.to_dict()), indent=1, allow_nan=False) + "\n")
    print(result.table())
    result.require_finite(str(options.out) if options.out else "the table")
    return 0


def _measured_files(options: Measure) -> RunMetrics:
    """Scores of the files of a folder. Raises `UserError` for options of edits."""
    refuse_unused(options, ["edit_protocol"], "without --edits", "with --edits LIST")
    names = (field.name for field in dataclasses.fields(FileSettings))
    settings = FileSettings(**{name: getattr(options, name) for name in names})
    refuse_unread(options, {**READERS, "least_motion": ("av_align",)})
    if options.out:
        check_file(options.out, (".json",))
    from vdm_jax.commands.progress import counting_progress
    from vdm_jax.evaluation.video_files import evaluate_files

    with counting_progress() as progress:
        return evaluate_files(options.folder, settings, options.against, progress=progress)


def _measured_edits(options: Measure) -> RunMetrics:
    """Scores of edited videos. Raises `UserError` for options and metrics of other files."""
    settings = _edit_settings(options)
    if options.out:
        check_file(options.out, (".json",))
    from vdm_jax.commands.progress import counting_progress
    from vdm_jax.evaluation.edits import evaluate_edits

    with counting_progress() as progress:
        return evaluate_edits(options.folder, options.edits, settings, progress=progress)


def _listed(options: Measure) -> int:
    """Print what scores of edits would be made of: 1 where some of it is missing. Raises `UserError` as
    `_measured_edits`."""
    if options.edits is None:
        raise UserError("--expected without --edits is not used; permitted: with --edits LIST")
    settings = _edit_settings(options)
    refuse_unused(options, ["out"], "with --expected", "no --out, since nothing is measured")
    from vdm_jax.evaluation.edits import expected

    found = expected(options.folder, options.edits, settings)
    print(found.table())
    return 0 if found.complete else 1


def _edit_settings(options: Measure) -> EditSettings:
    """What to measure of edits. Raises `UserError` for options and metrics of other files."""
    read = ("folder", "metrics", "clip", "edits", "edit_protocol", "expected", "out")
    refuse_unused(options, [name for name in given(options) if name not in read], "with --edits",
                  "--metrics, --clip, --edit-protocol, --expected and --out")
    metrics = options.metrics or EDIT_METRICS
    if others := [name for name in metrics if name not in EDIT_METRICS]:
        raise UserError(f"--metrics={others[0]} with --edits; permitted: {', '.join(EDIT_METRICS)}")
    return EditSettings(metrics=metrics, protocol=options.edit_protocol, clip=options.clip)
