"""`vdm-jax prepare`: bring data into a form that trains fast."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import rich.console
import rich.progress
import tyro

from vdm_jax.commands.arguments import parse, refuse_unused
from vdm_jax.commands.configs import config_names, load_config
from vdm_jax.commands.outputs import check_folder
from vdm_jax.configuration import SPLITS, Count, Positive, Range, Size
from vdm_jax.data.array_record import METADATA, prepare_clips
from vdm_jax.data.crops import Crop
from vdm_jax.data.names import printable
from vdm_jax.data.opening import default_data_dir, open_source
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.errors import UserError
from vdm_jax.stages.autoencoding import AnyExperiment
from vdm_jax.training.report import log_console

OF_FOLDERS = ("out", "frames", "size", "frame_stride", "fps", "crop", "captions", "format", "workers")
Threads = Annotated[int, Range(least=1, cap=1024)]


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Prepare a data set once, so that training reads it fast.

    SOURCE is the name of a config or a folder of videos. An embedded data set is made; any other of a config
    is looked for and its clips are counted, or an error says what to fetch and where to put it. A folder of videos is
    cut into clips, resized and written to array_record files under --out (one folder per split); a captions CSV has the
    columns 'file' and 'caption'. Train on the result with the data set PreparedClips(path=...). The folder --out
    appears when all of it is there, or not at all: an interrupted preparation begins anew. Clips that do not decode are
    left out, counted and named.

    Examples:
      vdm-jax prepare captioned_digits
      vdm-jax prepare vdm/ucf101
      vdm-jax prepare ~/videos --out data/mine --frames 16 --size 64 64 --captions ~/videos/captions.csv --format mp4
      vdm-jax prepare ~/videos --out data/mine --fps 8 --crop pad --workers 16
    """

    source: tyro.conf.Positional[str]  # name of a config, or a folder of videos
    out: Path | None = None  # for a folder of videos: where the clips go (a new folder)
    frames: Size = 16  # frames per clip
    size: tuple[Size, Size] = (64, 64)  # height and width, pixels
    frame_stride: Count = 1  # take every n-th frame of a file; 1 with --fps
    # Frames per second of the clips, by the files' time stamps: right for files of different rates. By default the
    # files' own, and --frame-stride
    fps: Positive | None = None
    # Frames of another aspect ratio: "center" cuts the sides off, "random" cuts anywhere (drawn once per clip), "pad"
    # keeps the whole frame within black borders, "squeeze" keeps it and changes its shape
    crop: Crop = "center"
    captions: str | None = None  # CSV with columns file, caption
    format: Literal["raw", "jpeg", "mp4"] = "jpeg"  # raw reads fastest, mp4 is smallest
    workers: Threads | None = None  # threads that decode and encode; one per processor by default. Clips are the same
    data_dir: Path | None = None  # for configs: where prepared data lives; ~/.cache/vdm_jax/data by default


def main(arguments: Sequence[str]) -> int:
    """Entry of the command."""
    options = parse(Prepare, arguments, "vdm-jax prepare")
    console = log_console()
    if options.source in config_names():
        refuse_unused(options, OF_FOLDERS, f"with config {options.source}, which says what its clips are,",
                      "--data-dir, or a folder of videos")
        prepare_config(load_config(options.source), options, console)
    elif Path(options.source).is_dir():
        refuse_unused(options, ["data_dir"], f"with a folder of videos ({options.source})", "--out")
        prepare_folder(options, console)
    else:
        raise UserError(f"source={options.source!r} is neither a config nor a folder; permitted: a folder of videos, "
                        f"or one of {', '.join(config_names())}")
    return 0


def prepare_config(experiment: AnyExperiment, options: Prepare, console: rich.console.Console) -> None:
    """Prepare the data set of a config."""
    data_dir = options.data_dir or default_data_dir()
    with console.status(f"preparing {type(experiment.data).__name__} ..."):
        path = experiment.data.prepare(data_dir)
    if path is not None:
        print(path)
        return
    counts = {}
    for split in SPLITS:
        try:
            counts[split] = len(open_source(experiment.data, split, data_dir))
        except UserError as error:
            if split == "train":
                raise
            console.print(f"no {split} split: {error}", markup=False)
    print(f"nothing to prepare: {type(experiment.data).__name__} is read as it is (clips: "
          f"{', '.join(f'{split} {count}' for split, count in counts.items())})")


def prepare_folder(options: Prepare, console: rich.console.Console) -> None:
    """Cut a folder of videos into clips and write them, split by split."""
    if options.out is None:
        raise UserError("--out=None is not valid for a folder of videos; permitted: a new folder for the clips")

    height, width = options.size
    spec = VideoFolder(path=options.source, captions=options.captions, frames=options.frames, height=height,
                       width=width, frame_stride=options.frame_stride, fps=options.fps, crop=options.crop)
    out = options.out.expanduser()
    check_folder(out)
    if out.exists():
        raise UserError(f"--out={options.out} exists already; permitted: a new folder")
    partial = out.with_name(f".{out.name}.partial")  # a training must not find a set that lacks a split
    shutil.rmtree(partial, ignore_errors=True)  # left by a preparation that was killed
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    try:
        with rich.progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            reports = [report for split in SPLITS for report in _prepare_split(spec, split, partial, options, bar)]
        partial.rename(out)
    except OSError as error:
        raise UserError(f"--out={options.out} cannot be written: {error.strerror or error}; permitted: a new folder"
                        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for split, report in reports:
        print(f"{out / split}: {report}")


def _prepare_split(
    spec: VideoFolder, split: str, folder: Path, options: Prepare, bar: rich.progress.Progress
) -> Iterator[tuple[str, str]]:
    """Writes the clips of one split; gives (split, what was found, line by line)."""
    try:
        source = open_source(spec, split)
    except UserError as error:
        if split == "train":
            raise
        bar.console.print(f"no {split} split: {error}", markup=False)  # a folder with very few files
        return
    task = bar.add_task(f"writing {split}", total=len(source))
    path = prepare_clips(source, folder, split, options.format,
                         lambda done, total: bar.update(task, completed=done), options.workers or os.cpu_count() or 1)
    damaged = json.loads((path / METADATA).read_text(encoding="utf-8"))["skipped_clips"]
    report = f"{len(source) - damaged} clips"
    if damaged:
        report += f" of {len(source)}; {damaged} do not decode"
    if source.skipped:
        named = "; ".join(f"{printable(name)} ({printable(reason)})" for name, reason in
                          itertools.islice(source.skipped.items(), 5))
        report += f"\n  {len(source.skipped)} files skipped or damaged: {named}"
    yield split, report
