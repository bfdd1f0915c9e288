"""Where the words of a caption are among the tokens that a network attends to."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vdm_jax.conditions.text import WordEncoder
from vdm_jax.conditions.vocabulary import split_words
from vdm_jax.errors import UserError
from vdm_jax.generation.generator import Generator
from vdm_jax.stages.stage import Stage
from vdm_jax.weights.tokenizers import Tokenizer


class Words(NamedTuple):
    """The words of a caption, lower case, and the places of the tokens of each."""

    words: tuple[str, ...]
    places: tuple[tuple[int, ...], ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens of each word."""
        return tuple(map(len, self.places))


class WordEdits(NamedTuple):
    """What editing by the words of captions goes by; static."""

    weights: tuple[float, ...]  # factors on the first tokens of the new captions
    edited: tuple[int, ...] = ()  # places, among the tokens of the given videos' captions, of the words that change


def words_of(generator: Generator, stage: Stage, caption: str) -> Words:
    """The words of a caption as a stage reads it; what is cut off a long one has no places. Raises `UserError` for a
    stage whose tokens are not those of single words: all but word encoders and the tokenizers of CLIP."""
    text = stage.network.text
    if isinstance(text, WordEncoder):
        words, first, end = tuple(split_words(caption)), 0, text.length
        counts = [1] * len(words)
    else:
        tokenizer, words = _tokenizer(generator, stage), tuple(caption.lower().split())
        first, end = len(tokenizer.start), len(tokenizer.start) + tokenizer.room
        counts = [len(tokenizer.split(word).ids) for word in words]
    firsts = first + np.cumsum([0, *counts])
    return Words(words, tuple(tuple(place for place in range(first, first + count) if place < end)
                              for first, count in zip(firsts.tolist(), counts, strict=False)))


def _tokenizer(generator: Generator, stage: Stage) -> Tokenizer:
    encoder = getattr(generator.encoder, "captions", None)
    if encoder is None or not encoder.is_clip:
        raise UserError(f"Stage {stage.name!r}: words of captions by {type(stage.network.text).__name__}, whose tokens "
                        "are not those of words; permitted: a WordEncoder, or a released model with CLIP's encoder",
                        "words.tokenizer")
    return encoder.tokenizer
