"""`vdm-jax measure`: score video files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import tyro

from vdm_jax.commands.arguments import parse, refuse_unread
from vdm_jax.commands.outputs import check_file
from vdm_jax.configuration import Count, CountOrZero, Positive, Seed, Size
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

    Examples:
      vdm-jax measure generated --against real --metrics fvd fid motion --split test
      vdm-jax measure reconstructed --against originals --metrics psnr ssim lpips
      vdm-jax measure with_sound --metrics av_align motion
    """

    folder: tyro.conf.Positional[Path]  # folder of video files
    metrics: tuple[FileMetric, ...] = ()  # what to measure
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
    out: Path | None = None  # .json for the scores


def main(arguments: Sequence[str]) -> int:
    """Entry of the command."""
    options = parse(Measure, arguments, "vdm-jax measure")
    names = (field.name for field in dataclasses.fields(FileSettings))
    settings = FileSettings(**{name: getattr(options, name) for name in names})
    refuse_unread(options, {**READERS, "least_motion": ("av_align",)})
    if options.out:
        check_file(options.out, (".json",))
    from vdm_jax.commands.progress import counting_progress
    from vdm_jax.evaluation.video_files import evaluate_files
    from vdm_jax.runs.records import json_ready
    from vdm_jax.video.writing import atomic_path

    with counting_progress() as progress:
        result = evaluate_files(options.folder, settings, options.against, progress=progress)
    if options.out:
        with atomic_path(options.out) as temporary:
            temporary.write_text(json.dumps(json_ready(result.to_dict()), indent=1, allow_nan=False) + "\n")
    print(result.table())
    result.require_finite(str(options.out) if options.out else "the table")
    return 0
