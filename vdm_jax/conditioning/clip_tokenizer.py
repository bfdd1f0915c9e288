"""The tokenizer of CLIP: byte-pair encoding of lower-case text (Radford et al. 2021, arXiv 2103.00020, section 2.4).

Its only data is the list of merges, which is published twice: as `bpe_simple_vocab_16e6.txt.gz` beside the original
code (and inside the package clip-anytorch), and as `merges.txt` in folders of transformers.
"""

from __future__ import annotations

import functools
import gzip
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from vdm_jax.errors import UserError

MERGES = 48_894  # that the published models use; the longer list has more
LENGTH = 77  # tokens of a text, with the one that begins and the one that ends it
_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
_END_OF_WORD = "</w>"


class CLIPTokenizer:
    """Texts to the token ids that CLIP was trained with."""

    def __init__(self, merges: Sequence[tuple[str, str]]):
        symbols = list(_byte_symbols().values())
        words = [*symbols, *(symbol + _END_OF_WORD for symbol in symbols), *map("".join, merges)]
        self.ids = {word: number for number, word in enumerate(words)}
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.start, self.end = len(words), len(words) + 1

    @classmethod
    def read(cls, path: Path) -> CLIPTokenizer:
        """The tokenizer of a list of merges. Raises `UserError` for another file."""
        try:
            text = (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8")
            with text as file:
                lines = file.read().split("\n")[1 : MERGES + 1]  # the first line says what it is
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read: {error}; permitted: the merges of CLIP") from error
        merges = [tuple(line.split()) for line in lines if line]
        if any(len(pair) != 2 for pair in merges) or not merges:
            raise UserError(f"{path} is not a list of pairs; permitted: the merges of CLIP")
        return cls(merges)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without the ones that begin and end it."""
        text = " ".join(unicodedata.normalize("NFC", text).lower().split())
        return [self.ids[part] for word in _words(text) for part in self._parts(word)]

    def __call__(self, texts: Sequence[str], length: int = LENGTH) -> Int[np.ndarray, "b {length}"]:
        """Ids of texts in rows, each begun and ended, and filled up with the id that ends one. A text that is too long
        is cut off, as in the published code."""
        rows = np.full((len(texts), length), self.end, np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.start, *self.encode(text)[: length - 2], self.end]
            row[: len(ids)] = ids
        return rows

    @functools.lru_cache(maxsize=100_000)  # noqa: B019  (a tokenizer lives as long as the program)
    def _parts(self, word: str) -> tuple[str, ...]:
        """Bytes of a word, joined pair by pair in the order of the merges."""
        table = _byte_symbols()
        parts = [table[byte] for byte in word.encode()]
        parts[-1] += _END_OF_WORD
        while len(parts) > 1:
            pairs = list(zip(parts, parts[1:], strict=False))
            first = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if first not in self.ranks:
                break
            joined, place = [], 0
            while place < len(parts):
                together = tuple(parts[place : place + 2]) == first
                joined.append("".join(first) if together else parts[place])
                place += 2 if together else 1
            parts = joined
        return tuple(parts)


def _words(text: str) -> list[str]:
    """Runs of letters, single digits, and runs of other signs; an apostrophe with an ending is a word of its own."""
    words, place = [], 0
    while place < len(text):
        ending = next((x for x in _CONTRACTIONS if text.startswith(x, place)), None)
        stop = place + len(ending) if ending else place + 1
        kind = _kind(text[place])
        if not ending and kind in ("letter", "sign"):
            while stop < len(text) and _kind(text[stop]) == kind:
                stop += 1
        if kind != "space":
            words.append(text[place:stop])
        place = stop
    return words


@functools.cache
def _kind(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] in "LN":
        return "letter" if category[0] == "L" else "number"
    return "space" if character.isspace() else "sign"


@functools.cache
def _byte_symbols() -> dict[int, str]:
    """A visible character for each byte: itself where it is one in Latin-1, else the next beyond the first 256."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(others)}
