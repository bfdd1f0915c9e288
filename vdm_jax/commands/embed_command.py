"""`vdm-jax embed`: embeddings of captions by a released text encoder, or vectors of pictures by an image encoder."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import rich.console
import rich.progress
import tyro

from vdm_jax.commands.arguments import parse, refuse_unused
from vdm_jax.commands.configs import config_names, load_config
from vdm_jax.commands.outputs import check_folder
from vdm_jax.configuration import SPLITS, Count, Size
from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.captions import caption_lines
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.data.opening import default_data_dir, open_source
from vdm_jax.errors import UserError
from vdm_jax.parallel.mesh import MeshSpec
from vdm_jax.training.report import log_console


@dataclasses.dataclass(frozen=True)
class Embed:
    """Encode captions or pictures once with a released encoder, so that training does not carry it.

    SOURCE is a text file with a caption per line, or a config (its name or file), whose data sets have the captions.
    The result is a folder that WithEmbeddings(path=...) in a config and `vdm-jax sample --embeddings` read. Or SOURCE
    is a folder of pictures and the encoder one of images: the result is what VideoFolder(image_prompts=...) reads. With
    --first-frames, SOURCE is a config of prepared clips, whose first frames are encoded for networks that read image
    tokens: PreparedClips(image_tokens=...) reads the result. An interrupted run of pictures goes on where it stopped.

    Examples:
      vdm-jax embed captions.txt --encoder stable-diffusion-v1-5 --out data/clip
      vdm-jax embed imagen/cascade --encoder t5-v1_1-xxl --length 128 --dtype bfloat16 --mesh.fsdp 8 --out data/t5
      vdm-jax embed portraits --encoder IP-Adapter/models/image_encoder --out data/portraits
      vdm-jax embed wan/image_to_video_14b --first-frames --encoder Wan2.1-I2V-14B-480P-Diffusers --out data/clip_h
    """

    # Text file with a caption per line, name or .py file of a config, or folder of pictures
    source: tyro.conf.Positional[str]
    # Folder of a pipeline (text_encoder/ and tokenizer/), or of a text encoder with the files of its tokenizer; for
    # pictures that of an image encoder
    encoder: Path
    out: Path | None = None  # a new folder; for configs, by default, the one that the config reads
    length: Size | None = None  # tokens of a text at most; longer ones are cut, with a warning. By default the model's
    hidden: bool = False  # for pictures: hidden states before the last layer, for a resampler, and not the summary
    last: bool = False  # with --hidden: those of the last layer, as DreamPose reads them
    first_frames: bool = False  # of a config's clips, by an image encoder, in place of its captions
    batch_size: Count = 32  # captions or pictures at a time
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # of the encoder; by default as it is stored
    data_dir: Path | None = None  # for configs: where prepared data lives; ~/.cache/vdm_jax/data by default
    mesh: MeshSpec = MeshSpec()  # over which the encoder and the captions are split


def main(arguments: Sequence[str]) -> int:
    """Entry of the command."""
    options = parse(Embed, arguments, "vdm-jax embed")
    if options.first_frames:
        return _first_frames(options)
    if Path(options.source).is_dir():
        return _pictures(options)
    refuse_unused(options, ["hidden", "last"], "with captions", "them with a folder of pictures")
    captions, out = read_captions(options)
    check_folder(out.expanduser())
    if out.expanduser().exists():  # before the encoder is loaded
        raise UserError(f"--out={out} exists; permitted: a new folder, or delete this one first")
    from vdm_jax.data.text_encoding import CaptionEncoder, embed_captions

    encoder = CaptionEncoder(options.encoder, length=options.length, dtype=options.dtype, mesh=options.mesh)
    console = log_console()
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("encoding captions", total=len(captions))
        embed_captions(encoder, captions, out, batch_size=options.batch_size,
                       progress=lambda done: bar.update(task, completed=done))
    print(f"{out}: {len(captions)} captions, {encoder.about}")
    return 0


def _pictures(options: Embed) -> int:
    """Encode the pictures of a folder. Raises `UserError` for a folder without pictures, and as `embed_pictures`."""
    from vdm_jax.data.picture_encoding import PictureEncoder, embed_pictures
    from vdm_jax.data.video_folder import pictures_below

    refuse_unused(options, ["length", "data_dir"], f"with a folder ({options.source}) as source", "them with captions")
    if not options.hidden:
        refuse_unused(options, ["last"], "without --hidden", "both, or none")
    files = pictures_below(options.source, "source")
    if options.out is None:
        raise UserError("--out=None is not valid for a folder of pictures; permitted: a folder", "Embed.out")
    check_folder(options.out.expanduser())
    encoder = PictureEncoder(options.encoder, dtype=options.dtype, mesh=options.mesh)
    with rich.progress.Progress(console=log_console(), disable=not log_console().is_terminal) as bar:
        task = bar.add_task("encoding pictures", total=len(files))
        out = embed_pictures(encoder, files, options.out, hidden=options.hidden, last=options.last,
                             batch_size=options.batch_size, progress=lambda done: bar.update(task, completed=done))
    print(f"{out}: {len(files)} pictures, {encoder.width(options.hidden)} channels")
    return 0


def _first_frames(options: Embed) -> int:
    """Encode the first frames of a config's prepared clips, split by split. Raises `UserError` for other data, and as
    `embed_first_frames`."""
    from vdm_jax.data.first_frames import embed_first_frames
    from vdm_jax.data.picture_encoding import PictureEncoder

    refuse_unused(options, ["length", "hidden", "last", "data_dir"], "with --first-frames", "none of them")
    if options.source not in config_names() and not options.source.endswith(".py"):
        raise UserError(f"source={options.source!r} with --first-frames is no config; permitted: a .py file, or one of "
                        f"{', '.join(config_names())}", "Embed.source")
    data = load_config(options.source).data
    data = data.data if isinstance(data, WithEmbeddings) else data
    if not isinstance(data, PreparedClips):
        raise UserError(f"{options.source} has {type(data).__name__} for data; permitted with --first-frames: "
                        "PreparedClips, of vdm-jax prepare", "Embed.source")
    out = options.out or data.image_tokens
    if not out:
        raise UserError(f"--out=None for {options.source}, whose PreparedClips.image_tokens is ''; permitted: a folder",
                        "Embed.out")
    encoder = PictureEncoder(options.encoder, dtype=options.dtype, mesh=options.mesh)
    bare = dataclasses.replace(data, image_tokens="")
    for split in SPLITS:
        if split != "train" and not (Path(data.path).expanduser() / split).is_dir():
            continue
        source = open_source(bare, split)
        with rich.progress.Progress(console=log_console(), disable=not log_console().is_terminal) as bar:
            task = bar.add_task(f"encoding first frames of {split}", total=len(source))
            path = embed_first_frames(encoder, source, out, split, size=source.metadata["bytes"],
                                      batch_size=options.batch_size,
                                      progress=lambda done, task=task, bar=bar: bar.update(task, completed=done))
        print(f"{path}: {len(source)} clips, {encoder.width(True)} channels")
    return 0


def read_captions(options: Embed) -> tuple[list[str], Path]:
    """All captions, each once, and where their embeddings go."""
    out, path = options.out, Path(options.source)
    if options.source in config_names() or path.suffix == ".py":
        experiment = load_config(options.source)
        data = [experiment.data, *(getattr(stage.training, "image_data", None) for stage in experiment.stages)]
        if out is None and isinstance(experiment.data, WithEmbeddings):
            out = Path(experiment.data.path)
        clips = [one.data if isinstance(one, WithEmbeddings) else one for one in data if one is not None]
        found = itertools.chain.from_iterable(_of_data(one, options.data_dir or default_data_dir()) for one in clips)
    elif path.is_file():
        refuse_unused(options, ["data_dir"], f"with a text file ({path}) as source", "--data-dir with a config")
        found = caption_lines(path, f"source={options.source!r}")
    else:
        raise UserError(f"source={options.source!r} is neither a text file nor a config; permitted: a file with a "
                        f"caption per line, or one of {', '.join(config_names())}")
    if out is None:
        raise UserError(f"--out=None is not valid for {options.source}, which does not say where its embeddings are; "
                        "permitted: a new folder")
    captions = sorted(set(found) - {""})
    if not captions:
        raise UserError(f"{options.source} has no captions; permitted: at least one that is not empty")
    return captions, out


def _of_data(data: object, data_dir: Path) -> Iterator[str]:
    """Captions of all splits that there are."""
    for split in SPLITS:
        try:
            source = open_source(data, split, data_dir)
        except UserError:
            if split == "train":
                raise
            continue  # a set without this split
        given = getattr(source, "captions", None)
        yield from given() if given else (source[i]["caption"] for i in range(len(source)))
