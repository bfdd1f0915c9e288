"""From a data set's config to a random-access source, whatever kind it is."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vdm_jax.configuration import Split, check_value
from vdm_jax.data.array_record import PreparedClips, PreparedClipsSource
from vdm_jax.data.embeddings import WithEmbeddings, WithEmbeddingsSource
from vdm_jax.data.image_folder import ImageFolder, ImageFolderSource
from vdm_jax.data.image_shards import ImageShards, ImageShardsSource
from vdm_jax.data.published import UCF101, BAIRRobotPushing, Kinetics600, MovingMNIST, PublishedVideo
from vdm_jax.data.published_files import kinetics_files, ucf101_files
from vdm_jax.data.source import RandomAccessSource
from vdm_jax.data.tfds_video import TFDSVideo, TFDSVideoSource
from vdm_jax.data.video_folder import VideoFolder, VideoFolderSource
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.errors import UserError, unknown_kind

WITHOUT_VALIDATION = "; or validate on training clips: validation_split='train' (--validation-split train)"


def default_data_dir() -> Path:
    """Where prepared data sets live: `$VDM_JAX_DATA`, or `~/.cache/vdm_jax/data`."""
    return Path(os.environ.get("VDM_JAX_DATA") or Path.home() / ".cache" / "vdm_jax" / "data")


def open_source(spec: Any, split: str, data_dir: Path | None = None) -> RandomAccessSource:
    """The clips of one split. Captioned digits are prepared first where they are not there yet.

    Raises `UserError` for an unknown split, for data that is missing, unreadable or empty.
    """
    check_value(split, Split, "split")
    match spec:
        case CaptionedDigits():
            from vdm_jax.digits.tfds import PreparedDigitsSource, prepare_captioned_digits

            data_dir = data_dir or default_data_dir()
            prepare_captioned_digits(spec, data_dir)
            return PreparedDigitsSource(spec, data_dir, split)
        case VideoFolder():
            return VideoFolderSource(spec, split)
        case ImageFolder():
            return ImageFolderSource(spec, split)
        case ImageShards():
            return ImageShardsSource(spec, split)
        case PreparedClips():
            return PreparedClipsSource(spec, split)
        case TFDSVideo():
            return TFDSVideoSource(spec, split)
        case UCF101() | BAIRRobotPushing() | Kinetics600() | MovingMNIST():
            return open_published(spec, split)
        case WithEmbeddings():
            return WithEmbeddingsSource(spec, open_source(spec.data, split, data_dir))
    raise unknown_kind("a data set", spec, (CaptionedDigits, VideoFolder, ImageFolder, ImageShards, PreparedClips,
                                            TFDSVideo, UCF101, BAIRRobotPushing, Kinetics600, MovingMNIST,
                                            WithEmbeddings))


def open_published(spec: PublishedVideo, split: str) -> RandomAccessSource:
    """The clips of one split. Raises `UserError` saying what to fetch where files are missing."""
    parts = spec.parts(split)
    match spec:
        case UCF101(via="tfds"):  # its default configuration would squash frames to squares
            return TFDSVideoSource(spec.tfds(f"ucf101/ucf101_{spec.division}"), split)
        case UCF101():
            return VideoFolderSource(spec.videos(), split, ucf101_files(spec, parts))
        case BAIRRobotPushing(via="tfds"):
            return TFDSVideoSource(spec.tfds("bair_robot_pushing_small", frames_key=spec.camera), split)
        case BAIRRobotPushing():
            from vdm_jax.data.robot_pushing import open_robot_pushing

            return open_robot_pushing(spec, split)
        case Kinetics600():
            return VideoFolderSource(spec.videos(), split, kinetics_files(spec, parts))
        case MovingMNIST():
            from vdm_jax.data.moving_mnist import open_moving_mnist

            return open_moving_mnist(spec, split)
    raise unknown_kind("a data set", spec, PublishedVideo)


def open_validation(spec: Any, split: str, data_dir: Path | None = None) -> RandomAccessSource:
    """The clips to validate on: those of `split`, the value of `Experiment.validation_split`.

    Raises `UserError` like `open_source`, which for the validation split also names the way to do without one.
    """
    try:
        return open_source(spec, split, data_dir)
    except UserError as error:
        if split == "train":
            raise
        raise UserError(f"{error}{WITHOUT_VALIDATION}", error.code) from error


def caption_words(spec: Any, source: RandomAccessSource, images: Sequence[RandomAccessSource] = ()) -> tuple[str, ...]:
    """The vocabulary of a data set: the closed one it declares, or the words of its captions, and of the captions of
    the images that are trained on beside it."""
    from vdm_jax.conditions.vocabulary import build_words

    captions = itertools.chain(*(source.captions() for source in images))
    if isinstance(spec, CaptionedDigits):
        from vdm_jax.digits.captioned_digits import caption_words as digit_words

        return build_words(itertools.chain(digit_words(), captions)) if images else digit_words()
    return build_words(itertools.chain(source.captions(), captions))
