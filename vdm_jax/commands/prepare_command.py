"""`vdm-jax prepare`: bring data into a form that trains fast."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import rich.console
import rich.progress
import tyro

from vdm_jax.cascade.autoencoding import AnyExperiment
from vdm_jax.commands.arguments import parse
from vdm_jax.commands.configs import config_names, load_config
from vdm_jax.data.array_record import prepare_clips
from vdm_jax.data.captioned_digits import CaptionedDigits
from vdm_jax.data.captioned_digits_tfds import prepare_captioned_digits
from vdm_jax.data.opening import SPLITS, default_data_dir, open_source
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Prepare a data set once, so that training reads it fast.

    SOURCE is the name of a config or a folder of videos. An embedded data set is made; any other of a config
    is looked for and its clips are counted, or an error says what to fetch and where to put it. A folder of videos is
    cut into clips, resized and written to array_record files under --out (one folder per split); a captions CSV has the
    columns 'file' and 'caption'. Train on the result with the data set PreparedClips(path=...).

    Examples:
      vdm-jax prepare captioned_digits
      vdm-jax prepare vdm/ucf101
      vdm-jax prepare ~/videos --out data/mine --frames 16 --size 64 64 --captions ~/videos/captions.csv --format mp4
    """

    source: tyro.conf.Positional[str]  # name of a config, or a folder of videos
    out: Path | None = None  # for a folder of videos: where the clips go (a new folder)
    frames: int = 16  # frames per clip
    size: tuple[int, int] = (64, 64)  # height and width, pixels
    frame_stride: int = 1  # take every n-th frame
    captions: str | None = None  # CSV with columns file, caption
    format: Literal["raw", "jpeg", "mp4"] = "jpeg"  # raw reads fastest, mp4 is smallest
    data_dir: Path | None = None  # for configs: where prepared data lives; ~/.cache/vdm_jax/data by default


def main(arguments: Sequence[str]) -> int:
    """Entry of the command."""
    options = parse(Prepare, arguments, "vdm-jax prepare")
    console = rich.console.Console(stderr=True, highlight=False)
    if options.source in config_names():
        prepare_config(load_config(options.source), options, console)
    elif Path(options.source).is_dir():
        prepare_folder(options, console)
    else:
        raise UserError(f"source={options.source!r} is neither a config nor a folder; permitted: a folder of videos, "
                        f"or one of {', '.join(config_names())}")
    return 0


def prepare_config(experiment: AnyExperiment, options: Prepare, console: rich.console.Console) -> None:
    """Prepare the data set of a config."""
    data_dir = options.data_dir or default_data_dir()
    if isinstance(experiment.data, CaptionedDigits):
        with console.status("drawing captioned digits ..."):
            path = prepare_captioned_digits(experiment.data, data_dir)
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
    spec = VideoFolder(path=options.source, captions=options.captions, frames=options.frames,
                       height=height, width=width, frame_stride=options.frame_stride)
    if options.out.exists():
        raise UserError(f"--out={options.out} exists already; permitted: a new folder")
    with rich.progress.Progress(console=console, disable=not console.is_terminal) as bar:
        for split in SPLITS:
            try:
                source = open_source(spec, split)
            except UserError as error:
                if split == "train":
                    raise
                console.print(f"no {split} split: {error}", markup=False)  # a folder with very few files
                continue
            task = bar.add_task(f"writing {split}", total=len(source))
            path = prepare_clips(source, options.out, split, options.format,
                                 lambda done, total, task=task: bar.update(task, completed=done))
            print(f"{path}: {len(source)} clips")
            if source.skipped:
                print(f"  {len(source.skipped)} files skipped: "
                      + "; ".join(f"{name} ({reason})" for name, reason in list(source.skipped.items())[:5]))
