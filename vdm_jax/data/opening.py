"""From a data set's config to a random-access source, whatever kind it is."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from vdm_jax.configuration import Split, check_value
from vdm_jax.data.embeddings import Clips, WithEmbeddings
from vdm_jax.data.source import ClipData, RandomAccessSource
from vdm_jax.errors import UserError, unknown_kind

WITHOUT_VALIDATION = "; or validate on training clips: validation_split='train' (--validation-split train)"


def default_data_dir() -> Path:
    """Where prepared data sets live: `$VDM_JAX_DATA`, or `~/.cache/vdm_jax/data`."""
    return Path(os.environ.get("VDM_JAX_DATA") or Path.home() / ".cache" / "vdm_jax" / "data")


def open_source(spec: ClipData, split: str, data_dir: Path | None = None) -> RandomAccessSource:
    """The clips of one split. A data set that has to be prepared is, where it is not there yet.

    Raises `UserError` for an unknown split, for data that is missing, unreadable or empty.
    """
    check_value(split, Split, "split")
    if not isinstance(spec, ClipData):
        raise unknown_kind("a data set", spec, Clips | WithEmbeddings)
    return spec.open(split, data_dir or default_data_dir())


def open_validation(spec: ClipData, split: str, data_dir: Path | None = None) -> RandomAccessSource:
    """The clips to validate on: those of `split`, the value of `Experiment.validation_split`.

    Raises `UserError` like `open_source`, which for the validation split also names the way to do without one.
    """
    try:
        return open_source(spec, split, data_dir)
    except UserError as error:
        if split == "train":
            raise
        raise UserError(f"{error}{WITHOUT_VALIDATION}", error.code) from error


def caption_words(
    spec: ClipData, source: RandomAccessSource, images: Sequence[RandomAccessSource] = ()
) -> tuple[str, ...]:
    """The vocabulary of a data set: the closed one it declares, or the words of its captions, and of the captions of
    the images that are trained on with it."""
    from vdm_jax.conditions.vocabulary import build_words

    words = spec.vocabulary()
    if words is not None and not images:
        return words
    captions = itertools.chain.from_iterable(one.captions() for one in images)
    return build_words(itertools.chain(source.captions() if words is None else words, captions))
