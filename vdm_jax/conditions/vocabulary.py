"""Words of captions to integer ids: a closed word-level vocabulary with padding and an unknown word."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from vdm_jax.errors import UserError

PADDING, UNKNOWN, FIRST_WORD = 0, 1, 2

log = logging.getLogger(__name__)


def split_words(caption: str) -> list[str]:
    """Lower-case words and numbers of a caption; punctuation separates and disappears."""
    return re.findall(r"[\w']+", caption.lower())


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The words a model knows, in the order of their ids (0 is padding, 1 any unknown word)."""

    words: tuple[str, ...]
    length: int = 24  # tokens per caption

    @property
    def size(self) -> int:
        """Number of ids, padding and unknown word included."""
        return len(self.words) + FIRST_WORD

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {word: i + FIRST_WORD for i, word in enumerate(self.words)}

    def encode(self, caption: str) -> Int[np.ndarray, " L"]:
        """Ids `[L]` of a caption, padded with 0; unknown words become 1, what is too long is cut."""
        ids = [self._ids.get(word, UNKNOWN) for word in split_words(caption)][: self.length]
        return np.array(ids + [PADDING] * (self.length - len(ids)), np.int32)

    def encode_prompts(self, captions: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """Ids `[B, L]` of a user's captions, with one warning for each that is not fully understood."""
        for caption in captions:
            words = split_words(caption)
            unknown = [w for w in words if w not in self._ids]
            if unknown:
                log.warning("caption %r has unknown words: %s (read as one 'unknown' word; known words: %s)", caption,
                            ", ".join(unknown), summarise(self.words))
            if len(words) > self.length:
                log.warning("caption %r has %d words; only the first %d are read", caption, len(words), self.length)
        return np.stack([self.encode(c) for c in captions])


def build_words(captions: Iterable[str], limit: int = 10_000) -> tuple[str, ...]:
    """The `limit` most frequent words of `captions`, sorted. Raises `UserError` when there is not one word."""
    counts: dict[str, int] = {}
    for caption in captions:
        for word in split_words(caption):
            counts[word] = counts.get(word, 0) + 1
    if not counts:
        raise UserError("the data set has no captions to build a vocabulary from; permitted: a data set with captions, "
                        "or text=None in every stage's network")
    frequent = sorted(counts, key=lambda w: (-counts[w], w))[:limit]
    return tuple(sorted(frequent))


def summarise(words: Sequence[str], most: int = 60) -> str:
    """The words as one line, cut after `most`."""
    return " ".join(words[:most]) + (f" ... ({len(words)} in all)" if len(words) > most else "")
